"""The removal of a stack."""

import asyncio
import itertools

import pytest

from deployments.engine.dokploy import Dokploy
from deployments.engine.errors import Interrupted
from deployments.engine.recipe import REMOVAL

from ...processes import Simulator
from .harness import (
    EngineHarness,
    StackObjects,
    eventually,
    new_harness,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_removal_interrupted_at_any_report_can_be_repeated(simulator: Simulator, dokploy: Dokploy) -> None:
    for number in itertools.count(1):
        harness = new_harness(simulator)
        await harness.deploy(dokploy)
        removal = EngineHarness(harness.spec)
        reporter = removal.reporter()
        removal.refused_report = number
        try:
            await removal.remove(dokploy, reporter)
        except Interrupted:
            await removal.remove(dokploy)
        StackObjects(simulator, harness.spec).assert_none()
        if removal.refused_report == number and removal.report_count < number:
            break
    assert number > 12
    assert [r.phase for r in removal.reports if r.data.get("step") == "ends"] == [phase.name for phase in REMOVAL]


async def test_a_removal_waits_for_a_dokploy_deployment_of_another_user(simulator: Simulator, dokploy: Dokploy) -> None:
    harness = new_harness(simulator)
    resources = await harness.deploy(dokploy)
    simulator.close_gate("pull")
    simulator.do("application.deploy", applicationId=resources.application_id, title="by hand")
    await eventually(lambda: simulator.state()["deployments"][-1]["status"] == "running")
    removal = EngineHarness(harness.spec)
    removing = asyncio.ensure_future(removal.remove(dokploy))
    await eventually(lambda: "Waiting for Dokploy to finish the running deployment" in removal.messages())
    assert StackObjects(simulator, harness.spec).counts()["applications"] == 1
    simulator.open_gate("pull")
    await removing
    StackObjects(simulator, harness.spec).assert_none()
