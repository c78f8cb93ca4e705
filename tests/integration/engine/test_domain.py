"""The domain of a stack: its certificate, its correction, and hosts that are taken."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from deployments.engine.dokploy import Dokploy
from deployments.engine.errors import Failure

from ...processes import Simulator
from .harness import (
    EngineHarness,
    StackObjects,
    count_calls,
    eventually,
    new_harness,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize(
    ("certificate", "https", "type"),
    [("letsencrypt", True, "letsencrypt"), ("wildcard", True, "none"), ("none", False, "none")],
)
async def test_the_domain_is_created_for_the_requested_certificate(
    simulator: Simulator, dokploy: Dokploy, certificate: Any, https: bool, type: str
) -> None:
    harness = new_harness(simulator, certificate=certificate)
    await harness.deploy(dokploy)
    domain = StackObjects(simulator, harness.spec).domains[0]
    assert (domain["https"], domain["certificateType"]) == (https, type)


async def test_a_domain_that_was_changed_by_hand_is_corrected(simulator: Simulator, dokploy: Dokploy) -> None:
    harness = new_harness(simulator)
    resources = await harness.deploy(dokploy)
    simulator.do("domain.update", domainId=resources.domain_id, host=harness.spec.host, port=3000, https=True)
    await EngineHarness(harness.spec).deploy(dokploy)
    StackObjects(simulator, harness.spec).assert_one_of_each()


async def test_a_domain_that_a_user_put_in_its_place_is_kept(simulator: Simulator, dokploy: Dokploy) -> None:
    harness = new_harness(simulator)
    simulator.close_gate("job")
    deploying = asyncio.ensure_future(harness.deploy(dokploy))
    assert await asyncio.to_thread(simulator.wait_at, "job") == 1
    (own,) = StackObjects(simulator, harness.spec).domains
    simulator.do("domain.delete", domainId=own["domainId"])
    foreign = {name: own[name] for name in ("host", "path", "port", "applicationId", "domainType")}
    simulator.do("domain.create", **foreign)
    simulator.open_gate("job")
    await deploying
    StackObjects(simulator, harness.spec).assert_one_of_each()


async def test_the_host_of_a_foreign_application_is_refused(simulator: Simulator, dokploy: Dokploy) -> None:
    harness = new_harness(simulator)
    foreign = simulator.application(simulator.project(f"foreign-{harness.spec.name}")[1])["applicationId"]
    simulator.do(
        "domain.create", applicationId=foreign, host=harness.spec.host.upper(), port=80, domainType="application"
    )
    failure = await harness.deploy_and_fail(dokploy)
    assert (failure.code, failure.phase) == ("HOST_IN_USE_AT_DOKPLOY", "creating_domain")
    assert not failure.retryable
    assert await harness.undo(dokploy) == []
    StackObjects(simulator, replace(harness.spec, host="other.test")).assert_none()
    assert len(simulator.ask("domain.byApplicationId", applicationId=foreign)) == 1


async def test_concurrent_deployments_share_one_search_for_foreign_hosts(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    environment = simulator.project("foreign")[1]
    foreign = [simulator.application(environment)["applicationId"] for _ in range(10)]
    harnesses = [new_harness(simulator) for _ in range(8)]
    taken = {"host": harnesses[0].spec.host.upper(), "port": 80, "domainType": "application"}
    simulator.do("domain.create", applicationId=foreign[-1], **taken)
    before = count_calls(simulator)
    simulator.close_gate("domain.byApplicationId")
    tasks = [asyncio.ensure_future(harness.deploy(dokploy)) for harness in harnesses]
    await eventually(lambda: all(harness.phase == "creating_domain" for harness in harnesses))
    simulator.open_gate("domain.byApplicationId")
    await asyncio.wait(tasks)
    refused, *others = [task.exception() for task in tasks]
    assert isinstance(refused, Failure)
    assert refused.code == "HOST_IN_USE_AT_DOKPLOY"
    assert others == [None] * 7
    assert (count_calls(simulator) - before)["domain.byApplicationId"] < 4 * len(foreign) + 4 * len(harnesses)
