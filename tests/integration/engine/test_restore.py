"""The restore of the previous version after a redeployment that failed."""

import itertools
from dataclasses import replace

import pytest

from deployments.engine.dokploy import Dokploy
from deployments.engine.errors import Interrupted
from deployments.engine.spec import Progress, StackSpec

from ...processes import IMAGE, Simulator
from .harness import (
    DELETE_CALLS,
    EngineHarness,
    StackObjects,
    count_calls,
    new_harness,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def fail_redeployment(simulator: Simulator, dokploy: Dokploy, spec: StackSpec, number: int) -> EngineHarness:
    """Redeploy the stack with a container that exits, and return the harness of the redeployment."""
    newer = EngineHarness(
        replace(
            spec, deployment=f"dep_{number}", image=f"{IMAGE}.{number}", env=(("GREETING", "new"),), health_timeout=0.1
        )
    )

    def spoil(progress: Progress) -> None:
        if progress.phase == "verifying_health":
            simulator.turn(container_status="Exited (1) 1 second ago")

    newer.on_report = spoil
    assert (await newer.deploy_and_fail(dokploy)).code == "HEALTH_NO_ANSWER"
    assert StackObjects(simulator, spec).services[0]["image"] == f"{IMAGE}.{number}"
    simulator.turn(container_status=None)
    newer.on_report = lambda progress: None
    return newer


async def test_each_failed_redeployment_restores_the_former_version(simulator: Simulator, dokploy: Dokploy) -> None:
    harness = new_harness(simulator)
    await harness.deploy(dokploy)
    for number in (2, 3):
        newer = await fail_redeployment(simulator, dokploy, harness.spec, number)
        before, taken = count_calls(simulator), len(newer.reports)
        assert await newer.restore(dokploy, harness.spec) == []
        assert not set(DELETE_CALLS) & set(count_calls(simulator) - before)
        objects = StackObjects(simulator, harness.spec)
        objects.assert_one_of_each()
        assert len(objects.dokploy_deployments) == 1 + 2 * (number - 1)
        assert {report.phase for report in newer.reports[taken:]} == {"rolling_back"}


async def test_a_restore_removes_duplicates_of_the_failed_redeployment(simulator: Simulator, dokploy: Dokploy) -> None:
    harness = new_harness(simulator)
    resources = await harness.deploy(dokploy)
    simulator.turn(pull_error="manifest unknown")
    newer = EngineHarness(replace(harness.spec, deployment="dep_newer"))
    assert (await newer.deploy_and_fail(dokploy)).code == "IMAGE_NOT_FOUND"
    duplicate = {"host": harness.spec.host, "port": harness.spec.port, "domainType": "application"}
    simulator.do("domain.create", applicationId=resources.application_id, **duplicate)
    simulator.turn(pull_error=None)
    assert await newer.restore(dokploy, harness.spec) == []
    objects = StackObjects(simulator, harness.spec)
    objects.assert_one_of_each()
    assert objects.domains[0]["domainId"] == resources.domain_id


async def test_a_resumed_restore_waits_for_the_container_of_its_own_dokploy_deployment(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    harness = new_harness(simulator)
    await harness.deploy(dokploy)
    newer = EngineHarness(replace(harness.spec, deployment="dep_2", image=f"{IMAGE}.2"))
    await newer.deploy(dokploy)
    simulator.close_gate("container")

    def interrupt(progress: Progress) -> None:
        if progress.message == "Restoring the previous version: checking health":
            newer.refused_report = newer.report_count + 1

    def open_gate(progress: Progress) -> None:
        if progress.message == "Attempt 1: the stack answers 200, from the previous version":
            simulator.open_gate("container")

    newer.on_report = interrupt
    with pytest.raises(Interrupted):
        await newer.restore(dokploy, harness.spec)
    newer.on_report = open_gate
    assert await newer.restore(dokploy, harness.spec) == []
    assert "Attempt 1: the stack answers 200, from the previous version" in newer.messages()
    assert f"{IMAGE}.2" not in simulator.visit(harness.spec.host).text
    StackObjects(simulator, harness.spec).assert_one_of_each()


async def test_a_restore_interrupted_at_any_report_sends_one_dokploy_deployment(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    harness = new_harness(simulator)
    await harness.deploy(dokploy)
    for number in itertools.count(1):
        newer = EngineHarness(replace(harness.spec, deployment=f"dep_{number}", image=f"{IMAGE}.{number}"))
        await newer.deploy(dokploy)
        reporter = newer.reporter()
        newer.refused_report = number
        try:
            await newer.restore(dokploy, harness.spec, reporter)
        except Interrupted:
            assert await newer.restore(dokploy, harness.spec) == []
            objects = StackObjects(simulator, harness.spec)
            objects.assert_one_of_each()
            assert sum(f"/{newer.spec.deployment}.restore/" in row["title"] for row in objects.dokploy_deployments) == 1
        else:
            break
    assert number > 8


async def test_a_redeployment_that_changed_nothing_needs_no_restore(
    simulator: Simulator, dokploy: Dokploy, unreachable: Dokploy
) -> None:
    harness = new_harness(simulator)
    await harness.deploy(dokploy)
    newer = EngineHarness(replace(harness.spec, deployment="dep_2"))
    assert (await newer.deploy_and_fail(unreachable, patience=0.05)).phase == "creating_project"
    before = count_calls(simulator)
    assert await newer.restore(dokploy, harness.spec) == []
    assert not count_calls(simulator) - before


async def test_a_failed_restore_is_reported(simulator: Simulator, dokploy: Dokploy) -> None:
    harness = new_harness(simulator)
    await harness.deploy(dokploy)
    newer = EngineHarness(
        replace(harness.spec, deployment="dep_2", image="registry.test/shop/bad:2", health_timeout=0.2)
    )
    simulator.turn(programs={newer.spec.image: {"listens": False}})
    assert (await newer.deploy_and_fail(dokploy)).code == "NOTHING_LISTENS"
    simulator.turn(pull_error="manifest unknown")
    leftovers = await newer.restore(dokploy, harness.spec)
    assert len(leftovers) == 1
    assert leftovers[0].startswith("the previous version (The registry does not have this image")
