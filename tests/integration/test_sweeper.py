"""The sweeper removes leftovers by itself; unrecorded objects are shown to operators and removed only on request."""

import asyncio
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from typing import Any

import httpx
import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.conf import settings
from django.db import connection
from django.db.models import F
from django.test import Client
from django.utils import timezone

from deployments.engine import failures
from deployments.engine.dokploy import Dokploy
from deployments.engine.errors import DokployError
from deployments.engine.spec import MarkedObject, Progress, mark_of
from deployments.models import (
    Deployment,
    ExternalResource,
    Installation,
    Orphan,
    Refusal,
    Stack,
    Template,
    request_due_removals,
    retry_deployment,
    wire,
)
from deployments.models.orphan import SCAN_SECONDS
from deployments.models.stack import StackQuerySet
from deployments.worker.sweeper import scan_for_orphans

from ..gates import held
from ..processes import KEY, Portal, Simulator, until
from ..users import People, browser, end, new_token, operator, submit
from .test_removal import NO_OBJECTS, ONE_OF_EACH, change_by_hand, count_objects, deploy_and_wait, final_state


@pytest.fixture(name="people")
def three_people(db: None) -> People:
    return People()


def left_behind(people: People, name: str = "shop") -> Deployment:
    """Return a failed deployment that could not remove what it created."""
    deployment = people.deploy(people.owner, name)
    claimed = Deployment.claim("worker", excluding=[])
    assert claimed is not None
    mark = {"kind": "project", "mark": f"m/{name}"}
    claimed.record(Progress("receipt", "creating_project", "", data={"state": "made", "id": name, **mark}))
    error = {
        "phase": "deploying",
        "code": "TIMEOUT",
        "message": "No.",
        "evidence": "",
        "retryable": True,
        "left": ["x"],
    }
    claimed.record(Progress("phase", "rolling_back", "Left", "failure", progress=95, error=error))
    deployment.refresh_from_db()
    assert deployment.stack.state == Stack.State.BROKEN
    return deployment


def age(deployment: Deployment, seconds: float) -> None:
    Deployment.objects.filter(pk=deployment.pk).update(completed_at=timezone.now() - timedelta(seconds=seconds))


