"""Many viewers, some of them disconnected for a while: all see the end, and each event once."""

import asyncio
import os
import re
import resource
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from .. import users
from ..gates import held
from ..processes import until
from ..services import PlainProxy
from .assertions import Figures, OneMachinePortal, assert_objects, assert_same_everywhere, wait_for_frame

CROWD, CONNECTING, SECONDS, MEGABYTES = 1000, 50, 60, 300
SILENT, SPARE_SOCKETS = 50, 5  # clients of each kind that read nothing; sockets that the test itself may keep open
STREAM = {"Accept": "text/event-stream"}


@pytest.fixture
def portal(tmp_path: Path) -> Iterator[OneMachinePortal]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4 * CROWD), hard))  # inherited by the portal
    portal = OneMachinePortal(tmp_path / "portal").start()
    yield portal
    portal.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def memory(portal: OneMachinePortal) -> int:
    """Return the portal's memory in megabytes."""
    assert portal.process is not None
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{portal.process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) // 1024


def test_a_thousand_pages_all_see_the_end(portal: OneMachinePortal, figures: Figures) -> None:
    before = memory(portal)
    with held(portal, "job"):
        portal.request("crowded")
        portal.wait_at("job")
        last = asyncio.run(crowd(portal, portal.newest_deployment("crowded")["id"]))
    deployment = portal.wait_until_ended("crowded")
    assert len(last) == CROWD
    assert all(f'data-version="{deployment["version"]}" data-done' in frame for frame in last)
    assert memory(portal) - before < MEGABYTES
    assert_same_everywhere(portal, deployment, figures)
    assert_objects(portal, ["crowded"], 1, figures)
    figures.ended += 1


async def crowd(portal: OneMachinePortal, id: str) -> list[str]:
    """Open many pages; return the last frame of each. The job's gate opens when all have their first frame."""
    url, headers = f"ws://localhost:{portal.port}/ws/deployments/{id}", {"Cookie": cookies(portal)}
    origin, few, there = f"http://localhost:{portal.port}", asyncio.Semaphore(CONNECTING), asyncio.Barrier(CROWD + 1)

    async def watch() -> str:
        async with few:
            page = await connect(url, origin=origin, additional_headers=headers, open_timeout=SECONDS, proxy=None)  # type: ignore[arg-type]
        async with page:
            frame = str(await page.recv())
            await there.wait()
            while "data-done" not in frame:
                frame = str(await page.recv())
            return frame

    async def open_the_gate() -> None:
        await there.wait()
        await asyncio.to_thread(portal.open_gate, "job")

    async with asyncio.timeout(2 * SECONDS):
        *frames, _ = await asyncio.gather(*(watch() for _ in range(CROWD)), open_the_gate())
    return frames


def test_a_client_that_reconnects_gets_the_missed_events_once_and_in_order(
    portal: OneMachinePortal, figures: Figures
) -> None:
    with held(portal, "application.create"):
        portal.request("away")
        portal.wait_at("application.create")
        id = portal.newest_deployment("away")["id"]
        stream = portal.stream(id, **STREAM)
        last = next(stream)["id"]
        stream.close()
    deployment = portal.wait_until_ended("away")
    missed = [event["seq"] for event in portal.events(id, after=int(last))["events"] if event["kind"] == "phase"]
    assert [int(event["id"]) for event in portal.stream(id, **STREAM, **{"Last-Event-ID": last})] == missed
    for strange in ("bogus", "-1", "999999"):
        assert [event["event"] for event in portal.stream(id, **STREAM, **{"Last-Event-ID": strange})] == ["complete"]
    assert_same_everywhere(portal, deployment, figures)
    figures.ended += 1


def test_a_client_that_does_not_read_delays_no_other_and_is_disconnected(
    portal: OneMachinePortal, figures: Figures
) -> None:
    with held(portal, "job"):
        portal.request("unread")
        portal.wait_at("job")
        id = portal.newest_deployment("unread")["id"]
        before, open_before = memory(portal), open_sockets(portal)
        stream = f"GET /api/status/{id} HTTP/1.1", "Accept: text/event-stream", f"Authorization: {bearer(portal)}"
        page = f"GET /ws/deployments/{id} HTTP/1.1", *UPGRADE, f"Origin: {portal.url}", f"Cookie: {cookies(portal)}"
        silent = [unread(portal, *request) for request in (stream, page) for _ in range(SILENT)]
        try:
            until(lambda: open_sockets(portal) >= open_before + len(silent), 30)
            with users.socket(portal, f"/ws/deployments/{id}", portal.user) as watched:
                portal.open_gate("job")
                wait_for_frame(watched, "data-done")
            assert_same_everywhere(portal, portal.wait_until_ended("unread"), figures)
            assert memory(portal) - before < MEGABYTES / 3
            until(
                lambda: open_sockets(portal) <= open_before + SPARE_SOCKETS, 2 * SECONDS
            )  # sockets that answer no ping are closed
            assert all(began.startswith((b"HTTP/1.1 101", b"HTTP/1.1 200")) for began in map(first_bytes, silent))
        finally:
            for one in silent:
                one.close()
    assert_objects(portal, ["unread"], 1, figures)
    figures.ended += 1


UPGRADE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


def unread(portal: OneMachinePortal, *lines: str) -> socket.socket:
    """Open a connection that sends a request and does not read the answer."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.settimeout(SECONDS)
    connection.connect(("127.0.0.1", portal.port))
    connection.sendall("\r\n".join([*lines, f"Host: 127.0.0.1:{portal.port}", "", ""]).encode())
    return connection


def first_bytes(connection: socket.socket) -> bytes:
    return connection.recv(100)


def open_sockets(portal: OneMachinePortal) -> int:
    """Return how many sockets the portal has open."""
    assert portal.process is not None
    return sum(link_of(entry).startswith("socket:") for entry in Path(f"/proc/{portal.process.pid}/fd").iterdir())


def link_of(entry: Path) -> str:
    try:
        return os.readlink(entry)
    except FileNotFoundError:  # closed meanwhile
        return ""


def bearer(portal: OneMachinePortal) -> str:
    return portal.token["Authorization"]


def cookies(portal: OneMachinePortal) -> str:
    return "; ".join(f"{name}={value}" for name, value in portal.user.cookies.items())


@pytest.mark.browser
def test_behind_a_proxy_without_websocket_the_page_sees_the_end(
    portal: OneMachinePortal, tmp_path: Path, browser: Any, figures: Figures
) -> None:
    with closing(PlainProxy(tmp_path, portal)) as proxy, closing(browser.new_context()) as context:
        tab = context.new_page()
        tab.set_default_timeout(20_000)
        with held(portal, "job"):
            tab.goto(f"http://localhost:{proxy.port}/")
            tab.get_by_label("Name", exact=True).fill("proxied")
            tab.get_by_role("button", name="Deploy").click()
            tab.wait_for_url("**/deployments/dep_*")
            tab.get_by_text("Refreshing every 5 s").wait_for()
            portal.wait_at("job")
        tab.get_by_role("heading", name="The stack is live").wait_for()
    assert_same_everywhere(portal, portal.wait_until_ended("proxied"), figures)
    assert_objects(portal, ["proxied"], 1, figures)
    figures.ended += 1
