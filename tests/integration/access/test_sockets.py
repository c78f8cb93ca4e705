"""Sockets check their origin, ignore what a page sends, and end when access ends."""

import asyncio
from contextlib import suppress
from typing import Any

import httpx
import pytest
from asgiref.sync import sync_to_async
from channels.testing import WebsocketCommunicator
from django.contrib.auth import get_user_model
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from deployments.models import ApiToken
from deployments.realtime import hub
from deployportal.asgi import application

from ...processes import Portal
from ...users import People, end, socket, token
from .support import signed_in


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "http://127.0.0.1",
        "http://127.0.0.1:{other}",
        "https://127.0.0.1:{port}",
        "http://localhost:{port}",
        "http://evil.localhost:{port}",
        "http://127.0.0.1:{port}.evil.example",
        "http://127.0.0.1:{port}@evil.example",
        "http://shop.localhost:{other}",
        "null",
        "",
        None,
    ],
)
def test_a_socket_from_another_origin_is_refused(shared_portal: Portal, origin: str | None) -> None:
    port = shared_portal.port
    headers = {} if origin is None else {"Origin": origin.format(port=port, other=port + 2)}
    with pytest.raises(InvalidStatus) as refused:
        connect(f"ws://127.0.0.1:{port}/ws/stacks", additional_headers=headers, proxy=None)
    assert refused.value.response.status_code in (400, 403)


@pytest.mark.parametrize(
    "host", ["evil.localhost:{port}", "evil.example", "127.0.0.1:{port}@evil.example", "[", "[::1"]
)
async def test_a_socket_for_an_unknown_host_is_refused(host: str) -> None:
    """Origin and Host may agree: an attacker's name may resolve to this machine."""
    own = host.format(port=3000)
    headers = [(b"host", own.encode()), (b"origin", f"http://{own}".encode())]
    communicator = WebsocketCommunicator(application, "/ws/stacks", headers=headers)
    accepted, code = await communicator.connect(10)
    assert (accepted, code) == (False, 4403)


def test_frames_from_a_page_are_ignored(shared_portal: Portal, owner: httpx.Client, owned: str) -> None:
    before = owner.get(f"/api/deployments/{owned}").json()
    with socket(shared_portal, f"/ws/deployments/{owned}") as mine:
        mine.recv(10)
        for frame in ('{"type": "wake"}', '{"action": "cancel"}', "x" * 60_000, b"\xff\xfe", ""):
            mine.send(frame)
        mine.ping().wait(10)
        with pytest.raises(TimeoutError):
            mine.recv(0)
    assert owner.get(f"/api/deployments/{owned}").json() == before


def test_a_frame_that_is_too_large_closes_the_socket(shared_portal: Portal, owned: str) -> None:
    with socket(shared_portal, f"/ws/deployments/{owned}") as mine:
        mine.recv(10)
        with suppress(ConnectionClosed):  # the server closes before the end of the frame
            mine.send("x" * 2_000_000)
        with pytest.raises(ConnectionClosed):
            mine.recv(10)
    assert shared_portal.http.get("/help/").status_code == 200


@pytest.mark.parametrize("ends", ["logout", "deactivated", "role"])
async def test_a_socket_ends_soon_after_its_user_loses_access(
    transactional_db: None, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    monkeypatch.setattr(hub, "CREDENTIAL_CHECK_SECONDS", 0.05)

    def begin() -> tuple[Any, Any, str]:
        made = People()
        client = signed_in(made.operator)
        return client, end(made.deploy(made.owner, "shop")), client.cookies["portal_session"].value

    client, deployment, cookie = await sync_to_async(begin)()
    headers = [
        (b"host", b"localhost:3000"),
        (b"origin", b"http://localhost:3000"),
        (b"cookie", f"portal_session={cookie}".encode()),
    ]
    communicator = WebsocketCommunicator(application, f"/ws/deployments/{deployment.pk}", headers=headers)
    assert (await communicator.connect(10))[0]
    assert "shop" in await communicator.receive_from(5)
    user = get_user_model().objects.filter(username="operator")
    if ends == "logout":
        await sync_to_async(client.post)("/logout")
    elif ends == "deactivated":
        await user.aupdate(is_active=False)
    else:
        await user.aupdate(is_staff=False)
    closing = await communicator.receive_output(5)
    assert (closing["type"], closing["code"]) == ("websocket.close", 4401)
    await communicator.disconnect()


async def test_a_stream_ends_soon_after_its_token_is_revoked(
    transactional_db: None, monkeypatch: pytest.MonkeyPatch, async_client: Any
) -> None:
    monkeypatch.setattr(hub, "CREDENTIAL_CHECK_SECONDS", 0.05)
    made = await sync_to_async(People)()
    deployment = await sync_to_async(made.deploy)(made.owner, "shop")
    header = await sync_to_async(token)(made.owner)
    answer = await async_client.get(f"/api/status/{deployment.pk}", headers=header)
    lines = aiter(answer)
    assert b"event: progress" in await anext(lines)
    await ApiToken.objects.all().adelete()
    async with asyncio.timeout(5):
        assert [line async for line in lines] == []