def test_a_sweeper_with_an_outdated_list_removes_no_stack_that_is_live_again(
    people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = left_behind(people)
    age(deployment, 65)
    seen = Stack.objects.to_be_removed()
    assert seen == [deployment.stack]
    end(retry_deployment(deployment, people.owner, via="api"))
    monkeypatch.setattr(StackQuerySet, "to_be_removed", lambda stacks: seen)
    assert request_due_removals() == []
    deployment.stack.refresh_from_db()
    assert deployment.stack.state == Stack.State.LIVE


def test_the_removal_of_leftovers_is_due_after_a_minute_and_later_after_each_failure(people: People) -> None:
    deployment = left_behind(people)
    assert request_due_removals() == []
    for pause in (60, 240, 960):
        age(deployment, pause - 5)
        assert request_due_removals() == []
        age(deployment, pause + 5)
        (deployment,) = request_due_removals()
        assert (deployment.kind, deployment.via, deployment.requested_by) == ("remove", "sweeper", people.owner)
        assert request_due_removals() == [], "a second sweeper requests no second removal"
        working = Deployment.claim("worker", excluding=[])
        assert working is not None
        working.record(Progress("receipt", "removing_project", "", data={"state": "removing", "kind": "project"}))
        error = {"phase": "removing_project", "code": "TIMEOUT", "message": "", "evidence": "", "retryable": True}
        deployment = working
        deployment.record(Progress("phase", "failed", "Left", "failure", error=error))


def test_a_stack_that_has_been_live_is_never_swept(people: People) -> None:
    end(people.deploy(people.owner, "shop"))
    broken = end(people.deploy(people.owner, "shop"), "failure", left=["the previous version"])
    Stack.objects.update(state=Stack.State.BROKEN)
    age(broken, 10**6)
    assert request_due_removals() == []


def test_an_expired_stack_is_removed(people: People) -> None:
    deployment = end(people.deploy(people.owner, "shop"))
    Stack.objects.filter(pk=deployment.stack_id).update(expires_at=timezone.now() + timedelta(hours=1))
    assert request_due_removals() == []
    Stack.objects.filter(pk=deployment.stack_id).update(expires_at=timezone.now() - timedelta(seconds=1))
    (removal,) = request_due_removals()
    assert (removal.stack_id, removal.kind) == (deployment.stack_id, "remove")
    for pause in (240, 960):  # Dokploy refuses the removal; the stack stays live
        failed = end(removal, "failure", phase="removing_domain", code="DOKPLOY_KEY_REFUSED")
        assert failed.stack.state == Stack.State.LIVE
        age(failed, pause - 5)
        assert request_due_removals() == []
        age(failed, pause + 5)
        (removal,) = request_due_removals()


def test_recorded_objects_and_those_of_a_deployment_in_progress_are_not_orphans(people: People) -> None:
    broken = left_behind(people)
    running = people.deploy(people.other, "busy")
    found = [
        MarkedObject("project", "shop", "shop", f"i/{broken.stack_id}"),
        MarkedObject("project", "p2", "busy", f"i/{running.stack_id}"),
        MarkedObject("project", "p3", "lost", "i/stk_00000000000000000001"),
        MarkedObject("application", "a3", "lost", "i/stk_00000000000000000001"),
    ]
    Orphan.report(found)
    Orphan.report(found)
    assert list(Orphan.objects.order_by("external_id").values_list("external_id", flat=True)) == ["a3", "p3"]
    Orphan.report(found[:2])
    assert not Orphan.objects.exists(), "a removed object is not reported again"


def test_one_of_several_workers_scans_for_orphans(people: People) -> None:
    assert [Orphan.scan_is_due(60) for _ in range(3)] == [True, False, False]
    Installation.objects.update(orphans_scanned_at=timezone.now() - timedelta(seconds=61))
    assert [Orphan.scan_is_due(60) for _ in range(2)] == [True, False]


def test_a_scan_that_crashed_is_due_again_soon(people: People) -> None:
    def later() -> None:
        passed = timedelta(seconds=SCAN_SECONDS + 1)
        Installation.objects.update(orphans_scanned_at=F("orphans_scanned_at") - passed)

    assert [Orphan.scan_is_due(600) for _ in range(2)] == [True, False]
    later()
    assert Orphan.scan_is_due(600)
    Orphan.report([])
    later()
    assert not Orphan.scan_is_due(600), "this scan was completed"


def test_a_scan_that_failed_is_due_again_at_once(people: People, simulator: Simulator) -> None:
    create_unrecorded_project(simulator)
    simulator.fault("project.all", "redirect")
    with pytest.raises(DokployError):
        async_to_sync(scan)(simulator)
    async_to_sync(scan)(simulator)
    assert Orphan.objects.get().name == "lost"
    assert not Orphan.scan_is_due(60), "a successful scan is not due again"


def create_unrecorded_project(simulator: Simulator) -> None:
    """Create a project at Dokploy that carries the portal's mark but has no record."""
    simulator.do("project.create", name="lost", description=f"{mark_of(Installation.current().id)}stk_{'0' * 20}")


async def scan(simulator: Simulator) -> None:
    dokploy = Dokploy(f"http://127.0.0.1:{simulator.port}", KEY)
    try:
        await scan_for_orphans(dokploy)
    finally:
        await dokploy.aclose()


def test_a_stack_removed_during_a_scan_is_not_an_orphan(people: People, simulator: Simulator) -> None:
    create_unrecorded_project(simulator)
    deployment = end(people.deploy(people.owner, "shop"))
    mark = f"{mark_of(Installation.current().id)}{deployment.stack_id}"
    id = simulator.do("project.create", name="shop", description=mark)["project"]["projectId"]
    receipt = ExternalResource.objects.create(
        stack=deployment.stack, deployment=deployment, resource_type="project", mark=mark, external_id=id
    )

    def remove() -> None:
        simulator.do("project.remove", projectId=id)
        ExternalResource.objects.filter(pk=receipt.pk).update(state=ExternalResource.State.GONE)

    async def remove_during_scan() -> None:
        scanning = asyncio.ensure_future(scan(simulator))
        assert await asyncio.to_thread(simulator.wait_at, "project.all:answer") == 1
        await sync_to_async(remove)()  # Dokploy listed it before its record was removed
        simulator.open_gate("project.all:answer")
        await scanning

    simulator.close_gate("project.all:answer")
    async_to_sync(remove_during_scan)()
    assert [orphan.name for orphan in Orphan.objects.all()] == ["lost"]


def test_an_orphan_whose_mark_was_changed_is_not_recorded_again(people: People) -> None:
    Orphan.report([MarkedObject("project", "p1", "lost", "i/stk_00000000000000000001 (keep this!)")])
    with pytest.raises(Refusal) as refused:
        Orphan.objects.get().remove(people.operator)
    assert refused.value.code == "CONFLICT"
    assert not Stack.objects.exists()


def test_an_orphan_with_the_mark_of_an_existing_stack_is_not_removed(people: People) -> None:
    deployment = end(people.deploy(people.owner, "shop"))
    Orphan.report([MarkedObject("application", "a1", "shop", f"i/{deployment.stack_id}")])
    with pytest.raises(Refusal) as refused:
        Orphan.objects.get().remove(people.operator)
    assert refused.value.code == "CONFLICT"
    assert "“shop”, which exists" in refused.value.message


ORPHAN_MARK = "i/stk_10000000000000000000"


def test_removing_an_orphan_twice_creates_one_deployment(people: People) -> None:
    Orphan.report([MarkedObject("project", "p1", "lost", ORPHAN_MARK)])
    first, second = Orphan.objects.get(), Orphan.objects.get()
    deployment = first.remove(people.operator)
    assert second.remove(people.other) == deployment
    assert list(deployment.stack.external_resources.values_list("external_id", flat=True)) == ["p1"]
    end(deployment)
    with pytest.raises(Refusal) as refused:
        second.remove(people.other)
    assert "no longer an orphan" in refused.value.message
    assert Deployment.objects.count() == 1
    http = Client()
    http.force_login(people.operator)
    stale = http.post(f"/orphans/{second.pk}/remove", follow=True)
    assert stale.redirect_chain == [("/admin/deployments/orphan/", 302)]
    assert "no longer an orphan" in stale.content.decode()


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(settings.ON_SQLITE, reason="on SQLite the transactions run one after the other")
def test_simultaneous_removals_of_an_orphan_create_one_deployment() -> None:
    people, four = People(), 4
    for number in range(5):
        Orphan.report([MarkedObject("project", f"p{number}", "lost", f"{ORPHAN_MARK[:6]}{number}{ORPHAN_MARK[7:]}")])
        start = threading.Barrier(four)

        def remove(orphan: Orphan, start: threading.Barrier = start) -> Deployment:
            connection.ensure_connection()
            start.wait(10)
            try:
                return orphan.remove(people.operator)
            finally:
                connection.close()

        with ThreadPoolExecutor(four) as pool:
            deployments = set(pool.map(remove, [Orphan.objects.get() for _ in range(four)]))
        assert len(deployments) == 1
    assert Deployment.objects.count() == 5


@pytest.mark.parametrize("taken", [False, True])
def test_remains_of_a_removed_stack_are_removed_under_its_name_unless_the_name_is_taken(
    people: People, taken: bool
) -> None:
    gone = end(people.deploy(people.owner, "shop"), "failure")
    assert gone.stack.state == Stack.State.GONE
    if taken:
        end(people.deploy(people.other, "shop"))
    Orphan.report([MarkedObject("project", "p1", "shop", f"i/{gone.stack_id}")])
    removal = Orphan.objects.get().remove(people.operator)
    assert removal.stack_id == gone.stack_id
    assert removal.stack.name == (f"left-{gone.stack_id[4:16]}" if taken else "shop")
    if not taken:
        gone.stack.refresh_from_db()
        assert wire.deployment_dict(gone, "owner")["name"] == "shop"
        with pytest.raises(Refusal) as refused:
            people.deploy(people.other, "shop")
        assert refused.value.code == "NAME_TAKEN"


def test_removing_an_orphan_without_any_template_is_refused_with_a_sentence(people: People) -> None:
    Template.objects.all().delete()
    Orphan.report([MarkedObject("project", "p1", "lost", ORPHAN_MARK)])
    http = Client()
    http.force_login(people.operator)
    answer = http.post(f"/orphans/{Orphan.objects.get().pk}/remove")
    assert answer.status_code == 200
    assert "A removal needs a template, and there is none." in answer.content.decode()
    assert Orphan.objects.exists()


# -- in a portal process -----------------------------------------------------------------------------------------------


def forget(portal: Portal, *statements: str) -> None:
    with closing(sqlite3.connect(portal.data / "portal.sqlite3", timeout=10)) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()


def test_the_sweeper_removes_leftovers_and_reports_unrecorded_objects(own_portal: Any) -> None:
    portal = own_portal(SWEEPER_SECONDS=0.1, ORPHANS_SECONDS=0.1).start()
    with closing(browser(portal)) as http:
        http.base_url = httpx.URL(f"http://localhost:{portal.port}")
        token = {**new_token(http), "Accept": "application/json"}
    portal.turn(pull_error="no space left on device")
    portal.fault("application.delete", "error500", times=None)
    id = portal.deploy("left-over")
    assert "Left at Dokploy" in portal.finished(id)["message"]
    assert count_objects(portal, "left-over") == {**ONE_OF_EACH, "domains": 0, "services": 0}
    portal.switches.delete("faults")
    portal.turn(pull_error=None)
    forget(portal, "UPDATE deployments_deployment SET completed_at = '2020-01-01'")
    until(lambda: count_objects(portal, "left-over") == NO_OBJECTS, 20)
    until(lambda: portal.http.get("/api/check/left-over").json()["available"] is True)

    deploy_and_wait(portal, token, "forgotten")
    deploy_and_wait(portal, token, "remembered")
    of_it = "(SELECT id FROM deployments_stack WHERE name = 'forgotten')"
    forget(
        portal,
        f"DELETE FROM deployments_receipt WHERE stack_id IN {of_it}",
        f"UPDATE deployments_stack SET state = 'gone' WHERE id IN {of_it}",
    )
    with closing(operator(portal)) as admin:
        orphans = lambda: admin.get("/admin/deployments/orphan/").text  # noqa: E731
        listed = until(lambda: (html := orphans()).count('/remove"') == 2 and html, 20)
        assert "remembered" not in listed
        assert count_objects(portal, "forgotten") == ONE_OF_EACH, "unrecorded objects are not deleted without a request"
        page = listed.split('href="/orphans/')[1].split('"')[0]
        with closing(browser(portal)) as visitor:
            assert visitor.get(f"http://localhost:{portal.port}/orphans/{page}").status_code == 404
        deployment = submit(admin, f"/orphans/{page}", {}).headers["Location"]
        until(lambda: "The stack was removed" in admin.get(deployment).text, 20)
        until(lambda: "0 orphans" in orphans(), 20)
    assert count_objects(portal, "forgotten") == NO_OBJECTS
    assert count_objects(portal, "remembered") == ONE_OF_EACH


def test_a_create_that_takes_effect_after_the_undo_is_named_until_an_operator_removes_it(
    own_portal: Any,
) -> None:
    """Its stack is removed by then, and the portal deletes no object that it cannot attribute."""
    portal = own_portal(SWEEPER_SECONDS=0.1, ORPHANS_SECONDS=0.1, STACK_HEALTH_INTERVAL_SECONDS=0.3).start()
    with closing(browser(portal)) as http:
        http.base_url = httpx.URL(f"http://localhost:{portal.port}")
        token = {**new_token(http), "Accept": "application/json"}
    with held(portal, "project.create"):
        answer = portal.http.post("/api/deploy", json={"name": "lands-late"}, headers=token)
        id = answer.json()["deploymentId"]
        portal.wait_at("project.create")
        assert portal.http.post(f"/api/deployments/{id}/cancel", headers=token).status_code == 202
        undone = final_state(portal, token, answer)
        assert (undone["phase"], undone["message"]) == ("rolling_back", "Rollback completed")
        assert count_objects(portal, "lands-late") == NO_OBJECTS
    late = {**NO_OBJECTS, "projects": 1}
    until(lambda: count_objects(portal, "lands-late") == late)
    retry = lambda deployment: portal.http.post(f"/api/deployments/{deployment['deploymentId']}/retry", headers=token)  # noqa: E731
    refused = final_state(portal, token, retry(undone))
    assert (refused["error"]["code"], refused["error"]["retryable"]) == ("LEFTOVER_AT_DOKPLOY", True)
    assert count_objects(portal, "lands-late") == late
    with closing(operator(portal)) as admin:
        orphans = lambda: admin.get("/admin/deployments/orphan/").text  # noqa: E731
        listed = until(lambda: (html := orphans()).count('/remove"') == 1 and html, 20)
        assert failures.get("LEFTOVER_AT_DOKPLOY").operator in admin.get(f"/deployments/{refused['deploymentId']}").text
        page = listed.split('href="/orphans/')[1].split('"')[0]
        deployment = submit(admin, f"/orphans/{page}", {}).headers["Location"]
        until(lambda: "The stack was removed" in admin.get(deployment).text, 20)
    assert count_objects(portal, "lands-late") == NO_OBJECTS
    assert final_state(portal, token, retry(refused))["status"] == "success"
    assert count_objects(portal, "lands-late") == ONE_OF_EACH


def test_a_late_create_beside_a_newer_stack_of_the_name_is_an_orphan_and_not_used(own_portal: Any) -> None:
    portal = own_portal(SWEEPER_SECONDS=0.1, ORPHANS_SECONDS=0.1, STACK_HEALTH_INTERVAL_SECONDS=0.3).start()
    with closing(browser(portal)) as http:
        http.base_url = httpx.URL(f"http://localhost:{portal.port}")
        token = {**new_token(http), "Accept": "application/json"}
    made = deploy_and_wait(portal, token, "doubled")["resources"]["projectId"]
    mark = next(row for row in portal.dokploy()["projects"] if row["projectId"] == made)["description"]
    former = f"{mark.rpartition('/')[0]}/stk_{'0' * 20}"
    change_by_hand(portal, "project.create", name="doubled", description=former)
    again = deploy_and_wait(portal, token, "doubled")
    assert (again["kind"], again["resources"]["projectId"]) == ("redeploy", made)
    with closing(operator(portal)) as admin:
        html = until(lambda: (html := admin.get("/admin/deployments/orphan/").text).count('/remove"') and html, 20)
        assert former in html
        assert mark not in html
    removal = portal.http.delete("/api/stacks/doubled", headers=token)
    assert final_state(portal, token, removal)["message"] == "doubled is gone, and its name is free again"
    assert [row["description"] for row in portal.dokploy()["projects"]] == [former]
