"""Objects of other users, copies, and objects whose mark was changed: they are neither used nor deleted."""

from dataclasses import replace

import pytest

from deployments.engine.dokploy import Dokploy
from deployments.engine.errors import Failure
from deployments.engine.records import Records
from deployments.engine.reporter import Reporter

from ...processes import Simulator
from .harness import (
    CHANGE_CALLS,
    DELETE_CALLS,
    EngineHarness,
    StackObjects,
    count_calls,
    new_harness,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize(
    "description",
    [None, "", "deployportal", "deployportal/inst", "deployportal/another/stk", "deployportal/inst/stk_x"],
)
async def test_a_foreign_project_with_the_same_name_is_refused_and_not_touched(
    simulator: Simulator, dokploy: Dokploy, description: str | None
) -> None:
    harness = new_harness(simulator)
    project = simulator.do("project.create", name=harness.spec.name, description=description)
    simulator.application(project["environment"]["environmentId"], description=description)
    before, objects_before = count_calls(simulator), vars(StackObjects(simulator, harness.spec))
    failure = await harness.deploy_and_fail(dokploy)
    own_installation = description == "deployportal/inst/stk_x"
    assert failure.code == ("LEFTOVER_AT_DOKPLOY" if own_installation else "NAME_IN_USE_AT_DOKPLOY")
    assert (failure.phase, failure.retryable) == ("creating_project", own_installation)
    assert not [report for report in harness.reports if report.kind == "receipt"]
    assert await harness.undo(dokploy) == []
    assert not CHANGE_CALLS & set(count_calls(simulator) - before)
    assert vars(StackObjects(simulator, harness.spec)) == objects_before


async def test_two_installations_at_one_dokploy_keep_their_objects_apart(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    harness = new_harness(simulator)
    await harness.deploy(dokploy)
    twin = EngineHarness(replace(harness.spec, installation="copy"))
    assert (await twin.deploy_and_fail(dokploy)).code == "NAME_IN_USE_AT_DOKPLOY"
    assert await twin.undo(dokploy) == []
    StackObjects(simulator, harness.spec).assert_one_of_each()


async def test_undo_keeps_a_foreign_application_in_its_project(simulator: Simulator, dokploy: Dokploy) -> None:
    harness = new_harness(simulator)
    resources = await harness.deploy(dokploy)
    foreign = simulator.application(str(resources.environment_id), description="foreign")
    leftovers = await harness.undo(dokploy)
    text = (
        "The project contains a service that this portal did not create, perhaps a copy. Remove the service in Dokploy."
    )
    assert leftovers == [f"the project ({text})"]
    objects = StackObjects(simulator, harness.spec)
    assert [row["applicationId"] for row in objects.applications] == [foreign["applicationId"]]
    assert (objects.domains, objects.services) == ([], [])


async def test_a_renamed_project_is_recognized_by_its_id(simulator: Simulator, dokploy: Dokploy) -> None:
    harness = new_harness(simulator)
    resources = await harness.deploy(dokploy)
    simulator.do("project.update", projectId=resources.project_id, name="renamed")
    before, second = count_calls(simulator), EngineHarness(replace(harness.spec, deployment="dep_again"))
    reused = await second.deploy(dokploy, reporter=Reporter(second.report, records=harness.store().records))
    assert (reused.project_id, reused.application_id) == (resources.project_id, resources.application_id)
    assert not {"project.create", "application.create"} & set(count_calls(simulator) - before)


async def test_a_recorded_application_in_another_project_is_reused(simulator: Simulator, dokploy: Dokploy) -> None:
    harness = new_harness(simulator)
    resources = await harness.deploy(dokploy)
    other_project = simulator.do("project.create", name=harness.spec.name, description=harness.spec.mark)["project"][
        "projectId"
    ]
    before, second = count_calls(simulator), EngineHarness(replace(harness.spec, deployment="dep_again"))
    records = Records(
        [
            ("project", harness.spec.mark, other_project),
            ("application", harness.spec.mark, str(resources.application_id)),
            ("domain", f"{harness.spec.mark}/{harness.spec.host}", str(resources.domain_id)),
        ]
    )
    reused = await second.deploy(dokploy, reporter=Reporter(second.report, records=records))
    assert (reused.project_id, reused.application_id) == (other_project, resources.application_id), (
        "recorded objects are preferred"
    )
    assert not {"project.create", "application.create", *DELETE_CALLS} & set(count_calls(simulator) - before)


async def test_copies_and_additional_domains_of_a_user_are_neither_used_nor_removed(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    """A copy, which carries the mark, and a domain with the same host and another path."""
    harness = new_harness(simulator)
    resources = await harness.deploy(dokploy)
    copy = {"name": f"{harness.spec.name} (copy)", "description": harness.spec.mark}
    copied = simulator.do("application.create", environmentId=resources.environment_id, **copy)["applicationId"]
    simulator.do("project.create", **copy)
    domain = {"host": harness.spec.host, "path": "/api", "port": 3001, "domainType": "application"}
    simulator.do("domain.create", applicationId=resources.application_id, **domain)
    second = EngineHarness(replace(harness.spec, deployment="dep_again"))
    reused = await second.deploy(dokploy, reporter=Reporter(second.report, records=harness.store().records))
    assert (reused.project_id, reused.application_id) == (resources.project_id, resources.application_id)
    state = simulator.state()
    assert copied in {row["applicationId"] for row in state["applications"]}
    assert [row["path"] for row in state["domains"] if row["host"] == harness.spec.host] == ["/", "/api"]
    removal = EngineHarness(harness.spec)
    with pytest.raises(Failure) as caught:
        await removal.remove(dokploy, Reporter(removal.report, records=harness.store().records))
    failure = caught.value
    assert (failure.code, failure.phase) == ("DOKPLOY_REFUSED", "removing_project")
    state = simulator.state()
    assert [row["applicationId"] for row in state["applications"] if row["description"] == harness.spec.mark] == [
        copied
    ]
    assert len([row for row in state["projects"] if row["description"] == harness.spec.mark]) == 2


# -- objects whose mark was changed ------------------------------------------------------------------------------------

KINDS = ("domain", "application", "project")
KEPT = {"project": ("project",), "application": KINDS}  # by the object whose description is changed


@pytest.mark.parametrize("kind", KEPT)
@pytest.mark.parametrize("way", ["remove", "undo"])
async def test_an_object_that_lost_its_mark_is_neither_removed_nor_recorded_as_gone(
    simulator: Simulator, dokploy: Dokploy, kind: str, way: str
) -> None:
    harness = new_harness(simulator)
    resources = await harness.deploy(dokploy)
    receipts = [report for report in harness.reports if report.kind == "receipt"]
    id = {f"{kind}Id": getattr(resources, f"{kind}_id")}
    simulator.do(f"{kind}.update", **id, description="changed")
    removal = EngineHarness(harness.spec, receipts)
    if way == "remove":
        with pytest.raises(Failure) as caught:
            await removal.remove(dokploy)
        assert caught.value.code == "MARK_CHANGED_AT_DOKPLOY"
        text = caught.value.message
    else:
        leftovers = await removal.undo(dokploy)
        assert [line.partition(" (")[0] for line in leftovers] == [f"the {one}" for one in KEPT[kind]]
        text = leftovers[0]
    assert f"The description of the {kind} “{harness.spec.name}” was changed in Dokploy" in text
    assert f"Put “{harness.spec.mark}” into the description again, or remove the {kind} in Dokploy." in text
    objects = StackObjects(simulator, harness.spec)
    counts = {one: len(getattr(objects, f"{one}s")) for one in KINDS}
    assert counts == {one: int(one in KEPT[kind]) for one in KINDS}
    assert len(objects.services) == counts["application"], "an application that is kept goes on running"
    gone = {report.data["kind"] for report in removal.reports if report.data.get("state") == "gone"}
    assert gone & set(KINDS) == set(KINDS) - set(KEPT[kind])
    simulator.do(f"{kind}.update", **id, description=harness.spec.mark)
    await EngineHarness(harness.spec, receipts).remove(dokploy)
    StackObjects(simulator, harness.spec).assert_none()


@pytest.mark.parametrize("kind", KEPT)
async def test_a_redeployment_does_not_replace_or_change_an_object_that_lost_its_mark(
    simulator: Simulator, dokploy: Dokploy, kind: str
) -> None:
    harness = new_harness(simulator)
    resources = await harness.deploy(dokploy)
    description = {"description": "changed", "name": f"{harness.spec.name}-renamed"}
    simulator.do(f"{kind}.update", **{f"{kind}Id": getattr(resources, f"{kind}_id")}, **description)
    second = EngineHarness(replace(harness.spec, deployment="dep_again"))
    before = count_calls(simulator)
    failure = await second.deploy_and_fail(dokploy, reporter=Reporter(second.report, records=harness.store().records))
    assert (failure.code, failure.phase) == ("MARK_CHANGED_AT_DOKPLOY", f"creating_{kind}")
    assert not CHANGE_CALLS & set(count_calls(simulator) - before)


async def test_a_resumed_retry_does_not_touch_an_application_that_lost_its_mark(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    harness = new_harness(simulator)
    resources = await harness.deploy(dokploy)
    simulator.do("application.update", applicationId=resources.application_id, description="changed")
    before, retry = count_calls(simulator), EngineHarness(replace(harness.spec, deployment="dep_retry"))
    reporter = Reporter(retry.report, resources=resources, records=harness.store().records)
    await reporter.begin("configuring_application", 50, "Configuring the application")
    assert (await retry.deploy_and_fail(dokploy, reporter=reporter)).code == "MARK_CHANGED_AT_DOKPLOY"
    assert not CHANGE_CALLS & set(count_calls(simulator) - before)
