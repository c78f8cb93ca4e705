"""The runner lets go in order."""

import asyncio
import contextvars
import itertools
import threading
from typing import Any

import pytest
from asgiref.sync import sync_to_async

from deployments.models import Deployment
from deployments.worker.runner import ClaimedDeployment, Runner

from ..users import People


@pytest.mark.django_db(transaction=True)
async def test_a_claim_that_is_under_way_when_the_worker_is_drained_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    people = await sync_to_async(People)()
    run = await sync_to_async(people.run)(people.owner, "shop")
    claiming, go_on, claim = threading.Event(), threading.Event(), Deployment.claim

    def slow(*args: Any, **kwargs: Any) -> Any:
        found = claim(*args, **kwargs)
        if found is not None:
            claiming.set()
            go_on.wait(5)
        return found

    monkeypatch.setattr(Deployment, "claim", slow)
    runner = Runner(sweep=0)
    runner.start()
    runner.notify()
    assert await asyncio.to_thread(claiming.wait, 5)
    draining = asyncio.ensure_future(runner.drain())
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.wait_for(draining, 10)
    await sync_to_async(run.refresh_from_db)()
    assert (run.lease_until, run.lease_owner, run.status) == (None, "", "in_progress")
    again = await sync_to_async(claim)("another", excluding=[])
    assert again is not None
    assert again.pk == run.pk
    assert again.crashes == 0


@pytest.mark.django_db(transaction=True)
async def test_a_run_that_begins_while_leases_are_renewed_is_not_taken_for_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    people = await sync_to_async(People)()
    first = await sync_to_async(people.run)(people.owner, "first")
    second = await sync_to_async(people.run)(people.owner, "second")
    loop, context, beat = asyncio.get_running_loop(), contextvars.copy_context(), Deployment.heartbeat
    begun, renewed = asyncio.Queue[str](), asyncio.Event()

    def beats_while_the_second_begins(worker: str, ids: list[str]) -> set[str]:
        if ids == [first.pk]:
            found = Deployment.claim(worker, excluding=ids)
            loop.call_soon_threadsafe(runner._begin, found, context=context)
        else:
            loop.call_soon_threadsafe(renewed.set)
        return beat(worker, ids)

    async def works(self: Runner, run: ClaimedDeployment) -> None:
        begun.put_nowait(run.deployment.pk)
        await asyncio.Event().wait()

    monkeypatch.setattr("deployments.worker.runner.HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(Deployment, "heartbeat", beats_while_the_second_begins)
    monkeypatch.setattr(Runner, "_deploy", works)
    runner = Runner(sweep=0, limit=1)
    runner.start()
    assert [await asyncio.wait_for(begun.get(), 5) for _ in range(2)] == [first.pk, second.pk]
    await asyncio.wait_for(renewed.wait(), 5)
    assert not any(run.task.cancelling() for run in runner._runs.values())
    assert begun.empty()
    await runner.drain()


@pytest.mark.django_db(transaction=True)
async def test_a_run_that_ends_while_leases_are_renewed_is_let_go_in_peace(monkeypatch: pytest.MonkeyPatch) -> None:
    people = await sync_to_async(People)()
    runs = [await sync_to_async(people.run)(people.owner, name) for name in ("ends", "goes-on")]
    ends, leaves, beaten, let_go = asyncio.Event(), threading.Event(), asyncio.Event(), asyncio.Event()
    loop, beats = asyncio.get_running_loop(), itertools.count()

    def beats_while_it_ends(worker: str, ids: list[str]) -> set[str]:
        loop.call_soon_threadsafe(beaten.set if next(beats) else ends.set)  # a second beat: the first is done with
        assert leaves.wait(5)
        return {runs[1].pk}

    async def works(self: Runner, run: ClaimedDeployment) -> None:
        await (ends if run.deployment.pk == runs[0].pk else asyncio.Event()).wait()

    async def lets_go(self: Runner, run: ClaimedDeployment) -> None:
        leaves.set()
        await beaten.wait()
        let_go.set()

    monkeypatch.setattr("deployments.worker.runner.HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(Deployment, "heartbeat", beats_while_it_ends)
    monkeypatch.setattr(Runner, "_deploy", works)
    monkeypatch.setattr(Runner, "_release", lets_go)
    runner = Runner(sweep=0, limit=2)
    runner.start()
    await asyncio.wait_for(let_go.wait(), 5)
    await runner.drain()
