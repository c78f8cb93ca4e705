"""A closed portal refuses anonymous users; viewers are limited."""

import asyncio
import gc
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from asgiref.sync import sync_to_async

from deployments.realtime import hub

from ...processes import Portal, until
from ...users import People, browser, new_token, socket, token
from .support import API, PAGES, STRANGER, closing_code


@pytest.fixture(scope="module")
def closed_portal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Portal]:
    closed = Portal(tmp_path_factory.mktemp("closed"), PORTAL_OPEN=0, PORTAL_VIEWERS_EACH=1, SIMULATOR_START_SECONDS=0)
    yield closed.start()
    closed.close()


def test_a_closed_portal_refuses_anonymous_users_everywhere(closed_portal: Portal) -> None:
    http = closed_portal.http
    id = f"dep_{'0' * 32}"
    answers = [http.post("/api/deploy", json={"name": "shop"}), http.get("/api/check/shop")]
    answers += [http.get(path.format(id)) for path in API]
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "NOT_SIGNED_IN")
    for path in ("/", "/tokens", "/check?name=shop", "/stacks"):
        answer = http.get(path, headers=STRANGER)
        assert (answer.status_code, answer.headers["location"].split("?")[0]) == (302, "/login")
    assert http.get(PAGES[0].format(id), headers=STRANGER).status_code == 404
    for path in (f"/ws/deployments/{id}", "/ws/stacks"):
        with socket(closed_portal, path, **STRANGER) as refused:
            assert closing_code(refused) == 4404


def test_a_viewer_beyond_the_limit_is_refused_with_retry_after(closed_portal: Portal) -> None:
    """The limit is one for each user and address; a viewer that leaves frees its place."""
    with browser(closed_portal) as http:
        http.headers.update(new_token(http))
        closed_portal.close_gate("project.all")
        started = http.post("/api/deploy", json={"name": "doors-cap"}).json()
        with http.stream("GET", started["statusUrl"]) as stream:
            lines = stream.iter_lines()
            assert next(lines) == "event: progress"
            refused = http.get(started["statusUrl"])
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "QUOTA")
            assert int(refused.headers["Retry-After"]) > 0
            waiting = http.get(started["eventsUrl"], params={"after": 1000, "wait": 5})
            assert waiting.status_code == 429
        until(lambda: _streams(http, started["statusUrl"]))
        page = f"/ws/deployments/{started['deploymentId']}"
        with socket(closed_portal, page) as first:
            assert "doors-cap" in str(first.recv(10))
            with socket(closed_portal, page) as second:
                assert closing_code(second) == 3013
        closed_portal.open_gate("project.all")


def _streams(http: httpx.Client, path: str) -> bool:
    with http.stream("GET", path) as answer:
        return answer.status_code == 200


async def test_an_unread_stream_does_not_count_as_a_viewer_for_long(transactional_db: None, async_client: Any) -> None:
    """The client disconnects between the view's answer and the first byte."""
    made = await sync_to_async(People)()
    deployment = await sync_to_async(made.deploy)(made.owner, "shop")
    header = await sync_to_async(token)(made.owner)
    answer = await async_client.get(f"/api/status/{deployment.pk}", headers=header)
    viewers = hub.Hub.current()._viewers
    assert viewers.total() == 1
    del answer
    await sync_to_async(gc.collect)()  # in the thread that used it last
    async with asyncio.timeout(5):
        while viewers.total():
            await asyncio.sleep(0)
