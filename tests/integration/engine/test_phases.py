"""A deployment without faults: its phases, its reports and the objects that it creates."""

import asyncio
import itertools
from collections import Counter
from dataclasses import replace

import pytest

from deployments.engine import retry
from deployments.engine.dokploy import Dokploy
from deployments.engine.errors import Failure
from deployments.engine.recipe import PHASES
from deployments.engine.reporter import Ending
from deployments.engine.spec import Progress, Resources

from ...processes import KEY, Simulator
from .harness import (
    CHANGE_CALLS,
    CREATE_CALLS,
    PASSWORD,
    SAVE_CALLS,
    SECRET,
    EngineHarness,
    StackObjects,
    count_calls,
    count_heartbeats,
    eventually,
    longest_silence,
    new_harness,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_deployment_creates_one_object_of_each_kind_with_its_mark(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    harness = new_harness(simulator)
    before = count_calls(simulator)
    resources = await harness.deploy(dokploy)
    objects = StackObjects(simulator, harness.spec)
    objects.assert_one_of_each()
    assert resources == Resources(
        project_id=objects.projects[0]["projectId"],
        environment_id=objects.applications[0]["environmentId"],
        application_id=objects.applications[0]["applicationId"],
        app_name=objects.applications[0]["appName"],
        domain_id=objects.domains[0]["domainId"],
        dokploy_deployment_id=objects.dokploy_deployments[0]["deploymentId"],
        image_digest=resources.image_digest,
    )
    assert f"Digest: {resources.image_digest}\n" in simulator.log(objects.dokploy_deployments[0])
    assert [row["title"] for row in objects.dokploy_deployments] == [
        f"deployportal/inst/{harness.spec.stack}/{harness.spec.deployment}/1"
    ]
    assert simulator.visit(harness.spec.host).status_code == 200
    made = count_calls(simulator) - before
    assert {name: made[name] for name in CHANGE_CALLS if made[name]} == dict.fromkeys((*CREATE_CALLS, *SAVE_CALLS), 1)
    assert not {"application.one", "application.search", "application.killBuild", "deployment.allByType"} & set(made)


async def test_phases_are_reported_in_order_with_rising_progress(simulator: Simulator, dokploy: Dokploy) -> None:
    harness = new_harness(simulator)
    await harness.deploy(dokploy)
    begun = [(report.phase, report.progress) for report in harness.reports if report.data.get("step") == "begins"]
    assert begun == [
        ("creating_project", 10),
        ("getting_environment", 20),
        ("creating_application", 35),
        ("configuring_application", 50),
        ("creating_domain", 65),
        ("deploying", 85),
        ("verifying_health", 90),
    ]
    steps = [(report.phase, report.data["step"]) for report in harness.reports if "step" in report.data]
    assert steps == [(phase, step) for phase, _ in begun for step in ("begins", "ends")]
    order = [report.phase for report in harness.reports]
    assert [phase for phase, _ in itertools.groupby(order)] == [phase for phase, _ in begun]
    shown = [report.progress for report in harness.reports if report.progress is not None]
    assert shown == sorted(shown)
    assert {report.status for report in harness.reports} == {"in_progress"}


async def test_the_intent_to_create_an_object_is_recorded_before_and_its_id_after(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    harness = new_harness(simulator)
    receipts: list[tuple[str, str, dict[str, int]]] = []

    def count_objects(progress: Progress) -> None:
        if progress.kind == "receipt":
            receipts.append(
                (progress.data["state"], progress.data["kind"], StackObjects(simulator, harness.spec).counts())
            )

    harness.on_report = count_objects
    resources = await harness.deploy(dokploy)
    assert [(state, kind) for state, kind, _ in receipts] == [
        (state, kind) for kind in ("project", "application", "domain", "deploy") for state in ("intended", "made")
    ]
    for state, kind, counts in receipts:
        if kind != "deploy":
            assert counts[f"{kind}s"] == (state == "made")
    ids = {report.data["kind"]: report.data.get("id") for report in harness.reports if report.kind == "receipt"}
    assert ids == {
        "project": resources.project_id,
        "application": resources.application_id,
        "domain": resources.domain_id,
        "deploy": resources.dokploy_deployment_id,
    }


async def test_a_phase_is_reported_before_its_first_call(simulator: Simulator, dokploy: Dokploy) -> None:
    """The first call of each phase is held until its beginning is reported: a late report would cause a deadlock."""
    gates = {
        "creating_project": "project.all",
        "getting_environment": "environment.byProjectId",
        "creating_application": "application.create",
        "configuring_application": "application.saveDockerProvider",
        "creating_domain": "domain.create",
        "deploying": "application.deploy",
        "verifying_health": "container",
    }
    assert list(gates) == [phase.name for phase in PHASES]
    for gate in gates.values():
        simulator.close_gate(gate)
    harness = new_harness(simulator)

    def open_gate(progress: Progress) -> None:
        if progress.data.get("step") == "begins":
            simulator.open_gate(gates[progress.phase])

    harness.on_report = open_gate
    await harness.deploy(dokploy)
    StackObjects(simulator, harness.spec).assert_one_of_each()


async def test_no_call_is_made_until_a_report_is_accepted(simulator: Simulator, dokploy: Dokploy) -> None:
    harness = new_harness(simulator)
    report_held, release = asyncio.Event(), asyncio.Event()

    class SlowHarness(EngineHarness):
        async def report(self, progress: Progress) -> None:
            await super().report(progress)
            if progress.phase == "creating_project" and progress.data.get("step") == "ends":
                report_held.set()
                await release.wait()

    slow = SlowHarness(harness.spec)
    task = asyncio.ensure_future(slow.deploy(dokploy))
    await asyncio.wait_for(report_held.wait(), 5)
    before = count_calls(simulator)
    for _ in range(3):  # other calls are not held up
        await dokploy.version()
    assert count_calls(simulator) - before == Counter({"settings.getDokployVersion": 3})
    assert slow.reports[-1].phase == "creating_project"
    release.set()
    await task


async def test_a_repeated_deployment_changes_nothing(simulator: Simulator, dokploy: Dokploy) -> None:
    harness = new_harness(simulator)
    first = await harness.deploy(dokploy)
    objects = StackObjects(simulator, harness.spec)
    before = count_calls(simulator)
    second = EngineHarness(harness.spec)
    assert await second.deploy(dokploy) == first
    made = count_calls(simulator) - before
    assert {name for name in made if name in CHANGE_CALLS} == set(SAVE_CALLS)
    objects_after = StackObjects(simulator, harness.spec)
    objects_after.applications[0]["applicationStatus"] = "done"  # a save in Dokploy sets it to idle
    assert vars(objects_after) == vars(objects)
    assert "The project already exists" in second.messages()


async def test_a_redeployment_sends_a_new_dokploy_deployment_for_the_same_objects(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    harness = new_harness(simulator)
    await harness.deploy(dokploy)
    newer = EngineHarness(replace(harness.spec, deployment="dep_newer", image="registry.test/shop/web:2"))
    await newer.deploy(dokploy)
    objects = StackObjects(simulator, newer.spec)
    objects.assert_one_of_each()
    assert len(objects.dokploy_deployments) == 2


async def test_no_report_and_no_recorded_request_contains_a_secret(simulator: Simulator, dokploy: Dokploy) -> None:
    harness = new_harness(simulator)
    simulator.turn(pull_error=f"denied: {SECRET} {PASSWORD} {KEY}")
    exchanges: list[str] = []
    reporter = harness.reporter()
    reporter.secrets = (KEY, *harness.spec.secrets)
    with pytest.raises(Failure) as caught:
        await harness.deploy(
            dokploy.for_deployment(
                lambda procedure: None, lambda exchange: exchanges.append(f"{exchange} {exchange!r}")
            ),
            reporter,
        )
    await reporter.finish(Ending("failed", "failure", "The end", caught.value, [f"a thing ({SECRET})"]))
    output = f"{harness.reports!r} {exchanges} {harness.spec!r}"
    assert "denied: *** *** ***" in output
    assert "application.saveEnvironment" in output
    for secret in (SECRET, PASSWORD, KEY):
        assert secret not in output


async def test_a_phase_that_exceeds_its_timeout_fails(
    simulator: Simulator, dokploy: Dokploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = new_harness(simulator)
    simulator.close_gate("job")
    phases = [replace(phase, timeout=0.2) if phase.name == "deploying" else phase for phase in PHASES]
    failure = await harness.deploy_and_fail(dokploy, phases=phases)
    assert (failure.code, failure.phase) == ("TIMEOUT", "deploying")


@pytest.mark.parametrize("gate", ["project.create", "domain.create:answer", "job"])
async def test_heartbeats_are_reported_while_a_call_or_a_pull_takes_long(
    simulator: Simulator, dokploy: Dokploy, monkeypatch: pytest.MonkeyPatch, gate: str
) -> None:
    monkeypatch.setattr(retry, "HEARTBEAT_SECONDS", 0.05)
    harness = new_harness(simulator)
    simulator.close_gate(gate)
    task = asyncio.ensure_future(harness.deploy(dokploy))
    await eventually(lambda: count_heartbeats(harness) >= 5)
    simulator.open_gate(gate)
    await task
    assert longest_silence(harness) < 5  # the portal's promise; here it is a fraction of that
    phase_reports = [(report.phase, report.message) for report in harness.reports if report.kind == "phase"]
    for (_, before), (_, now), report in zip(
        phase_reports, phase_reports[1:], [r for r in harness.reports if r.kind == "phase"][1:], strict=False
    ):
        if report.data.get("alive"):
            assert now == before, "a heartbeat repeats the last message"
