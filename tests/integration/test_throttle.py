"""How often Dokploy is asked: within a budget for each key, and one question for all who wait for its answer."""

import asyncio
import itertools
import re
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from deployments.engine import deploy
from deployments.engine.dokploy import Dokploy, Exchange
from deployments.engine.dokploy.throttle import RateLimiter, SingleFlight
from deployments.engine.errors import Unavailable
from deployments.engine.resources import base

from ..processes import KEY, ROOT, Simulator
from .engine.harness import count_calls, eventually, new_harness

RATE = 50


@pytest_asyncio.fixture
async def client(simulator: Simulator) -> AsyncIterator[Callable[..., Dokploy]]:
    made: list[Dokploy] = []

    def make(**more: Any) -> Dokploy:
        made.append(Dokploy(f"http://127.0.0.1:{simulator.port}", KEY, **more))
        return made[-1]

    yield make
    for one in made:
        await one.aclose()


async def test_two_clients_of_one_key_stay_within_its_budget_together(
    simulator: Simulator, client: Callable[..., Dokploy]
) -> None:
    first, second = (client(calls_per_second=RATE) for _ in range(2))
    sent: list[float] = []
    began = time.time()
    views = [
        one.for_deployment(lambda procedure: None, lambda exchange: sent.append(exchange.at)) for one in (first, second)
    ]
    await asyncio.gather(*(views[number % 2].dokploy_deployments("a") for number in range(RATE + 20)))
    sent.sort()
    for number, at in enumerate(sent[RATE:], 1):
        assert at - began >= number / RATE - 0.01


async def test_a_budget_lets_a_burst_through_at_once_and_then_goes_evenly() -> None:
    budget, began = RateLimiter(RATE, 5), time.monotonic()
    at = []
    for _ in range(10):
        await budget.acquire()
        at.append(time.monotonic() - began)
    assert all(seen >= (number - 4) / RATE - 0.001 for number, seen in enumerate(at))


async def test_without_a_budget_nobody_waits(simulator: Simulator, client: Callable[..., Dokploy]) -> None:
    unlimited = client()
    assert unlimited._transport._rate_limiter._interval == 0
    await asyncio.gather(*(unlimited.dokploy_deployments("a") for _ in range(30)))


async def test_many_who_ask_at_once_ask_once_and_each_run_has_it_in_its_record(
    simulator: Simulator, client: Callable[..., Dokploy]
) -> None:
    dokploy = client()
    before = count_calls(simulator)
    records: list[list[Exchange]] = [[] for _ in range(20)]
    views = [dokploy.for_deployment(lambda procedure: None, record.append) for record in records]
    answers = await asyncio.gather(*(view.projects() for view in views))
    assert answers == [[]] * 20
    assert (count_calls(simulator) - before)["project.all"] == 1
    assert [record[0].procedure for record in records] == ["project.all"] * 20


async def test_who_asks_while_a_question_is_under_way_gets_a_later_answer(
    simulator: Simulator, client: Callable[..., Dokploy]
) -> None:
    dokploy = client()
    simulator.close_gate("project.all:answer")  # carried out, and the answer held: it is old from now on
    early = asyncio.ensure_future(dokploy.projects())
    assert await asyncio.to_thread(simulator.wait_at, "project.all:answer") == 1
    simulator.project("made-meanwhile")
    late = [asyncio.ensure_future(dokploy.projects()) for _ in range(3)]
    await asyncio.sleep(0)
    simulator.open_gate("project.all:answer")
    assert await early == []
    for answer in await asyncio.gather(*late):
        assert [project.name for project in answer] == ["made-meanwhile"]


async def test_one_who_gives_up_takes_the_answer_from_nobody_and_an_error_is_everybodys(
    simulator: Simulator, client: Callable[..., Dokploy]
) -> None:
    dokploy = client()
    simulator.close_gate("project.all")
    gone, stays = (asyncio.ensure_future(dokploy.projects()) for _ in range(2))
    assert await asyncio.to_thread(simulator.wait_at, "project.all") == 1
    gone.cancel()
    simulator.open_gate("project.all")
    assert await stays == []
    simulator.fault("project.all", "error500")
    answers = await asyncio.gather(*(dokploy.projects() for _ in range(3)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [Unavailable] * 3
    assert len({id(answer) for answer in answers}) == 3, "each has an error of its own"
    assert await dokploy.projects() == []


async def test_rounds_lie_a_pause_apart() -> None:
    asked: list[float] = []

    async def ask() -> int:
        asked.append(time.monotonic())
        return len(asked)

    single_flight = SingleFlight(ask, pause=0.1)
    assert [await single_flight.call() for _ in range(3)] == [1, 2, 3]
    assert all(later - earlier >= 0.05 for earlier, later in itertools.pairwise(asked))


async def test_runs_that_wait_in_the_queue_share_one_look_and_are_told_how_many_are_ahead(
    simulator: Simulator, client: Callable[..., Dokploy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(base, "RECHECK_SECONDS", 0.01)
    dokploy = client()
    simulator.close_gate("pull")
    runs = [new_harness(simulator) for _ in range(8)]
    tasks = [asyncio.ensure_future(run.deploy(dokploy)) for run in runs]

    def ahead() -> list[str]:
        said = [next((text for text in reversed(run.messages()) if "ahead" in text), "") for run in runs]
        return sorted(said)

    waiting = [f"Waiting in Dokploy's queue, {number} ahead" for number in range(1, 8)]
    await eventually(lambda: ahead() == ["", *waiting], 15)
    before = count_calls(simulator)
    await eventually(lambda: (count_calls(simulator) - before)["deployment.queueList"] >= 3)
    since = count_calls(simulator) - before
    assert since["deployment.queueList"] <= 4, "not one for each run"
    assert since["deployment.all"] <= 200, "only the one that runs asks for its row"
    simulator.open_gate("pull")
    await asyncio.gather(*tasks)


def test_what_harms_others_or_loses_rows_is_called_nowhere() -> None:
    ours = [path for path in Path(ROOT / "deployments").rglob("*.py") if "simulator" not in path.parts]
    assert len(ours) > 30
    for path in ours:
        assert not re.search(r"killBuild|application\.search|\.search\b.*application", path.read_text()), path
