"""The containers of a removed application: none is left running without being reported."""

import asyncio
from dataclasses import replace

import pytest

from deployments.engine import containers, orchestrator
from deployments.engine.dokploy import Dokploy
from deployments.engine.errors import Failure
from deployments.engine.recipe import REMOVAL
from deployments.engine.reporter import Reporter
from deployments.engine.spec import Progress, Resources

from ...processes import Simulator
from .harness import (
    EngineHarness,
    StackObjects,
    count_calls,
    eventually,
    new_harness,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_objects_that_a_user_deletes_at_the_same_time_count_as_removed_but_a_running_container_does_not(
    simulator: Simulator, dokploy: Dokploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "STOP_SECONDS", 0.2)
    harness = new_harness(simulator)
    resources = await harness.deploy(dokploy)
    simulator.close_gate("application.delete")
    undoing = asyncio.ensure_future(harness.undo(dokploy))
    assert await asyncio.to_thread(simulator.wait_at, "application.delete") == 1
    simulator.do("project.remove", projectId=resources.project_id)
    simulator.open_gate("application.delete")
    (leftover,) = await undoing
    assert f"docker service rm {resources.app_name}" in leftover
    objects = StackObjects(simulator, harness.spec)
    assert (objects.projects, objects.applications, objects.domains) == ([], [], [])
    simulator.switches.delete(f"services/{resources.app_name}").raise_for_status()
    assert await harness.undo(dokploy) == []


async def test_no_application_is_deleted_while_the_container_engine_does_not_answer(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    """Dokploy would delete the row and leave the container."""
    harness = new_harness(simulator)
    await harness.deploy(dokploy)
    simulator.turn(engine="down")
    before = count_calls(simulator)
    leftovers = await harness.undo(dokploy, patience=0.05)
    assert leftovers[0] == "the application (Dokploy's container engine does not answer.)"
    assert not {"application.delete", "project.remove"} & set(count_calls(simulator) - before)
    simulator.turn(engine="up")
    assert await harness.undo(dokploy) == []
    StackObjects(simulator, harness.spec).assert_none()


@pytest.mark.parametrize("way", ["undo", "remove"])
async def test_a_container_that_outlives_its_application_is_reported_until_it_is_stopped(
    simulator: Simulator, dokploy: Dokploy, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(containers, "STOP_SECONDS", 0.2)
    harness = new_harness(simulator)
    resources = await harness.deploy(dokploy)

    def engine_returns(progress: Progress) -> None:
        if progress.message == "Waiting for Dokploy: Dokploy's container engine does not answer.":
            simulator.turn(engine="up")

    async def remove() -> str:
        if way == "undo":
            return "; ".join(await remover.undo(dokploy))
        try:
            await remover.remove(dokploy)
        except Failure as failure:
            return failure.message
        return ""

    remover = (
        harness if way == "undo" else EngineHarness(harness.spec, [r for r in harness.reports if r.kind == "receipt"])
    )
    remover.on_report = engine_returns
    simulator.close_gate("application.delete")
    task = asyncio.ensure_future(remove())
    assert await asyncio.to_thread(simulator.wait_at, "application.delete") == 1
    simulator.turn(engine="down")
    simulator.open_gate("application.delete")
    for message in (await task, await remove()):
        assert f"Run “docker service rm {resources.app_name}” on Dokploy's host" in message
    objects = StackObjects(simulator, harness.spec)
    assert (len(objects.services), objects.applications, objects.domains) == (1, [], [])
    assert ("gone", "application") not in [(r.data.get("state"), r.data.get("kind")) for r in remover.reports]
    simulator.switches.delete(f"services/{resources.app_name}").raise_for_status()
    assert await remove() == ""
    StackObjects(simulator, harness.spec).assert_none()


async def test_no_application_is_created_while_the_container_of_a_deleted_one_runs(
    simulator: Simulator, dokploy: Dokploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "STOP_SECONDS", 0.2)
    harness = new_harness(simulator)
    resources = await harness.deploy(dokploy)
    simulator.do("domain.delete", domainId=resources.domain_id)
    simulator.do("project.remove", projectId=resources.project_id)  # Dokploy deletes only rows
    second = EngineHarness(replace(harness.spec, deployment="dep_again"))
    former = Resources(app_name=resources.app_name)
    failure = await second.deploy_and_fail(dokploy, reporter=Reporter(second.report, resources=former))
    assert (failure.code, failure.phase) == ("CONTAINER_LEFT_AT_DOKPLOY", "creating_application")
    assert len(StackObjects(simulator, harness.spec).services) == 1
    simulator.switches.delete(f"services/{resources.app_name}").raise_for_status()
    await second.deploy(dokploy)
    StackObjects(simulator, harness.spec).assert_one_of_each()


async def test_an_exited_container_does_not_count_as_left_behind(
    simulator: Simulator, dokploy: Dokploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "QUIET_SECONDS", 0.05)
    harness = new_harness(simulator)
    await harness.deploy(dokploy)
    simulator.turn(container_status="Exited (0) 3 seconds ago")
    simulator.close_gate("application.delete")
    undoing = asyncio.ensure_future(harness.undo(dokploy))
    assert await asyncio.to_thread(simulator.wait_at, "application.delete") == 1
    simulator.turn(engine="down")
    simulator.open_gate("application.delete")
    await eventually(lambda: "Waiting for Dokploy: Dokploy's container engine does not answer." in harness.messages())
    simulator.turn(engine="up")
    assert await undoing == []
    assert len(StackObjects(simulator, harness.spec).services) == 1, "the exited container still exists"


async def test_an_application_that_was_never_deployed_is_removed_without_the_container_engine(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    harness = new_harness(simulator)
    resources = await harness.deploy(dokploy)
    duplicate = {
        "name": harness.spec.name,
        "appName": harness.spec.name,
        "description": harness.spec.mark,
        "sourceType": "docker",
    }
    simulator.do("application.create", environmentId=resources.environment_id, **duplicate)
    assert await harness.undo(dokploy) == []
    StackObjects(simulator, harness.spec).assert_none()
    undeployed = new_harness(simulator)
    simulator.turn(engine="down")
    simulator.fault("application.saveDockerProvider", "redirect")
    assert (await undeployed.deploy_and_fail(dokploy)).phase == "configuring_application"
    assert await undeployed.undo(dokploy, patience=0.05) == []
    StackObjects(simulator, undeployed.spec).assert_none()


async def test_a_container_is_found_although_dokploy_fails_right_after_the_deletion(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    """The same holds for the removal of an orphan, whose objects no deployment has recorded."""
    harness = new_harness(simulator)
    resources = await harness.deploy(dokploy)
    orphan = EngineHarness(harness.spec)

    async def remove() -> None:
        await orchestrator.run(dokploy, harness.spec, Reporter(orphan.report), phases=REMOVAL)

    simulator.close_gate("application.delete")
    removing = asyncio.ensure_future(remove())
    assert await asyncio.to_thread(simulator.wait_at, "application.delete") == 1
    simulator.turn(engine="down")  # Dokploy answers 200 and leaves the container
    simulator.fault("docker.getContainersByAppNameMatch", "error500", times=2)
    simulator.open_gate("application.delete")
    await eventually(lambda: simulator.state()["faults"] == [])
    assert ("gone", "application") not in [(r.data.get("state"), r.data.get("kind")) for r in orphan.reports]
    simulator.turn(engine="up")
    await eventually(lambda: "Waiting for the container to stop" in orphan.messages())
    simulator.switches.delete(f"services/{resources.app_name}").raise_for_status()
    await removing
    StackObjects(simulator, harness.spec).assert_none()


async def test_containers_of_an_application_with_the_same_name_prefix_are_ignored(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    harness = new_harness(simulator)
    resources = await harness.deploy(dokploy)
    foreign = simulator.application(simulator.project(f"alike-{harness.spec.name}")[1], appName=resources.app_name)
    simulator.deploy(foreign)
    assert foreign["appName"].startswith(f"{resources.app_name}-")
    await eventually(lambda: len(simulator.ask("docker.getContainersByAppNameMatch", appName=resources.app_name)) == 2)
    newer = EngineHarness(replace(harness.spec, deployment="dep_newer", health_timeout=1.0))
    await newer.deploy(dokploy)
    assert len(await dokploy.containers(resources.app_name or "")) == 1
