"""Outages of Dokploy: the engine waits for their end, reports them, and gives up after a limit."""

import asyncio
import time

import pytest

from deployments.engine import retry
from deployments.engine.dokploy import Dokploy
from deployments.engine.errors import Failure
from deployments.engine.spec import Progress

from ...processes import Simulator
from .harness import (
    StackObjects,
    count_heartbeats,
    eventually,
    longest_silence,
    new_harness,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_deployment_waits_for_an_unreachable_dokploy_until_its_patience_ends(
    simulator: Simulator, unreachable: Dokploy
) -> None:
    harness = new_harness(simulator)
    began = time.monotonic()
    failure = await harness.deploy_and_fail(unreachable, patience=0.3)
    assert 0.2 < time.monotonic() - began < 20
    assert (failure.code, failure.phase, failure.retryable) == ("DOKPLOY_UNAVAILABLE", "creating_project", True)
    assert "Waiting for Dokploy: Dokploy cannot be reached." in harness.messages()


async def test_heartbeats_continue_during_an_outage(
    simulator: Simulator, unreachable: Dokploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "HEARTBEAT_SECONDS", 0.05)
    harness = new_harness(simulator)
    await harness.deploy_and_fail(unreachable, patience=0.6)
    harness.times.append(time.monotonic())
    assert count_heartbeats(harness) >= 3
    assert longest_silence(harness) < 5  # the portal's promise; here it is a fraction of that


@pytest.mark.parametrize("flapping", [1000, 0])
async def test_repeated_short_outages_fail_a_deployment_only_beyond_the_flapping_limit(
    simulator: Simulator, dokploy: Dokploy, monkeypatch: pytest.MonkeyPatch, flapping: int
) -> None:
    monkeypatch.setattr(retry, "CALL_SECONDS", 0.01)
    monkeypatch.setattr(retry, "RECOVERED_SECONDS", 0.02)
    monkeypatch.setattr(retry, "FLAPPING_FACTOR", flapping)
    harness = new_harness(simulator)
    simulator.close_gate("job")
    task = asyncio.ensure_future(harness.deploy(dokploy, patience=0.2))
    following = "Pulling the image and starting the container"
    await eventually(lambda: following in harness.messages())

    def is_over() -> bool:
        return task.done() or (not simulator.state()["faults"] and harness.messages()[-1] == following)

    for _ in range(25):
        simulator.fault("deployment.all", "error500", times=2)
        await eventually(is_over)
        await asyncio.sleep(0.1)
        if task.done():
            break
    simulator.open_gate("job")
    await asyncio.wait({task})
    assert any(message.startswith("Waiting for Dokploy") for message in harness.messages())
    failure = task.exception()
    if flapping:
        assert failure is None
    else:
        assert isinstance(failure, Failure)
        assert (failure.code, failure.phase) == ("DOKPLOY_UNAVAILABLE", "deploying")


async def test_a_stall_of_the_process_during_a_pause_does_not_fail_the_deployment(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    harness = new_harness(simulator)
    simulator.fault("project.all", "error500", times=3)

    def stall(progress: Progress) -> None:
        if progress.message.startswith("Waiting for Dokploy"):
            asyncio.get_running_loop().call_later(0.005, time.sleep, 1.5)

    harness.on_report = stall
    await harness.deploy(dokploy)
    StackObjects(simulator, harness.spec).assert_one_of_each()


@pytest.mark.parametrize(
    "phase", ["creating_project", "configuring_application", "creating_domain", "deploying", "verifying_health"]
)
async def test_a_deployment_waits_in_every_phase_for_a_restart_of_dokploy(
    simulator: Simulator, dokploy: Dokploy, phase: str
) -> None:
    """The restart takes longer than all attempts of a phase together."""
    harness = new_harness(simulator)
    simulator.close_gate("container")

    def restart(progress: Progress) -> None:
        if progress.phase == phase and progress.data.get("step") == "begins":
            simulator.switches.post("restart", json={"seconds": 0.15})
        if progress.phase == "verifying_health" and progress.kind == "rung":
            simulator.open_gate("container")

    harness.on_report = restart
    await harness.deploy(dokploy)
    StackObjects(simulator, harness.spec).assert_one_of_each()
    while not await dokploy.healthy():  # the last restart may outlast the deployment
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("phase", ["creating_project", "configuring_application", "deploying"])
async def test_a_deployment_waits_for_a_database_outage_of_dokploy(
    simulator: Simulator, dokploy: Dokploy, phase: str
) -> None:
    harness = new_harness(simulator)

    def turn(progress: Progress) -> None:
        if progress.phase == phase and progress.data.get("step") == "begins":
            simulator.turn(database="down")
        if progress.message.startswith("Waiting for Dokploy"):
            simulator.turn(database="up")

    harness.on_report = turn
    await harness.deploy(dokploy)
    assert "Waiting for Dokploy: Dokploy answers, but its database does not." in harness.messages()
    StackObjects(simulator, harness.spec).assert_one_of_each()
