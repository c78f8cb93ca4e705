"""The number of requests to Dokploy: the rate limit of a key, and shared calls."""

import asyncio
import itertools
import re
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from deployments.engine import deploy, retry
from deployments.engine.dokploy import Dokploy, Exchange
from deployments.engine.dokploy.throttle import RateLimiter, SingleFlight
from deployments.engine.errors import Unavailable

from ..processes import KEY, ROOT, Simulator
from .engine.harness import count_calls, eventually, new_harness

RATE = 50


@pytest_asyncio.fixture
async def new_client(simulator: Simulator) -> AsyncIterator[Callable[..., Dokploy]]:
    """Yield a function that creates a client, which is closed after the test."""
    clients: list[Dokploy] = []

    def create(**options: Any) -> Dokploy:
        clients.append(Dokploy(f"http://127.0.0.1:{simulator.port}", KEY, **options))
        return clients[-1]

    yield create
    for client in clients:
        await client.aclose()


async def test_two_clients_with_the_same_key_share_its_rate_limit(
    simulator: Simulator, new_client: Callable[..., Dokploy]
) -> None:
    first, second = (new_client(calls_per_second=RATE) for _ in range(2))
    sent: list[float] = []
    started = time.time()
    views = [
        client.for_deployment(lambda procedure: None, lambda exchange: sent.append(exchange.at))
        for client in (first, second)
    ]
    await asyncio.gather(*(views[number % 2].dokploy_deployments("a") for number in range(RATE + 20)))
    sent.sort()
    for number, at in enumerate(sent[RATE:], 1):
        assert at - started >= number / RATE - 0.01


async def test_a_rate_limit_allows_a_burst_and_then_an_even_rate() -> None:
    limiter, started = RateLimiter(RATE, 5), time.monotonic()
    acquired_after = []
    for _ in range(10):
        await limiter.acquire()
        acquired_after.append(time.monotonic() - started)
    assert all(seconds >= (number - 4) / RATE - 0.001 for number, seconds in enumerate(acquired_after))


async def test_without_a_rate_limit_no_call_waits(simulator: Simulator, new_client: Callable[..., Dokploy]) -> None:
    unlimited = new_client()
    assert unlimited._transport._rate_limiter._interval == 0
    await asyncio.gather(*(unlimited.dokploy_deployments("a") for _ in range(30)))


async def test_concurrent_reads_take_one_call_that_each_deployment_records(
    simulator: Simulator, new_client: Callable[..., Dokploy]
) -> None:
    dokploy = new_client()
    before = count_calls(simulator)
    records: list[list[Exchange]] = [[] for _ in range(20)]
    views = [dokploy.for_deployment(lambda procedure: None, record.append) for record in records]
    answers = await asyncio.gather(*(view.projects() for view in views))
    assert answers == [[]] * 20
    assert (count_calls(simulator) - before)["project.all"] == 1
    assert [record[0].procedure for record in records] == ["project.all"] * 20


async def test_a_read_during_a_call_gets_the_result_of_a_later_call(
    simulator: Simulator, new_client: Callable[..., Dokploy]
) -> None:
    dokploy = new_client()
    simulator.close_gate(
        "project.all:answer"
    )  # the gate holds the response back after the read, so the result is outdated when it arrives
    early = asyncio.ensure_future(dokploy.projects())
    assert await asyncio.to_thread(simulator.wait_at, "project.all:answer") == 1
    simulator.project("created-meanwhile")
    late = [asyncio.ensure_future(dokploy.projects()) for _ in range(3)]
    await asyncio.sleep(0)
    simulator.open_gate("project.all:answer")
    assert await early == []
    for answer in await asyncio.gather(*late):
        assert [project.name for project in answer] == ["created-meanwhile"]


async def test_a_cancelled_reader_does_not_affect_the_others_and_an_error_reaches_all(
    simulator: Simulator, new_client: Callable[..., Dokploy]
) -> None:
    dokploy = new_client()
    simulator.close_gate("project.all")
    cancelled, waiting = (asyncio.ensure_future(dokploy.projects()) for _ in range(2))
    assert await asyncio.to_thread(simulator.wait_at, "project.all") == 1
    cancelled.cancel()
    simulator.open_gate("project.all")
    assert await waiting == []
    simulator.fault("project.all", "error500")
    answers = await asyncio.gather(*(dokploy.projects() for _ in range(3)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [Unavailable] * 3
    assert len({id(answer) for answer in answers}) == 3, "each caller gets its own error"
    assert await dokploy.projects() == []


async def test_shared_calls_are_a_pause_apart() -> None:
    calls_at: list[float] = []

    async def call() -> int:
        calls_at.append(time.monotonic())
        return len(calls_at)

    single_flight = SingleFlight(call, pause=0.1)
    assert [await single_flight.call() for _ in range(3)] == [1, 2, 3]
    assert all(later - earlier >= 0.05 for earlier, later in itertools.pairwise(calls_at))


async def test_deployments_that_wait_in_the_queue_share_its_reads_and_report_how_many_are_ahead(
    simulator: Simulator, new_client: Callable[..., Dokploy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(retry, "LANDING_SECONDS", 0.02)
    dokploy = new_client()
    simulator.close_gate("pull")
    harnesses = [new_harness(simulator) for _ in range(8)]
    tasks = [asyncio.ensure_future(harness.deploy(dokploy)) for harness in harnesses]

    def queue_messages() -> list[str]:
        return sorted(
            next((text for text in reversed(harness.messages()) if "ahead" in text), "") for harness in harnesses
        )

    waiting = [f"Waiting in Dokploy's queue, {number} ahead" for number in range(1, 8)]
    await eventually(lambda: queue_messages() == ["", *waiting], 15)
    before = count_calls(simulator)
    await eventually(lambda: (count_calls(simulator) - before)["deployment.queueList"] >= 3)
    since = count_calls(simulator) - before
    assert since["deployment.queueList"] <= 4, "each deployment reads the queue by itself"
    assert since["deployment.all"] <= 200, "deployments that wait read their own row"
    simulator.open_gate("pull")
    await asyncio.gather(*tasks)


def test_procedures_that_harm_others_or_lose_rows_are_not_used() -> None:
    sources = [path for path in Path(ROOT / "deployments").rglob("*.py") if "simulator" not in path.parts]
    assert len(sources) > 30
    for path in sources:
        assert not re.search(r"killBuild|application\.search|\.search\b.*application", path.read_text()), path
