"""The runner during a drain and during heartbeats: which deployments it keeps and which it releases."""

import asyncio
import contextvars
import itertools
import threading
from typing import Any

import pytest
from asgiref.sync import sync_to_async

from deployments.engine.dokploy import Dokploy
from deployments.engine.spec import Progress
from deployments.models import Deployment, LeaseLost
from deployments.worker.claimed_deployment import SELF_STOP_SECONDS, ClaimedDeployment
from deployments.worker.runner import Runner

from ..users import People


@pytest.mark.django_db(transaction=True)
async def test_a_deployment_claimed_during_a_drain_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    people = await sync_to_async(People)()
    deployment = await sync_to_async(people.deploy)(people.owner, "shop")
    claiming, proceed, claim = threading.Event(), threading.Event(), Deployment.claim

    def slow_claim(*args: Any, **kwargs: Any) -> Any:
        claimed = claim(*args, **kwargs)
        if claimed is not None:
            claiming.set()
            proceed.wait(5)
        return claimed

    monkeypatch.setattr(Deployment, "claim", slow_claim)
    runner = Runner(sweep=0)
    runner.start()
    runner.notify()
    assert await asyncio.to_thread(claiming.wait, 5)
    draining = asyncio.ensure_future(runner.drain())
    await asyncio.sleep(0)
    proceed.set()
    await asyncio.wait_for(draining, 10)
    await sync_to_async(deployment.refresh_from_db)()
    assert (deployment.lease_until, deployment.lease_owner, deployment.status) == (None, "", "in_progress")
    again = await sync_to_async(claim)("another", excluding=[])
    assert again is not None
    assert again.pk == deployment.pk
    assert again.crashes == 0


@pytest.mark.django_db(transaction=True)
async def test_a_deployment_that_begins_during_a_heartbeat_keeps_running(monkeypatch: pytest.MonkeyPatch) -> None:
    people = await sync_to_async(People)()
    first = await sync_to_async(people.deploy)(people.owner, "first")
    second = await sync_to_async(people.deploy)(people.owner, "second")
    loop, context, heartbeat = asyncio.get_running_loop(), contextvars.copy_context(), Deployment.heartbeat
    begun, renewed = asyncio.Queue[str](), asyncio.Event()

    def begin_the_second_during_the_heartbeat(worker: str, ids: list[str]) -> set[str]:
        if ids == [first.pk]:
            claimed = Deployment.claim(worker, excluding=ids)
            loop.call_soon_threadsafe(runner._begin, claimed, context=context)
        else:
            loop.call_soon_threadsafe(renewed.set)
        return heartbeat(worker, ids)

    async def work(claimed: ClaimedDeployment, dokploy: Dokploy) -> None:
        begun.put_nowait(claimed.deployment.pk)
        await asyncio.Event().wait()

    monkeypatch.setattr("deployments.worker.runner.HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(Deployment, "heartbeat", begin_the_second_during_the_heartbeat)
    monkeypatch.setattr("deployments.worker.runner.execute", work)
    runner = Runner(sweep=0, limit=1)
    runner.start()
    assert [await asyncio.wait_for(begun.get(), 5) for _ in range(2)] == [first.pk, second.pk]
    await asyncio.wait_for(renewed.wait(), 5)
    assert not any(claimed.work.cancelling() for claimed in runner._claimed.values())
    assert begun.empty()
    await runner.drain()


@pytest.mark.django_db(transaction=True)
async def test_a_deployment_that_ends_during_a_heartbeat_is_released_undisturbed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    people = await sync_to_async(People)()
    deployments = [await sync_to_async(people.deploy)(people.owner, name) for name in ("ends", "goes-on")]
    end, releasing, second_heartbeat, released = asyncio.Event(), threading.Event(), asyncio.Event(), asyncio.Event()
    loop, count = asyncio.get_running_loop(), itertools.count()

    def end_one_during_the_heartbeat(worker: str, ids: list[str]) -> set[str]:
        loop.call_soon_threadsafe(second_heartbeat.set if next(count) else end.set)
        assert releasing.wait(5)
        return {deployments[1].pk}

    async def work(claimed: ClaimedDeployment, dokploy: Dokploy) -> None:
        await (end if claimed.deployment.pk == deployments[0].pk else asyncio.Event()).wait()

    async def release(self: Runner, claimed: ClaimedDeployment) -> None:
        releasing.set()
        await second_heartbeat.wait()  # by then the first heartbeat has ended without cancelling this task
        released.set()

    monkeypatch.setattr("deployments.worker.runner.HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(Deployment, "heartbeat", end_one_during_the_heartbeat)
    monkeypatch.setattr("deployments.worker.runner.execute", work)
    monkeypatch.setattr(Runner, "_release", release)
    runner = Runner(sweep=0, limit=2)
    runner.start()
    await asyncio.wait_for(released.wait(), 5)
    await runner.drain()


@pytest.mark.django_db(transaction=True)
async def test_a_worker_that_could_not_renew_its_lease_changes_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    people = await sync_to_async(People)()
    deployment = await sync_to_async(people.deploy)(people.owner, "shop")
    claimed = ClaimedDeployment(deployment)
    claimed.before_change("project.create")
    await claimed.report(Progress("note", "initializing", "still in time"))
    claimed.lease_renewed_at -= SELF_STOP_SECONDS + 1
    with pytest.raises(LeaseLost):
        claimed.before_change("project.create")
    with pytest.raises(LeaseLost):
        await claimed.report(Progress("note", "initializing", "too late"))
    messages = await sync_to_async(lambda: list(deployment.events.values_list("message", flat=True)))()
    assert messages[-1] == "still in time"
