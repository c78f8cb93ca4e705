"""Dokploy deployments: how they are sent, followed, found again after a loss, and limited in time."""

import asyncio

import pytest

from deployments.engine.dokploy import Dokploy
from deployments.engine.spec import Progress

from ...processes import Simulator
from .harness import (
    StackObjects,
    eventually,
    logged_lines,
    new_harness,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_dokploy_deployment_of_another_user_is_not_taken_for_the_own_one(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    harness = new_harness(simulator)
    simulator.close_gate("job")

    def deploy_too(progress: Progress) -> None:
        if progress.phase == "deploying" and progress.data.get("step") == "begins":
            application = StackObjects(simulator, harness.spec).applications[0]
            simulator.do("application.deploy", applicationId=application["applicationId"], title="by hand")

    harness.on_report = deploy_too
    task = asyncio.ensure_future(harness.deploy(dokploy))
    await eventually(lambda: "Waiting in Dokploy's queue, 1 ahead" in harness.messages())
    assert "by hand" not in str(harness.reports), "titles of other users are not shown"
    simulator.open_gate("job")
    resources = await task
    rows = simulator.ask("deployment.all", applicationId=resources.application_id)
    assert [(row["title"], row["status"]) for row in rows] == [
        (harness.spec.deploy_title(1), "done"),
        ("by hand", "done"),
    ]
    assert resources.dokploy_deployment_id == rows[0]["deploymentId"]


async def test_a_waiting_dokploy_deployment_lost_in_a_restart_is_sent_again(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    harness = new_harness(simulator)
    busy = simulator.application(simulator.project("busy")[1])
    simulator.close_gate("job")
    simulator.do("application.deploy", applicationId=busy["applicationId"], title="busy")
    task = asyncio.ensure_future(harness.deploy(dokploy))
    await eventually(lambda: "Waiting in Dokploy's queue, 1 ahead" in harness.messages())
    simulator.switches.post("restart", json={}).raise_for_status()
    simulator.open_gate("job")
    await task
    assert "Dokploy was restarted and lost the deployment. Sending it again" in harness.messages("note")
    rows = [(row["title"], row["status"]) for row in StackObjects(simulator, harness.spec).dokploy_deployments]
    assert rows == [(harness.spec.deploy_title(2), "done")]
    StackObjects(simulator, harness.spec).assert_one_of_each()


async def test_a_running_dokploy_deployment_lost_in_a_restart_is_sent_again(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    harness = new_harness(simulator)
    simulator.close_gate("job")
    task = asyncio.ensure_future(harness.deploy(dokploy))
    await eventually(lambda: "Pulling the image and starting the container" in harness.messages())
    simulator.switches.post("restart", json={}).raise_for_status()
    simulator.open_gate("job")
    await task
    rows = [(row["title"], row["status"]) for row in StackObjects(simulator, harness.spec).dokploy_deployments]
    assert rows == [(harness.spec.deploy_title(1), "cancelled"), (harness.spec.deploy_title(2), "done")]
    StackObjects(simulator, harness.spec).assert_one_of_each()


async def test_a_dokploy_deployment_that_is_lost_three_times_fails(simulator: Simulator, dokploy: Dokploy) -> None:
    harness = new_harness(simulator)
    simulator.fault("application.deploy", "empty200", times=None)  # accepted, but never queued
    failure = await harness.deploy_and_fail(dokploy)
    assert (failure.code, failure.phase) == ("DEPLOY_LOST", "deploying")
    assert [r.data["mark"] for r in harness.reports if r.data.get("kind") == "deploy"] == [
        harness.spec.deploy_title(attempt) for attempt in (1, 2, 3)
    ]


# -- failures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Error response from daemon: manifest for shop/web:1 not found: manifest unknown", "IMAGE_NOT_FOUND"),
        (
            "Error response from daemon: pull access denied for shop/web, repository does not exist or may require "
            "'docker login': denied: requested access to the resource is denied",
            "IMAGE_NOT_FOUND",
        ),
        ("Error response from daemon: unauthorized: authentication required", "REGISTRY_LOGIN_FAILED"),
        ("toomanyrequests: You have reached your unauthenticated pull rate limit.", "REGISTRY_LIMIT"),
        ("no matching manifest for linux/arm64/v8 in the manifest list entries", "IMAGE_WRONG_PLATFORM"),
        ("failed to register layer: write /usr/lib/x: no space left on device", "SERVER_DISK_FULL"),
        ('Get "https://registry.test/v2/": dial tcp: lookup registry.test: no such host', "REGISTRY_UNREACHABLE"),
        ('Get "https://registry.test/v2/": x509: certificate has expired', "REGISTRY_UNREACHABLE"),
        ("an unknown message", "IMAGE_PULL_FAILED"),
    ],
)
async def test_a_failed_pull_is_classified_by_the_message_of_docker(
    simulator: Simulator, dokploy: Dokploy, text: str, code: str
) -> None:
    harness = new_harness(simulator)
    simulator.turn(pull_error=text)
    failure = await harness.deploy_and_fail(dokploy)
    assert (failure.code, failure.phase) == (code, "deploying")
    assert failure.evidence == (text if code != "IMAGE_PULL_FAILED" else "❌ Pulling image failed")
    row = StackObjects(simulator, harness.spec).dokploy_deployments[0]
    assert logged_lines(harness) == {row["deploymentId"]: simulator.log(row).splitlines()}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("(HTTP code 500) server error - rpc error: code = InvalidArgument", "ENGINE_REFUSED"),
        ("connect ENOENT /var/run/docker.sock", "ENGINE_UNAVAILABLE"),
    ],
)
async def test_an_error_of_the_container_engine_is_classified(
    simulator: Simulator, dokploy: Dokploy, text: str, code: str
) -> None:
    harness = new_harness(simulator)
    simulator.turn(engine_error=text)
    failure = await harness.deploy_and_fail(dokploy)
    assert (failure.code, failure.evidence) == (code, text)


# -- the time limit ----------------------------------------------------------------------------------------------------


async def test_a_deployment_that_exceeds_its_limit_fails_and_names_its_status_at_dokploy(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    running, waiting = (new_harness(simulator, deploy_timeout=0.5) for _ in range(2))
    simulator.close_gate("pull")
    failure = await running.deploy_and_fail(dokploy)
    assert (failure.code, failure.phase) == ("TIMEOUT", "deploying")
    assert failure.message == "The deployment did not end within 0.5 s. Dokploy still reports it as “running”."
    failure = await waiting.deploy_and_fail(dokploy)
    assert failure.message == "The deployment did not end within 0.5 s. It is still waiting in Dokploy's queue."


async def test_a_deployment_that_is_done_at_its_limit_succeeds_without_its_log(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    harness = new_harness(simulator, deploy_timeout=1.0)
    simulator.fault("deployment.readLogs", "error500", times=None)
    await harness.deploy(dokploy)
    simulator.switches.delete("faults")
    StackObjects(simulator, harness.spec).assert_one_of_each()


async def test_failing_reads_do_not_extend_the_limit_of_a_deployment(simulator: Simulator, dokploy: Dokploy) -> None:
    harness = new_harness(simulator, deploy_timeout=1.0)
    simulator.fault("deployment.all", "reset_before", times=None)
    failure = await harness.deploy_and_fail(dokploy, patience=20)
    assert failure.message == "The deployment did not end within 1 s. Dokploy does not report its state."
