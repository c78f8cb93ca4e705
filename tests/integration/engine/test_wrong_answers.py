"""Wrong answers of Dokploy, and keys with limited permissions: no object is created twice or lost."""

import asyncio
from dataclasses import replace

import pytest

from deployments.engine.dokploy import Dokploy
from deployments.engine.errors import Failure
from deployments.engine.reporter import Reporter
from deployments.engine.spec import Progress

from ...processes import Simulator
from .harness import (
    CHANGE_CALLS,
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


async def test_duplicates_of_create_calls_that_took_effect_late_are_removed(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    """The object was searched for twice, then created again, and then the first call took effect after all."""
    harness = new_harness(simulator)
    spec = harness.spec

    def create_duplicates(progress: Progress) -> None:
        if progress.phase != "deploying" or progress.data.get("step") != "begins":
            return
        application = StackObjects(simulator, spec).applications[0]
        duplicate = {"name": spec.name, "description": spec.mark}
        simulator.do("application.create", environmentId=application["environmentId"], **duplicate)
        simulator.do("domain.create", applicationId=application["applicationId"], host=spec.host, port=80)
        simulator.do("project.create", **duplicate)
        simulator.do("project.create", name=spec.name, description="by hand")

    harness.on_report = create_duplicates
    resources = await harness.deploy(dokploy)
    objects = StackObjects(simulator, spec)
    assert [row["applicationId"] for row in objects.applications] == [resources.application_id]
    assert [row["domainId"] for row in objects.domains] == [resources.domain_id]
    assert [row["description"] for row in objects.projects] == [spec.mark, "by hand"]
    assert objects.projects[0]["projectId"] == resources.project_id


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
    assert harness.reporter().pending == set()
    StackObjects(simulator, harness.spec).assert_none()


@pytest.mark.parametrize(
    ("permissions", "phase"), [([], "creating_project"), (["project"], "deploying"), (["project", "service"], None)]
)
async def test_a_key_without_permission_fails_and_leaves_only_what_it_cannot_delete(
    simulator: Simulator, permissions: list[str], phase: str | None
) -> None:
    simulator.switches.post("keys", json={"key": "a-members-key", "member": permissions}).raise_for_status()
    member = Dokploy(f"http://127.0.0.1:{simulator.port}", "a-members-key")
    try:
        harness = new_harness(simulator)
        if phase == "deploying":
            simulator.turn(pull_error="manifest unknown")  # the key may not delete what it created
            failure = await harness.deploy_and_fail(member)
            leftovers = await harness.undo(member)
            assert [line.partition(" (")[0] for line in leftovers] == ["the application", "the project"]
            assert "does not have permission for application.delete" in leftovers[0]
        elif phase:
            failure = await harness.deploy_and_fail(member)
            assert (failure.code, failure.phase) == ("DOKPLOY_NOT_ALLOWED", phase)
            StackObjects(simulator, harness.spec).assert_none()
        else:
            await harness.deploy(member)
            assert await harness.undo(member) == []
            StackObjects(simulator, harness.spec).assert_none()
    finally:
        simulator.switches.delete("keys")
        await member.aclose()


@pytest.mark.parametrize("lost", ["all", "environment", "application"])
@pytest.mark.parametrize("way", ["undo", "remove", "redeploy"])
async def test_objects_that_the_key_may_no_longer_see_are_neither_recreated_nor_recorded_as_gone(
    simulator: Simulator, dokploy: Dokploy, lost: str, way: str
) -> None:
    """A member's key can lose access to what it created during concurrent calls: Dokploy's lists then leave it out."""
    key = {"key": "a-members-key", "member": ["project", "service"]}
    simulator.switches.post("keys", json=key).raise_for_status()
    member = Dokploy(f"http://127.0.0.1:{simulator.port}", "a-members-key")
    try:
        harness = new_harness(simulator)
        simulator.close_gate("application.create")
        deploying = asyncio.ensure_future(harness.deploy(member))
        assert await asyncio.to_thread(simulator.wait_at, "application.create") == 1
        simulator.close_gate("project.create")  # sent before the application is created, done after it
        other = asyncio.ensure_future(member.create_project("other", ""))
        assert await asyncio.to_thread(simulator.wait_at, "project.create") == 1
        simulator.open_gate("application.create")
        resources = await deploying
        simulator.open_gate("project.create")
        await other
        if lost != "application":
            reach = [] if lost == "all" else [resources.project_id]
            simulator.switches.post("keys", json={**key, "reach": reach}).raise_for_status()
        before, later = count_calls(simulator), EngineHarness(replace(harness.spec, deployment="dep_later"))
        reporter = Reporter(
            later.report, recorded_ids=harness.reporter().recorded_ids, pending=harness.reporter().pending
        )
        if way == "undo":
            leftovers = await later.undo(member, reporter)
            assert [line.partition(" (")[0] for line in leftovers] == ["the domain", "the application", "the project"]
            assert "does not have permission for" in leftovers[0]
        else:
            with pytest.raises(Failure) as caught:
                await (later.remove if way == "remove" else later.deploy)(member, reporter)
            assert caught.value.code == "DOKPLOY_NOT_ALLOWED"
        assert not CHANGE_CALLS & set(count_calls(simulator) - before)
        receipts = [report.data["state"] for report in later.reports if report.kind == "receipt"]
        assert not {"removing", "gone"} & set(receipts)
        StackObjects(simulator, harness.spec).assert_one_of_each()
        assert await EngineHarness(harness.spec, harness.reports).undo(dokploy) == [], "the owner's key sees everything"
        StackObjects(simulator, harness.spec).assert_none()
    finally:
        simulator.switches.delete("keys")
        await member.aclose()
