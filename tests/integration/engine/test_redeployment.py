"""The health check of a redeployment: only the new version counts."""

from dataclasses import replace

import pytest

from deployments.engine.dokploy import Dokploy
from deployments.engine.spec import Progress

from ...processes import IMAGE, Simulator
from .harness import (
    EngineHarness,
    StackObjects,
    new_harness,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_redeployment_succeeds_only_when_the_new_container_answers(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    harness = new_harness(simulator)
    await harness.deploy(dokploy)
    newer = EngineHarness(replace(harness.spec, deployment="dep_newer", image=f"{IMAGE}.2"))
    simulator.close_gate("container")

    def open_gate(progress: Progress) -> None:
        if progress.message == "Attempt 1: the stack answers 200, from the previous version":
            simulator.open_gate("container")

    newer.on_report = open_gate
    await newer.deploy(dokploy)
    assert "Attempt 1: the stack answers 200, from the previous version" in newer.messages()
    assert f"{IMAGE}.2" in simulator.visit(harness.spec.host).text
    StackObjects(simulator, newer.spec).assert_one_of_each()


async def test_a_new_version_that_does_not_start_fails_although_the_former_one_answers(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    harness = new_harness(simulator)
    await harness.deploy(dokploy)
    newer = EngineHarness(replace(harness.spec, deployment="dep_newer", image=f"{IMAGE}.2", health_timeout=0.1))
    simulator.close_gate("container")
    failure = await newer.deploy_and_fail(dokploy)
    assert (failure.code, failure.phase, failure.retryable) == ("NOT_REPLACED", "verifying_health", True)
    simulator.open_gate("container")
    assert await newer.restore(dokploy, harness.spec) == []
    objects = StackObjects(simulator, harness.spec)
    objects.assert_one_of_each()
    assert objects.services[0]["image"] == IMAGE


@pytest.mark.parametrize("fault", ["error500", "html502"])
async def test_a_redeployment_that_answers_succeeds_although_dokploy_cannot_list_its_containers(
    simulator: Simulator, dokploy: Dokploy, fault: str
) -> None:
    harness = new_harness(simulator)
    await harness.deploy(dokploy)
    newer = EngineHarness(replace(harness.spec, deployment="dep_newer", image=f"{IMAGE}.2", health_timeout=0.3))

    def spoil(progress: Progress) -> None:
        if progress.phase == "verifying_health" and progress.data.get("step") == "begins":
            simulator.fault("docker.getContainersByAppNameMatch", fault, times=None)

    newer.on_report = spoil
    await newer.deploy(dokploy)
    assert "Attempt 1: the stack answers 200, perhaps from the previous version" in newer.messages()
    StackObjects(simulator, newer.spec).assert_one_of_each()


async def test_a_redeployment_waits_for_the_list_of_containers_that_it_replaces(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    harness = new_harness(simulator)
    await harness.deploy(dokploy)
    newer = EngineHarness(replace(harness.spec, deployment="dep_newer", image=f"{IMAGE}.2"))
    simulator.fault("docker.getContainersByAppNameMatch", "error500", times=2)
    simulator.close_gate("container")

    def open_gate(progress: Progress) -> None:
        if progress.message == "Attempt 1: the stack answers 200, from the previous version":
            simulator.open_gate("container")

    newer.on_report = open_gate
    await newer.deploy(dokploy)
    assert "Attempt 1: the stack answers 200, from the previous version" in newer.messages()
    StackObjects(simulator, newer.spec).assert_one_of_each()


async def test_an_empty_list_of_containers_during_an_engine_outage_does_not_count_as_replaced(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    harness = new_harness(simulator)
    await harness.deploy(dokploy)
    newer = EngineHarness(replace(harness.spec, deployment="dep_newer", image=f"{IMAGE}.2"))
    simulator.close_gate("container")

    def turn(progress: Progress) -> None:
        if progress.phase == "verifying_health" and progress.data.get("step") == "begins":
            simulator.turn(engine="down")
        elif progress.message == "Attempt 1: the stack answers 200, perhaps from the previous version":
            simulator.turn(engine="up")
        elif progress.message == "Attempt 2: the stack answers 200, from the previous version":
            simulator.open_gate("container")

    newer.on_report = turn
    await newer.deploy(dokploy)
    assert f"{IMAGE}.2" in simulator.visit(harness.spec.host).text
    StackObjects(simulator, newer.spec).assert_one_of_each()


async def test_a_redeployment_replaces_the_containers_of_the_dokploy_deployment_ahead_of_it(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    harness = new_harness(simulator)
    resources = await harness.deploy(dokploy)
    first = {row["name"] for row in simulator.ask("docker.getContainersByAppNameMatch", appName=resources.app_name)}
    simulator.close_gate("job")
    simulator.close_gate("pull")  # a redeploy by hand does not pull
    simulator.do("application.redeploy", applicationId=resources.application_id, title="by hand")
    newer = EngineHarness(replace(harness.spec, deployment="dep_newer"))

    def open_gates(progress: Progress) -> None:
        if progress.message == "Waiting in Dokploy's queue, 1 ahead":
            simulator.open_gate("job")
        elif progress.resources and progress.resources.replaces and not first & set(progress.resources.replaces):
            simulator.open_gate("pull")

    newer.on_report = open_gates
    resources = await newer.deploy(dokploy)
    assert len(resources.replaces) == 1
    assert not first & set(resources.replaces)
    StackObjects(simulator, newer.spec).assert_one_of_each()
