"""Many who watch, and some who were away: everybody sees the end, and every event once."""

import asyncio
import re
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from ..test_live import held
from .conftest import Figures
from .look import Watched, is_as_it_should_be, is_told_alike

CROWD, CONNECTING, SECONDS, MEGABYTES = 1000, 50, 60, 300
STREAM = {"Accept": "text/event-stream"}


@pytest.fixture
def portal(tmp_path: Path) -> Iterator[Watched]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4 * CROWD), hard))  # the portal inherits it
    portal = Watched(tmp_path / "portal").start()
    yield portal
    portal.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def held_memory(portal: Watched) -> int:
    """In megabytes."""
    assert portal.process is not None
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{portal.process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) // 1024


def test_a_thousand_pages_all_see_the_end(portal: Watched, figures: Figures) -> None:
    before = held_memory(portal)
    with held(portal, "job"):
        portal.ask("crowded")
        portal.wait_at("job")
        last = asyncio.run(crowd(portal, portal.run_of("crowded")["id"]))
    run = portal.ended("crowded")
    assert len(last) == CROWD
    assert all(f'data-version="{run["version"]}" data-done' in frame for frame in last)
    assert held_memory(portal) - before < MEGABYTES
    is_told_alike(portal, run, figures)
    is_as_it_should_be(portal, ["crowded"], 1, figures)
    figures.ended += 1


async def crowd(portal: Watched, id: str) -> list[str]:
    """The last frame of each; the gate of the job opens when all have their first."""
    cookies = "; ".join(f"{name}={value}" for name, value in portal.person.cookies.items())
    url, headers = f"ws://localhost:{portal.port}/ws/deployments/{id}", {"Cookie": cookies}
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


def test_who_was_away_gets_what_was_missed_once_and_in_order(portal: Watched, figures: Figures) -> None:
    with held(portal, "application.create"):
        portal.ask("away")
        portal.wait_at("application.create")
        id = portal.run_of("away")["id"]
        stream = portal.stream(id, **STREAM)
        last = next(stream)["id"]
        stream.close()
    run = portal.ended("away")
    missed = [event["seq"] for event in portal.events(id, after=int(last))["events"] if event["kind"] == "phase"]
    assert [int(event["id"]) for event in portal.stream(id, **STREAM, **{"Last-Event-ID": last})] == missed
    for strange in ("bogus", "-1", "999999"):
        assert [event["event"] for event in portal.stream(id, **STREAM, **{"Last-Event-ID": strange})] == ["complete"]
    is_told_alike(portal, run, figures)
    figures.ended += 1
