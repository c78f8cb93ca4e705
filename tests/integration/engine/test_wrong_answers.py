"""Wrong answers of Dokploy, and keys with limited permissions: no object is created twice or lost."""

import asyncio
from dataclasses import replace

import pytest

from deployments.engine.dokploy import Dokploy
from deployments.engine.errors import Failure
from deployments.engine.reporter import Reporter

from ...processes import KEY, Simulator
from .harness import (
    CREATE_CALLS,
    SAVE_CALLS,
    EngineHarness,
    StackObjects,
    count_calls,
    new_harness,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")
# Faults of an answer: those after which the call has taken effect, and those after which it has not.
APPLIED = "error500_done error400_done html502_done empty200_done wrong_types reset_after hang_done".split()
NOT_APPLIED = "error500 empty200 reset_before unauthorized too_many hang".split()


@pytest.mark.parametrize("fault", [*APPLIED, *NOT_APPLIED])
async def test_a_wrong_answer_to_each_create_call_creates_nothing_twice(
    simulator: Simulator, impatient: Dokploy, fault: str
) -> None:
    """Above all: an object that was created with an answer of 500 is found, and the call is not repeated."""
    harness = new_harness(simulator)
    for procedure in CREATE_CALLS:
        simulator.fault(procedure, fault)
    before = count_calls(simulator)
    await harness.deploy(impatient)
    assert simulator.state()["faults"] == [], "every fault occurred"
    objects = StackObjects(simulator, harness.spec)
    objects.assert_one_of_each()
    assert len(objects.dokploy_deployments) == 1
    made = count_calls(simulator) - before
    expected_calls = 2 if fault in NOT_APPLIED else 1
    assert {name: made[name] for name in CREATE_CALLS} == dict.fromkeys(CREATE_CALLS, expected_calls), (
        "no call that took effect is repeated"
    )
    if fault in APPLIED:
        assert {report.phase for report in harness.reports if "attempt" in report.data} <= {
            "deploying",
            "verifying_health",
        }


@pytest.mark.parametrize("fault", ["error500", "empty200"])
@pytest.mark.parametrize("procedure", SAVE_CALLS)
async def test_a_save_is_repeated_after_a_wrong_answer(
    simulator: Simulator, dokploy: Dokploy, procedure: str, fault: str
) -> None:
    harness = new_harness(simulator)
    simulator.fault(procedure, fault)
    await harness.deploy(dokploy)
    assert simulator.state()["faults"] == []
    StackObjects(simulator, harness.spec).assert_one_of_each()


async def test_two_wrong_answers_to_each_create_call_create_nothing_twice(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    harness = new_harness(simulator)
    for procedure in CREATE_CALLS:
        simulator.fault(procedure, "reset_before")
        simulator.fault(procedure, "error500_done")
    await harness.deploy(dokploy)
    StackObjects(simulator, harness.spec).assert_one_of_each()


@pytest.mark.parametrize("fault", ["garbage200", "wrong_types", "reset_before"])
async def test_a_read_is_repeated_after_a_wrong_answer(simulator: Simulator, dokploy: Dokploy, fault: str) -> None:
    harness = new_harness(simulator)
    asked = ["project.all", "environment.byProjectId", "domain.byApplicationId", "deployment.all"]
    asked += ["deployment.queueList", "deployment.readLogs"]
    for procedure in asked:
        simulator.fault(procedure, fault, times=2)
    await harness.deploy(dokploy)
    assert simulator.state()["faults"] == []
    objects = StackObjects(simulator, harness.spec)
    objects.assert_one_of_each()
    assert len(objects.dokploy_deployments) == 1


async def test_a_phase_fails_after_its_attempts_when_the_outcome_stays_unknown(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    harness = new_harness(simulator)
    simulator.fault("application.create", "error500", times=None)
    failure = await harness.deploy_and_fail(dokploy)
    assert (failure.code, failure.phase, failure.retryable) == ("DOKPLOY_UNCLEAR", "creating_application", True)
    assert [report.data["attempt"] for report in harness.reports if "attempt" in report.data] == [2, 3]
    simulator.switches.delete("faults")
    assert await harness.undo(dokploy) == []
    StackObjects(simulator, harness.spec).assert_none()


async def test_a_project_without_an_environment_is_replaced(simulator: Simulator, dokploy: Dokploy) -> None:
    """Dokploy inserts the project, fails to insert the environment, and answers with an error."""
    harness = new_harness(simulator)
    simulator.turn(halves=1)
    before = count_calls(simulator)
    await harness.deploy(dokploy)
    StackObjects(simulator, harness.spec).assert_one_of_each()
    assert (count_calls(simulator) - before)["project.create"] == 2
    receipts = [
        report.data for report in harness.reports if report.kind == "receipt" and report.data["kind"] == "project"
    ]
    assert [data["state"] for data in receipts] == ["intended", "removing", "gone", "intended", "made"]
    assert receipts[1]["id"] == receipts[2]["id"] != receipts[4]["id"]


async def test_a_project_that_never_gets_an_environment_is_removed(simulator: Simulator, dokploy: Dokploy) -> None:
    harness = new_harness(simulator)
    simulator.turn(halves=3)
    with pytest.raises(Failure) as failed:
        await harness.deploy(dokploy)
    assert failed.value.phase == "creating_project"
    assert simulator.state()["settings"]["halves"] == 0
    assert await harness.undo(dokploy) == []
    assert not StackObjects(simulator, harness.spec).projects


@pytest.mark.parametrize("way", ["deploy", "remove"])
async def test_duplicates_of_create_calls_that_took_effect_late_are_removed_by_the_next_deployment(
    simulator: Simulator, dokploy: Dokploy, way: str
) -> None:
    """The object was looked for in vain, then created again, and then the first call took effect after all."""
    harness = new_harness(simulator)
    spec = harness.spec
    resources = await harness.deploy(dokploy)
    duplicate = {"name": spec.name, "description": spec.mark}
    simulator.do("application.create", environmentId=resources.environment_id, **duplicate)
    simulator.do("domain.create", applicationId=resources.application_id, host=spec.host, port=80)
    simulator.do("project.create", **duplicate)
    simulator.do("project.create", name=spec.name, description="by hand")
    later = EngineHarness(replace(spec, deployment="dep_later"))
    reporter = Reporter(later.report, records=harness.store().records)
    if way == "deploy":
        await later.deploy(dokploy, reporter)
    else:
        await later.remove(dokploy, reporter)
    objects = StackObjects(simulator, spec)
    kept = way == "deploy"
    assert [row["applicationId"] for row in objects.applications] == [resources.application_id] * kept
    assert [row["domainId"] for row in objects.domains] == [resources.domain_id] * kept
    assert [row["description"] for row in objects.projects] == [*[spec.mark] * kept, "by hand"]
    assert [row["projectId"] for row in objects.projects][:1] == [resources.project_id] or not kept


# -- keys and versions -------------------------------------------------------------------------------------------------


async def test_a_refused_key_fails_the_deployment_at_once(simulator: Simulator, running: Simulator) -> None:
    harness = new_harness(simulator)
    other_client = Dokploy(f"http://127.0.0.1:{running.port}", "a-wrong-key")
    failure = await harness.deploy_and_fail(other_client)
    assert (failure.code, failure.phase, failure.retryable) == ("DOKPLOY_KEY_REFUSED", "creating_project", False)
    StackObjects(simulator, harness.spec).assert_none()
    await other_client.aclose()


async def test_nothing_is_created_in_a_dokploy_with_known_vulnerabilities(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    harness = new_harness(simulator)
    simulator.turn(version="v0.29.12")
    try:
        failure = await harness.deploy_and_fail(dokploy)
    finally:
        simulator.turn(version="v0.30.2")
    assert (failure.code, failure.phase, failure.retryable) == ("DOKPLOY_TOO_OLD", "creating_project", False)
    assert "not" not in failure.evidence
    assert not harness.store().records
    StackObjects(simulator, harness.spec).assert_none()


async def test_a_members_key_is_refused_before_anything_is_created_or_removed(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    harness = new_harness(simulator)
    await harness.deploy(dokploy)
    simulator.switches.post("keys", json={"key": "a-members-key", "role": "member"}).raise_for_status()
    member = Dokploy(f"http://127.0.0.1:{simulator.port}", "a-members-key")
    try:
        before = count_calls(simulator)
        failure = await EngineHarness(replace(harness.spec, deployment="dep_again")).deploy_and_fail(member)
        assert (failure.code, failure.phase, failure.retryable) == ("DOKPLOY_NOT_ALLOWED", "creating_project", False)
        assert failure.message.endswith("The roles of its user: member.")
        leftovers = await harness.undo(member)
        assert [line.partition(" (")[0] for line in leftovers] == ["the domain", "the application", "the project"]
        assert set(count_calls(simulator) - before) == {"organization.all"}
        StackObjects(simulator, harness.spec).assert_one_of_each()
    finally:
        simulator.switches.delete("keys")
        await member.aclose()


async def test_the_role_of_the_key_is_asked_once_for_all_deployments(simulator: Simulator) -> None:
    client = Dokploy(f"http://127.0.0.1:{simulator.port}", KEY)
    before = count_calls(simulator)
    await asyncio.gather(*(new_harness(simulator).deploy(client) for _ in range(3)))
    assert (count_calls(simulator) - before)["organization.all"] == 1
    await client.aclose()
