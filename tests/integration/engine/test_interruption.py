"""Interrupted workers: another worker continues, and no object is created twice."""

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest

from deployments.engine import orchestrator, retry
from deployments.engine.dokploy import Dokploy
from deployments.engine.errors import Interrupted
from deployments.engine.spec import Progress

from ...processes import Simulator
from .harness import (
    CHANGE_CALLS,
    CREATE_CALLS,
    SAVE_CALLS,
    EngineHarness,
    StackObjects,
    cancel_until_done,
    count_calls,
    eventually,
    new_harness,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_another_worker_completes_a_deployment_interrupted_at_any_report(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    for number in itertools.count(1):
        harness = new_harness(simulator)
        reporter = harness.reporter()
        harness.refused_report = number
        try:
            await harness.deploy(dokploy, reporter)
        except Interrupted:
            assert len(harness.reports) == number - 1, "nothing is reported after an interruption"
        else:
            break
        await harness.deploy(dokploy)
        objects = StackObjects(simulator, harness.spec)
        objects.assert_one_of_each()
        assert len(objects.dokploy_deployments) == 1, f"interrupted at report {number}"
        assert harness.reports[-1].phase == "verifying_health"
        assert harness.reports[-1].data == {"step": "ends"}
        simulator.clear(simulator.state()["settings"])
    assert number > 25


async def test_another_worker_completes_a_deployment_interrupted_before_any_change(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    for number in itertools.count(1):
        harness = new_harness(simulator)
        guarded_calls = itertools.count(1)

        def guard(procedure: str, guarded_calls: Iterator[int] = guarded_calls, number: int = number) -> None:
            if next(guarded_calls) == number:
                raise Interrupted

        before = count_calls(simulator)
        try:
            await harness.deploy(dokploy.for_deployment(guard, lambda exchange: None))
        except Interrupted:
            sent = count_calls(simulator) - before
            assert sum(sent[name] for name in CHANGE_CALLS) == number - 1, "the refused call was not sent"
        else:
            break
        await harness.deploy(dokploy)
        objects = StackObjects(simulator, harness.spec)
        objects.assert_one_of_each()
        assert len(objects.dokploy_deployments) == 1
    assert number == len(CREATE_CALLS) + len(SAVE_CALLS) + 1


async def test_another_worker_completes_a_deployment_whose_worker_died_during_a_call(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    for procedure in (*CREATE_CALLS, *SAVE_CALLS):
        harness = new_harness(simulator)
        simulator.close_gate(f"{procedure}:answer")  # it took effect, but is not answered
        task = asyncio.ensure_future(harness.deploy(dokploy))
        assert await asyncio.to_thread(simulator.wait_at, f"{procedure}:answer") == 1
        await cancel_until_done(task)
        simulator.open_gate(f"{procedure}:answer")
        await harness.deploy(dokploy)
        objects = StackObjects(simulator, harness.spec)
        objects.assert_one_of_each()
        assert len(objects.dokploy_deployments) == 1


@pytest.mark.parametrize(
    ("procedure", "read", "reads"),
    [
        ("project.create", "project.all", 1),
        ("application.create", "environment.byProjectId", 1),
        ("domain.create", "domain.byApplicationId", 1),
        ("application.deploy", "deployment.all", 2),
    ],
)
async def test_the_next_worker_waits_for_a_pending_request_of_a_dead_one_and_does_not_repeat_it(
    simulator: Simulator, dokploy: Dokploy, monkeypatch: pytest.MonkeyPatch, procedure: str, read: str, reads: int
) -> None:
    harness = new_harness(simulator)
    simulator.close_gate(procedure)  # sent, but without effect yet
    task = asyncio.ensure_future(harness.deploy(dokploy))
    assert await asyncio.to_thread(simulator.wait_at, procedure) == 1
    await cancel_until_done(task)
    before = count_calls(simulator)
    monkeypatch.setattr(retry, "LANDING_SECONDS", 30.0)
    task = asyncio.ensure_future(harness.deploy(dokploy))
    await eventually(lambda: (count_calls(simulator) - before)[read] >= reads)  # nothing was found
    simulator.open_gate(procedure)
    await task
    assert (count_calls(simulator) - before)[procedure] == 0
    objects = StackObjects(simulator, harness.spec)
    objects.assert_one_of_each()
    assert len(objects.dokploy_deployments) == 1


@pytest.mark.parametrize("next_kind", ["deploy", "remove"])
async def test_an_application_created_after_the_undo_is_used_or_removed_by_the_next_deployment(
    simulator: Simulator, impatient: Dokploy, next_kind: str
) -> None:
    """The project could not be removed, so the stack still exists. Then the create call takes effect."""
    harness = new_harness(simulator)
    simulator.close_gate("application.create")
    simulator.fault("project.remove", "error500", times=None)
    assert (await harness.deploy_and_fail(impatient)).code == "DOKPLOY_UNCLEAR"
    assert [line.partition(" (")[0] for line in await harness.undo(impatient)] == ["the project"]
    assert StackObjects(simulator, harness.spec).applications == []
    simulator.open_gate("application.create")
    sent = 3  # one for each attempt of the phase
    await eventually(lambda: len(StackObjects(simulator, harness.spec).applications) == sent)
    simulator.switches.delete("faults")
    next_harness = EngineHarness(replace(harness.spec, deployment="dep_next"))  # the application is recorded as gone
    if next_kind == "deploy":
        await next_harness.deploy(impatient)
        StackObjects(simulator, harness.spec).assert_one_of_each()
    else:
        await next_harness.remove(impatient)
        StackObjects(simulator, harness.spec).assert_none()


async def test_the_undo_of_a_cancelled_deployment_waits_for_the_call_in_progress(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    harness = new_harness(simulator)
    simulator.close_gate("project.create")  # sent, but without effect yet
    task = asyncio.ensure_future(harness.deploy(dokploy))
    assert await asyncio.to_thread(simulator.wait_at, "project.create") == 1
    task.cancel()

    async def undo() -> list[str]:
        await asyncio.wait({task})
        return await harness.undo(dokploy)

    undoing = asyncio.ensure_future(undo())
    await asyncio.wait({undoing}, timeout=1)  # an undo that does not wait for the call would end
    simulator.open_gate("project.create")
    assert await undoing == []
    objects = StackObjects(simulator, harness.spec)
    assert (objects.projects, objects.applications) == ([], [])


async def test_a_cancelled_deployment_sends_no_more_calls(simulator: Simulator, dokploy: Dokploy) -> None:
    harness = new_harness(simulator)
    simulator.close_gate("application.saveDockerProvider:answer")
    task = asyncio.ensure_future(harness.deploy(dokploy))
    assert await asyncio.to_thread(simulator.wait_at, "application.saveDockerProvider:answer") == 1
    before = count_calls(simulator)
    task.cancel()
    simulator.open_gate("application.saveDockerProvider:answer")
    await asyncio.wait({task})
    for _ in range(3):
        await dokploy.version()
    assert set(count_calls(simulator) - before) == {"settings.getDokployVersion"}


async def test_an_interrupted_deployment_resumes_with_its_current_phase(simulator: Simulator, dokploy: Dokploy) -> None:
    harness = new_harness(simulator)
    reporter = harness.reporter()

    def stop(progress: Progress) -> None:
        if progress.phase == "creating_domain":
            raise Interrupted

    harness.on_report = stop
    with pytest.raises(Interrupted):
        await harness.deploy(dokploy, reporter)
    harness.on_report = lambda progress: None
    taken = len(harness.reports)
    await harness.deploy(dokploy)
    assert harness.reports[taken].phase == "creating_domain"


async def test_a_deployment_with_an_unknown_first_phase_starts_at_the_beginning(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    harness = new_harness(simulator)
    await harness.deploy(dokploy)
    second = EngineHarness(harness.spec)
    await orchestrator.run(dokploy, harness.spec, second.reporter(), first_phase="of_a_newer_version")
    assert second.reports[0].phase == "creating_project"
    StackObjects(simulator, harness.spec).assert_one_of_each()


async def test_a_refused_heartbeat_stops_the_deployment_after_the_current_call(
    simulator: Simulator, dokploy: Dokploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "HEARTBEAT_SECONDS", 0.05)
    harness = new_harness(simulator)
    simulator.close_gate("application.create")

    def stop(progress: Progress) -> None:
        if progress.data.get("alive"):
            simulator.open_gate("application.create")
            raise Interrupted

    harness.on_report = stop
    with pytest.raises(Interrupted):
        await harness.deploy(dokploy)
    taken = len(harness.reports)
    harness.on_report = lambda progress: None
    await dokploy.version()
    assert len(harness.reports) == taken
    await harness.deploy(dokploy)
    StackObjects(simulator, harness.spec).assert_one_of_each()
