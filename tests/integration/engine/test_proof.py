"""A deployment succeeds only when the new version is proved to run, to stay up and to answer."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from deployments.engine import health
from deployments.engine.dokploy import Dokploy
from deployments.engine.errors import Failure
from deployments.engine.reporter import Reporter
from deployments.engine.spec import Progress

from ...processes import IMAGE, Simulator
from .harness import EngineHarness, StackObjects, count_calls, eventually, new_harness

pytestmark = pytest.mark.asyncio(loop_scope="module")

BAD = "registry.test/shop/bad:2"
SAVE = "application.saveDockerProvider"


def program(lives: float, **more: Any) -> dict[str, Any]:
    return {"lives": lives, "exit_code": 3, "starts": ["starting"], "ends": ["boom no config found"], **more}


def redeployment(harness: EngineHarness, **fields: Any) -> tuple[EngineHarness, Reporter]:
    """Return the next deployment of a stack, with what is recorded of it."""
    later = EngineHarness(replace(harness.spec, deployment="dep_later", image=BAD, **fields))
    return later, harness.store().next_deployment().reporter(later.report)


async def redeploy_and_fail(later: EngineHarness, reporter: Reporter, dokploy: Dokploy) -> Failure:
    with pytest.raises(Failure) as caught:
        await later.deploy(dokploy, reporter)
    return caught.value


def lines(harness: EngineHarness) -> list[str]:
    return [line for report in harness.reports if report.kind == "log" for line in report.data["lines"]]


async def test_a_new_version_that_ends_at_once_is_rolled_back_and_never_called_live(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    harness = new_harness(simulator)
    await harness.deploy(dokploy)
    simulator.turn(monitor=0.4, programs={BAD: program(0.2)})
    later, reporter = redeployment(harness, proof_seconds=0.1)
    failure = await redeploy_and_fail(later, reporter, dokploy)
    assert (failure.code, failure.phase) == ("ROLLED_BACK", "verifying_health")
    assert "Exited (3)" in failure.evidence
    assert failure.evidence.endswith("boom no config found")
    assert lines(later)[-2:] == ["starting", "boom no config found"]


async def test_after_a_rollback_the_previous_settings_are_saved_and_nothing_is_deployed_again(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    harness = new_harness(simulator)
    await harness.deploy(dokploy)
    simulator.turn(monitor=0.4, programs={BAD: program(0.2)})
    later, reporter = redeployment(harness)
    await redeploy_and_fail(later, reporter, dokploy)
    before = count_calls(simulator)
    assert await later.restore(dokploy, harness.spec, reporter) == []
    made = count_calls(simulator) - before
    assert (made[SAVE], made["application.deploy"]) == (1, 0)
    objects = StackObjects(simulator, harness.spec)
    assert [row["dockerImage"] for row in objects.applications] == [IMAGE] == [row["image"] for row in objects.services]
    assert IMAGE in simulator.visit(harness.spec.host).text


async def test_a_pull_that_fails_leaves_the_running_container_alone(simulator: Simulator, dokploy: Dokploy) -> None:
    harness = new_harness(simulator)
    resources = await harness.deploy(dokploy)
    [running] = await dokploy.containers(resources.app_name or "")
    simulator.turn(pull_error="manifest unknown")
    later, reporter = redeployment(harness)
    failure = await redeploy_and_fail(later, reporter, dokploy)
    assert failure.code == "IMAGE_NOT_FOUND"
    before = count_calls(simulator)
    assert await later.restore(dokploy, harness.spec, reporter) == []
    assert (count_calls(simulator) - before)["application.deploy"] == 0
    assert [container.name for container in await dokploy.containers(resources.app_name or "")] == [running.name]
    assert StackObjects(simulator, harness.spec).applications[0]["dockerImage"] == IMAGE


async def test_a_program_that_ends_again_and_again_fails_with_its_exit_code_and_its_last_lines(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    harness = new_harness(simulator, image=BAD, proof_seconds=1.0)
    masked = {"ends": [f"boom, the token is {harness.spec.secrets[0]}"]}
    simulator.turn(restart_delay=0.05, programs={BAD: program(0.05, **masked)})
    reporter = harness.reporter()
    reporter.secrets = harness.spec.secrets
    failure = await harness.deploy_and_fail(dokploy, reporter=reporter)
    assert (failure.code, failure.phase, failure.retryable) == ("CONTAINER_CRASHED", "verifying_health", True)
    assert failure.evidence.startswith("Exited (3)")
    assert lines(harness)[-2:] == ["starting", "boom, the token is ***"]
    assert await harness.undo(dokploy) == []
    StackObjects(simulator, harness.spec).assert_none()


async def test_a_program_that_ends_once_and_then_stays_up_succeeds(simulator: Simulator, dokploy: Dokploy) -> None:
    harness = new_harness(simulator, image=BAD, proof_seconds=0.2)
    simulator.turn(restart_delay=0.1, programs={BAD: program(0.1)})

    def recover(progress: Progress) -> None:
        if "exit code 3" in progress.message:
            simulator.turn(programs={})

    harness.on_report = recover
    await harness.deploy(dokploy)
    assert any("the program ended with exit code 3" in message for message in harness.messages())
    StackObjects(simulator, harness.spec).assert_one_of_each()


async def test_a_program_that_answers_for_a_while_and_then_ends_is_not_live(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    harness = new_harness(simulator, image=BAD, proof_seconds=30.0)
    simulator.turn(restart_delay=0.05, programs={BAD: program(0.5)})
    failure = await harness.deploy_and_fail(dokploy)
    assert failure.code == "CONTAINER_CRASHED"
    assert any("making sure it stays up" in message for message in harness.messages())


async def test_success_waits_until_docker_has_completed_the_update(simulator: Simulator, dokploy: Dokploy) -> None:
    harness = new_harness(simulator)
    resources = await harness.deploy(dokploy)
    simulator.turn(monitor=3600)
    later, reporter = redeployment(harness)
    task = asyncio.ensure_future(later.deploy(dokploy, reporter))
    proving = "making sure it stays up"
    await eventually(lambda: sum(proving in message for message in later.messages()) > 10)
    service = await dokploy.service(resources.app_name or "")
    assert service is not None
    assert (service.image, service.update_state) == (BAD, "updating")
    assert not task.done()
    task.cancel()
    await asyncio.wait({task})


@pytest.mark.parametrize("removed", ["application", "project"])
async def test_an_application_that_is_removed_by_hand_is_not_live(
    simulator: Simulator, dokploy: Dokploy, removed: str
) -> None:
    harness = new_harness(simulator, proof_seconds=0.3)

    def remove(progress: Progress) -> None:
        if progress.phase == "verifying_health" and progress.data.get("step") == "begins":
            resources = harness.store().resources
            if removed == "application":
                simulator.do("application.delete", applicationId=resources.application_id)
            else:
                simulator.do("project.remove", projectId=resources.project_id)

    harness.on_report = remove
    failure = await harness.deploy_and_fail(dokploy)
    assert (failure.code, failure.phase) == ("REMOVED_AT_DOKPLOY", "verifying_health")


async def test_a_program_that_listens_elsewhere_is_told_with_its_port(simulator: Simulator, dokploy: Dokploy) -> None:
    harness = new_harness(simulator, image=BAD, health_timeout=0.2)
    simulator.turn(programs={BAD: {"listens": False}})
    failure = await harness.deploy_and_fail(dokploy)
    assert failure.code == "NOTHING_LISTENS"
    assert f"port {harness.spec.port}" in failure.message
    assert "Up " in failure.evidence


async def test_an_update_that_docker_never_completes_fails(
    simulator: Simulator, dokploy: Dokploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "UPDATE_SECONDS", 0.1)
    harness = new_harness(simulator)
    await harness.deploy(dokploy)
    simulator.turn(monitor=3600)
    later, reporter = redeployment(harness, health_timeout=0.3)
    failure = await redeploy_and_fail(later, reporter, dokploy)
    assert (failure.code, failure.phase) == ("TIMEOUT", "verifying_health")
    assert "Docker has not completed the update" in failure.message


async def test_an_address_that_answers_without_a_container_of_the_stack_is_not_live(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    harness = new_harness(simulator, health_timeout=0.3)
    simulator.fault("docker.getContainersByAppNameMatch", "garbage200", times=None, text="[]")
    failure = await harness.deploy_and_fail(dokploy)
    assert failure.code == "HEALTH_NO_ANSWER"
    assert "Dokploy lists no running container" in failure.message


async def test_a_previous_version_that_ends_too_is_told(simulator: Simulator, dokploy: Dokploy) -> None:
    """Docker goes back to the previous version, whose program now ends as well."""
    harness = new_harness(simulator)
    await harness.deploy(dokploy)
    simulator.turn(monitor=0.3, restart_delay=0.05, programs={BAD: program(0.1), IMAGE: program(0.1)})
    later, reporter = redeployment(harness)
    assert (await redeploy_and_fail(later, reporter, dokploy)).code == "ROLLED_BACK"
    [left] = await later.restore(dokploy, replace(harness.spec, health_timeout=2.0, proof_seconds=0.5), reporter)
    assert left.startswith("the previous version (")


@pytest.mark.parametrize("times", [3, None])
async def test_an_update_that_cannot_be_read_is_not_proved_and_is_no_failure(
    simulator: Simulator, dokploy: Dokploy, monkeypatch: pytest.MonkeyPatch, times: int | None
) -> None:
    monkeypatch.setattr(health, "UPDATE_SECONDS", 0.1)
    harness = new_harness(simulator)
    await harness.deploy(dokploy)
    later, reporter = redeployment(harness, health_timeout=0.5)

    def break_reads(progress: Progress) -> None:
        if progress.phase == "verifying_health" and progress.data.get("step") == "begins":
            simulator.fault("docker.getConfig", "error500", times=times)

    later.on_report = break_reads
    await later.deploy(dokploy, reporter)
    told = any("Dokploy cannot tell" in report.message for report in later.reports if report.kind == "note")
    assert told == (times is None)
