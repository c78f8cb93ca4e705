"""The undo of a deployment that failed."""

import asyncio
import itertools
import time

import pytest

from deployments.engine.dokploy import Dokploy
from deployments.engine.errors import Failure, Interrupted
from deployments.engine.resources import application
from deployments.engine.spec import Progress

from ...processes import Simulator
from .harness import (
    DELETE_CALLS,
    StackObjects,
    count_calls,
    eventually,
    new_harness,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_undo_removes_every_object(simulator: Simulator, dokploy: Dokploy) -> None:
    harness = new_harness(simulator)
    await harness.deploy(dokploy)
    StackObjects(simulator, harness.spec).assert_one_of_each()
    assert await harness.undo(dokploy) == []
    StackObjects(simulator, harness.spec).assert_none()
    assert simulator.visit(harness.spec.host).status_code == 404
    gone = [(r.data["state"], r.data["kind"], bool(r.data.get("id"))) for r in harness.reports if r.kind == "receipt"][
        8:
    ]
    assert gone == [
        *(("removing", "domain", True), ("gone", "domain", True), ("gone", "domain", False)),
        *(("removing", "application", True), ("gone", "application", True), ("gone", "application", False)),
        ("gone", "deploy", False),
        *(("removing", "project", True), ("gone", "project", True), ("gone", "project", False)),
    ]


async def test_undo_without_objects_only_reads(simulator: Simulator, dokploy: Dokploy) -> None:
    harness = new_harness(simulator)
    await dokploy.require_admin()  # asked once, by whichever deployment comes first
    before = count_calls(simulator)
    assert await harness.undo(dokploy) == []
    assert set(count_calls(simulator) - before) == {"project.all"}


async def test_an_undo_interrupted_at_any_report_can_be_repeated(simulator: Simulator, dokploy: Dokploy) -> None:
    for number in itertools.count(1):
        harness = new_harness(simulator)
        await harness.deploy(dokploy)
        reporter = harness.reporter()
        harness.refused_report = number
        try:
            await harness.undo(dokploy, reporter)
        except Interrupted:
            assert await harness.undo(dokploy) == []
            StackObjects(simulator, harness.spec).assert_none()
        else:
            break
    assert number > 10


@pytest.mark.parametrize("phase", ["creating_project", "creating_application", "creating_domain", "deploying"])
async def test_undo_after_a_failure_in_any_phase_removes_every_object(
    simulator: Simulator, dokploy: Dokploy, phase: str
) -> None:
    harness = new_harness(simulator)

    def stop(progress: Progress) -> None:
        if progress.phase == phase and progress.data.get("step") == "ends":
            raise Failure("TEST", "Here it ends.")

    harness.on_report = stop
    await harness.deploy_and_fail(dokploy)
    assert await harness.undo(dokploy) == []
    StackObjects(simulator, harness.spec).assert_none()


@pytest.mark.parametrize("fault", ["error500_done", "hang_done", "empty200", "reset_before", "too_many"])
async def test_a_wrong_answer_to_each_delete_call_leaves_nothing(
    simulator: Simulator, impatient: Dokploy, fault: str
) -> None:
    harness = new_harness(simulator)
    await harness.deploy(impatient)
    for procedure in DELETE_CALLS:
        simulator.fault(procedure, fault)
    assert await harness.undo(impatient) == []
    assert simulator.state()["faults"] == []
    StackObjects(simulator, harness.spec).assert_none()


async def test_undo_names_the_objects_that_it_cannot_remove(simulator: Simulator, dokploy: Dokploy) -> None:
    harness = new_harness(simulator)
    await harness.deploy(dokploy)
    simulator.fault("application.delete", "error500", times=None)
    leftovers = await harness.undo(dokploy)
    assert [line.partition(" (")[0] for line in leftovers] == ["the application", "the project"]
    assert "did not create" not in str(leftovers), "the application in the project is the stack's own"
    objects = StackObjects(simulator, harness.spec)
    assert (len(objects.projects), len(objects.applications), objects.domains, objects.routes) == (1, 1, [], [])
    states = [(r.data["state"], r.data["kind"]) for r in harness.reports if r.kind == "receipt"]
    assert ("left", "application") in states
    assert ("left", "project") in states
    simulator.switches.delete("faults")
    assert await harness.undo(dokploy) == []
    StackObjects(simulator, harness.spec).assert_none()


async def test_undo_during_an_outage_names_everything_and_ends_in_time(
    simulator: Simulator, unreachable: Dokploy
) -> None:
    harness = new_harness(simulator)
    began = time.monotonic()
    leftovers = await harness.undo(unreachable, patience=0.1)
    assert time.monotonic() - began < 15
    assert [line.partition(" (")[0] for line in leftovers] == ["the domain", "the application", "the project"]


# -- while Dokploy deploys ---------------------------------------------------------------------------------------------


async def test_undo_waits_for_the_running_dokploy_deployment_and_drops_the_waiting_one(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    """Deleting the application during a Dokploy deployment would leave its container."""
    harness = new_harness(simulator)
    simulator.close_gate("job")
    task = asyncio.ensure_future(harness.deploy(dokploy))
    await eventually(lambda: "Pulling the image and starting the container" in harness.messages())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    application = StackObjects(simulator, harness.spec).applications[0]["applicationId"]
    simulator.do("application.deploy", applicationId=application, title=harness.spec.deploy_title(9))
    undoing = asyncio.ensure_future(harness.undo(dokploy))
    await eventually(lambda: "Waiting for Dokploy to finish the running deployment" in harness.messages())
    objects = StackObjects(simulator, harness.spec)
    assert (len(objects.applications), len(objects.queue)) == (1, 1), "only the running one is left"
    simulator.open_gate("job")
    assert await undoing == []
    StackObjects(simulator, harness.spec).assert_none()


async def test_undo_does_not_delete_the_application_while_a_dokploy_deployment_waits(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    """Dokploy answered 200 to the call that drops it, but did not drop it."""
    harness = new_harness(simulator)
    busy = simulator.application(simulator.project("busy")[1])
    simulator.close_gate("job")
    simulator.do("application.deploy", applicationId=busy["applicationId"], title="busy")
    task = asyncio.ensure_future(harness.deploy(dokploy))
    await eventually(lambda: "Waiting in Dokploy's queue, 1 ahead" in harness.messages())
    task.cancel()
    await asyncio.wait({task})
    simulator.fault("application.cleanQueues", "empty200")
    undoing = asyncio.ensure_future(harness.undo(dokploy))
    await eventually(lambda: "Waiting for Dokploy to finish the running deployment" in harness.messages())
    assert len(StackObjects(simulator, harness.spec).applications) == 1
    simulator.open_gate("job")
    assert await undoing == []
    StackObjects(simulator, harness.spec).assert_none()


async def test_undo_keeps_an_application_whose_dokploy_deployment_never_ends(
    simulator: Simulator, dokploy: Dokploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application, "SETTLE_SECONDS", 0.1)
    harness = new_harness(simulator)
    simulator.close_gate("job")
    task = asyncio.ensure_future(harness.deploy(dokploy))
    await eventually(lambda: "Pulling the image and starting the container" in harness.messages())
    task.cancel()
    await asyncio.wait({task})
    leftovers = await harness.undo(dokploy)
    assert leftovers[0].startswith("the application (Dokploy still reports a running deployment")
    assert len(StackObjects(simulator, harness.spec).applications) == 1
    simulator.open_gate("job")
    await eventually(lambda: not StackObjects(simulator, harness.spec).queue)
    assert await harness.undo(dokploy) == []
    StackObjects(simulator, harness.spec).assert_none()
