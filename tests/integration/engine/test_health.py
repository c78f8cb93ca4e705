"""The health check of a stack that is deployed for the first time."""

import pytest

from deployments.engine.dokploy import Dokploy
from deployments.engine.spec import Progress

from ...processes import Simulator
from .harness import (
    EngineHarness,
    StackObjects,
    new_harness,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


def attempts(harness: EngineHarness) -> list[int]:
    return [report.data["attempt"] for report in harness.reports if report.kind == "rung"]


async def test_the_health_check_waits_for_a_stack_that_starts_late(simulator: Simulator, dokploy: Dokploy) -> None:
    harness = new_harness(simulator)
    simulator.close_gate("container")

    def start(progress: Progress) -> None:
        if progress.kind == "rung" and progress.data["attempt"] == 4:
            simulator.open_gate("container")

    harness.on_report = start
    await harness.deploy(dokploy)
    assert attempts(harness) == list(range(1, len(attempts(harness)) + 1))
    assert len(attempts(harness)) >= 5
    assert "Attempt 2: the router answers 502, the container is starting" in harness.messages()
    assert f"Attempt {attempts(harness)[-1]}: the stack answers 200; making sure it stays up" in harness.messages()


async def test_a_stack_that_never_answers_fails_within_its_limit(simulator: Simulator, dokploy: Dokploy) -> None:
    harness = new_harness(simulator, health_interval=0.15, health_timeout=2.0)
    simulator.turn(container_status="Restarting (1) 2 seconds ago")
    failure = await harness.deploy_and_fail(dokploy)
    assert (failure.code, failure.phase, failure.retryable) == ("HEALTH_NO_ANSWER", "verifying_health", True)
    assert "Restarting (1) 2 seconds ago" in failure.evidence
    assert attempts(harness) == list(range(1, len(attempts(harness)) + 1))
    assert 3 <= len(attempts(harness)) <= 17
    assert f"The last of {len(attempts(harness))} attempts: the router answers 502" in failure.message
    check_times = [
        at for at, report in zip(harness.times, harness.reports, strict=True) if report.phase == "verifying_health"
    ]
    assert check_times[-1] - check_times[0] < 10


async def test_the_status_done_of_dokploy_does_not_count_as_an_answer(simulator: Simulator, dokploy: Dokploy) -> None:
    harness = new_harness(simulator, health_timeout=0.1)
    simulator.turn(container_status="Exited (1) 1 second ago")
    await harness.deploy_and_fail(dokploy)
    assert StackObjects(simulator, harness.spec).dokploy_deployments[0]["status"] == "done"
    assert "ends" not in [r.data.get("step") for r in harness.reports if r.phase == "verifying_health"]


@pytest.mark.parametrize("fault", ["error500", "unauthorized"])
async def test_the_health_check_does_not_depend_on_dokploy(simulator: Simulator, dokploy: Dokploy, fault: str) -> None:
    harness = new_harness(simulator, health_timeout=0.2)
    simulator.turn(container_status="Exited (1) 1 second ago")

    def spoil(progress: Progress) -> None:
        if progress.phase == "verifying_health" and progress.data.get("step") == "begins":
            simulator.fault("*", fault, times=None)

    harness.on_report = spoil
    failure = await harness.deploy_and_fail(dokploy)
    assert failure.code == "HEALTH_NO_ANSWER"
    assert attempts(harness) == list(range(1, len(attempts(harness)) + 1))


async def test_a_stack_that_answers_succeeds_even_if_the_search_for_duplicates_fails(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    harness = new_harness(simulator)

    def spoil(progress: Progress) -> None:
        if progress.phase == "verifying_health" and progress.data.get("step") == "ends":
            simulator.fault("*", "error500", times=None)

    harness.on_report = spoil
    resources = await harness.deploy(dokploy, patience=0.1)
    simulator.switches.delete("faults")
    assert resources.domain_id is not None
    StackObjects(simulator, harness.spec).assert_one_of_each()
