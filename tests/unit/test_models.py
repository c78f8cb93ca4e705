"""The models: their methods change state, and the database refuses invalid rows. All tests are synchronous."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import IntegrityError, connection, transaction
from django.db.models import F
from django.utils import timezone

from deployments import identity
from deployments.engine.spec import Progress, Resources
from deployments.models import (
    Deployment,
    DeploymentRequest,
    Event,
    ExternalResource,
    LeaseLost,
    Refusal,
    Stack,
    Template,
    request_removal,
    retry_deployment,
    wire,
)
from deployments.realtime import deployment_page, stack_list

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def template() -> Template:
    Template.follow_settings()
    return Template.objects.get(from_settings=True)


@pytest.fixture
def anna() -> Any:
    return get_user_model().objects.create_user("anna")


@pytest.fixture
def ben() -> Any:
    return get_user_model().objects.create_user("ben")


def request(person: Any, name: str = "shop", **more: Any) -> Deployment:
    return DeploymentRequest(person, Template.objects.get(from_settings=True), {}, "form", **more).deploy(name)


def claimed(person: Any, name: str = "shop", **more: Any) -> Deployment:
    id = request(person, name, **more).pk
    deployment = Deployment.claim("worker", excluding=[])
    assert deployment is not None
    assert deployment.pk == id
    return deployment


def phase(name: str, message: str = "…", **more: Any) -> Progress:
    return Progress("phase", name, message, **more)


def end(deployment: Deployment, *, succeeded: bool) -> None:
    if succeeded:
        deployment.record(phase("completed", status="success", progress=100))
    else:
        error = {"phase": "deploying", "code": "IMAGE_NOT_FOUND", "message": "…", "retryable": True}
        deployment.record(phase("rolling_back", status="failure", progress=95, error=error))


def test_a_request_takes_the_name_and_queues_a_deployment(anna: Any) -> None:
    deployment = request(anna)
    assert (deployment.stack.name, deployment.stack.owner, deployment.stack.state) == ("shop", anna, "pending")
    assert (deployment.status, deployment.phase, deployment.progress, deployment.version) == (
        "in_progress",
        "initializing",
        0,
        1,
    )
    assert [event.seq for event in deployment.events.all()] == [1]


def test_a_taken_name_is_refused_to_others_and_busy_to_its_owner(anna: Any, ben: Any) -> None:
    request(anna)
    with pytest.raises(Refusal) as others:
        request(ben)
    with pytest.raises(Refusal) as owners:
        request(anna)
    assert (others.value.code, owners.value.code) == ("NAME_TAKEN", "BUSY")
    assert (Stack.objects.count(), Deployment.objects.count()) == (1, 1)


def test_the_owner_of_a_live_stack_redeploys_it(anna: Any) -> None:
    end(claimed(anna), succeeded=True)
    again = request(anna)
    assert again.kind == "redeploy"
    assert again.stack.deployments.count() == 2


def test_an_anonymous_stack_is_never_redeployed(anna: Any) -> None:
    end(claimed(identity.open_user(), address="127.0.0.1"), succeeded=True)
    with pytest.raises(Refusal) as refused:
        request(identity.open_user(), address="127.0.0.1")
    assert refused.value.code == "NAME_TAKEN"


def test_a_name_is_free_again_after_a_complete_undo(anna: Any, ben: Any) -> None:
    deployment = claimed(anna)
    deployment.record(
        Progress("receipt", "creating_project", "", data={"state": "intended", "kind": "project", "mark": "m"})
    )
    deployment.record(
        Progress("receipt", "creating_project", "", data={"state": "made", "kind": "project", "mark": "m", "id": "p1"})
    )
    deployment.record(
        Progress("receipt", "creating_project", "", data={"state": "gone", "kind": "project", "id": "p1"})
    )
    end(deployment, succeeded=False)
    deployment.stack.refresh_from_db()
    assert deployment.stack.state == "gone"
    assert request(ben).stack.owner == ben


def test_a_redeploy_of_a_stack_removed_meanwhile_is_refused(anna: Any, ben: Any) -> None:
    deployment = claimed(anna)
    stale = Stack.objects.get(pk=deployment.stack_id)
    end(deployment, succeeded=False)
    request(ben)
    with pytest.raises(Refusal) as refused:
        DeploymentRequest(anna, stale.template, {}, "form").redeploy(stale)
    assert (refused.value.code, refused.value.message) == ("NOT_FOUND", "“shop” has been removed.")
    assert Deployment.objects.in_progress().get().stack.owner == ben


def test_a_name_stays_taken_while_an_object_is_left(anna: Any, ben: Any) -> None:
    deployment = claimed(anna)
    deployment.record(
        Progress("receipt", "creating_project", "", data={"state": "made", "kind": "project", "mark": "m", "id": "p1"})
    )
    deployment.record(
        Progress("receipt", "creating_project", "", data={"state": "left", "kind": "project", "why": "busy"})
    )
    end(deployment, succeeded=False)
    deployment.stack.refresh_from_db()
    assert deployment.stack.state == "broken"
    assert ExternalResource.objects.get().why == "busy"
    with pytest.raises(Refusal):
        request(ben)
    assert request(anna).stack == deployment.stack


def test_a_failed_redeploy_that_was_restored_leaves_the_stack_live(anna: Any) -> None:
    first = claimed(anna)
    first.record(
        Progress("receipt", "creating_project", "", data={"state": "made", "kind": "project", "mark": "m", "id": "p"})
    )
    end(first, succeeded=True)
    end(claimed(anna), succeeded=False)
    first.stack.refresh_from_db()
    assert first.stack.state == "live"


def test_the_same_idempotency_key_of_one_caller_creates_one_deployment(anna: Any, ben: Any) -> None:
    first = request(anna, idempotency_key="k")
    assert request(anna, idempotency_key="k") == first
    assert request(ben, "other", idempotency_key="k") != first
    assert Deployment.objects.count() == 2


def test_a_repeated_redeploy_with_the_same_idempotency_key_returns_the_first_one(anna: Any) -> None:
    stack = claimed(anna).stack
    end(stack.deployments.get(), succeeded=True)
    request = DeploymentRequest(anna, Template.objects.get(from_settings=True), {}, "form", idempotency_key="k")
    assert request.redeploy(stack) == request.redeploy(stack)
    assert stack.deployments.count() == 2


def test_a_report_updates_the_row_and_adds_an_event_with_the_next_number(anna: Any) -> None:
    deployment = claimed(anna)
    deployment.record(phase("creating_project", "Creating", progress=10))
    deployment.record(Progress("log", "deploying", "line", data={"source": "d", "first": 1, "lines": ["line"]}))
    deployment.record(phase("creating_domain", "Domain", progress=65, resources=Resources(domain_id="d1")))
    deployment.refresh_from_db()
    assert (deployment.phase, deployment.progress, deployment.message, deployment.version) == (
        "creating_domain",
        65,
        "Domain",
        4,
    )
    assert list(deployment.events.values_list("seq", "type")) == [(1, "phase"), (2, "phase"), (3, "log"), (4, "phase")]
    assert wire.deployment_dict(deployment, "owner")["resources"] == {"domainId": "d1"}
    assert wire.deployment_dict(deployment, "owner")["url"] == deployment.stack.url


def test_progress_never_falls(anna: Any) -> None:
    deployment = claimed(anna)
    deployment.record(phase("deploying", progress=85))
    deployment.record(phase("creating_project", progress=10))
    assert [event.progress for event in deployment.events.all()] == [0, 85, 85]


def test_two_workers_never_hold_one_deployment(anna: Any) -> None:
    deployment = claimed(anna)
    assert Deployment.claim("another", excluding=[]) is None
    Deployment.objects.update(lease_until=timezone.now() - timedelta(seconds=1))
    other = Deployment.claim("another", excluding=[])
    assert other is not None
    assert (other.pk, other.lease_token, other.crashes) == (deployment.pk, deployment.lease_token + 1, 1)
    with pytest.raises(LeaseLost):
        deployment.record(phase("creating_project"))
    assert deployment.events.count() == 1
    other.record(phase("creating_project"))
    assert other.events.count() == 2


def test_a_released_deployment_is_due_at_once_and_counts_no_crash(anna: Any) -> None:
    claimed(anna).release()
    again = Deployment.claim("another", excluding=[])
    assert again is not None
    assert again.crashes == 0


def test_nothing_is_written_after_the_end(anna: Any) -> None:
    deployment = claimed(anna)
    end(deployment, succeeded=True)
    with pytest.raises(LeaseLost):
        deployment.record(phase("deploying"))
    assert Deployment.claim("another", excluding=[]) is None
    assert deployment.events.count() == 2


def test_a_heartbeat_renews_only_leases_that_are_still_held(anna: Any, ben: Any) -> None:
    mine, lost = claimed(anna, "mine"), claimed(ben, "lost")
    Deployment.objects.filter(pk=lost.pk).update(lease_owner="another")
    Deployment.objects.filter(pk=mine.pk).update(lease_until=timezone.now())
    assert Deployment.heartbeat("worker", [mine.pk, lost.pk]) == {mine.pk}
    mine.refresh_from_db()
    assert mine.lease_until > timezone.now() + timedelta(seconds=20)


def test_a_heartbeat_renews_only_the_deployments_it_names(anna: Any) -> None:
    deployment = claimed(anna)
    Deployment.objects.update(lease_until=timezone.now() - timedelta(seconds=1))
    assert Deployment.heartbeat("worker", []) == set()
    assert [due.pk for due in Deployment.objects.due()] == [deployment.pk]


def test_a_stack_that_has_been_live_is_redeployed_whatever_its_state(anna: Any) -> None:
    """A failed redeployment must never remove a stack that has been live."""
    end(claimed(anna), succeeded=True)
    Stack.objects.update(state="broken")
    assert request(anna).kind == "redeploy"


def test_a_crash_of_the_portal_does_not_count_as_an_undo(anna: Any) -> None:
    first = claimed(anna)
    first.record(made("p"))
    end(first, succeeded=True)
    again = claimed(anna)
    error = {"phase": "deploying", "code": "DEPLOYMENT_FAILED", "message": "…", "retryable": True}
    again.record(phase("failed", status="failure", error=error))
    again.stack.refresh_from_db()
    assert again.stack.state == "broken"
    said = deployment_page.page_context(again, list(again.events.all()), "owner")
    assert "could not be restored" in said["failure"]["impact"]


def test_a_redeploy_that_changed_objects_before_an_older_version_resumed_it_is_not_shown_as_without_effect(
    anna: Any,
) -> None:
    end(claimed(anna), succeeded=True)
    again = claimed(anna)
    again.record(phase("a_phase_of_another_version", progress=85))
    again.record(made("p"))
    error = {"phase": "creating_project", "code": "CANCELLED", "message": "…", "retryable": True}
    again.record(phase("failed", status="failure", error=error))
    again.stack.refresh_from_db()
    assert again.stack.state == "broken"
    said = deployment_page.page_context(again, list(again.events.all()), "owner")
    assert "could not be restored" in said["failure"]["impact"]


def test_every_later_deployment_knows_the_name_of_the_former_container(anna: Any) -> None:
    deployment = claimed(anna)
    deployment.record(phase("creating_application", resources=Resources(application_id="a", app_name="shop-x1")))
    deployment.record(made("p"))
    end(deployment, succeeded=False)
    assert retry_deployment(deployment, anna, via="form").resources["app_name"] == "shop-x1"
    retry = Deployment.claim("worker", excluding=[])
    assert retry is not None
    end(retry, succeeded=True)
    assert request(anna).resources == {"app_name": "shop-x1"}
    redeploy = Deployment.claim("worker", excluding=[])
    assert redeploy is not None
    end(redeploy, succeeded=True)
    assert request_removal(anna, deployment.stack, via="form").resources == {"app_name": "shop-x1"}


def test_deployments_of_a_stack_keep_their_order_after_the_clock_was_set_back(anna: Any) -> None:
    for _ in range(2):
        end(claimed(anna), succeeded=True)
        Deployment.objects.update(created_at=F("created_at") + timedelta(hours=1))
    first, second = Deployment.objects.order_by("started_at")
    third = claimed(anna)
    assert third.last_successful() == second
    assert [second.superseded, first.superseded] == [True, True]
    assert list(third.stack.deployments.all()) == [third, second, first]


def test_the_page_of_a_crashed_deployment_names_what_is_left(anna: Any) -> None:
    deployment = claimed(anna)
    deployment.record(phase("creating_project", progress=10))
    deployment.record(made("p"))
    error = {"phase": "creating_project", "code": "DEPLOYMENT_FAILED", "message": "…", "retryable": True}
    deployment.record(phase("failed", status="failure", error=error))
    said = deployment_page.page_context(deployment, list(deployment.events.all()), "owner")
    assert said["undo"]["title"] == "Not everything was removed"
    assert [row["state_text"] for row in said["undo"]["rows"]] == ["not removed"]
    assert "some objects are left" in said["failure"]["impact"]


def test_leftovers_and_stacks_removed_since_are_shown_as_removed(anna: Any) -> None:
    live, left = claimed(anna, "was-live"), claimed(anna, "was-left")
    end(live, succeeded=True)
    left.record(made("p"))
    left.record(Progress("receipt", "rolling_back", "", data={"state": "left", "kind": "project", "why": "busy"}))
    end(left, succeeded=False)
    said = deployment_page.page_context(left, list(left.events.all()), "owner")
    assert "some objects are left" in said["failure"]["impact"]
    ExternalResource.objects.update(state="gone")
    Stack.objects.update(state="gone")
    said = deployment_page.page_context(Deployment.objects.get(pk=live.pk), [], "owner")
    was = {"title": "The stack was live", "text": "It has since been removed."}
    assert (said["headline"], said["url"], said["success"]) == ("Removed", None, was)
    said = deployment_page.page_context(Deployment.objects.get(pk=left.pk), list(left.events.all()), "owner")
    assert said["undo"]["complete"]
    assert said["failure"]["impact"] == "You lost nothing, and the name “was-left” is free again."


def test_a_stack_broken_by_a_removal_is_shown_neither_as_live_nor_as_untouched(anna: Any) -> None:
    live = claimed(anna, "half-gone")
    live.record(made("p"))
    end(live, succeeded=True)
    removal = request_removal(anna, live.stack, via="form")
    assert Deployment.claim("worker", excluding=[]) == removal
    removal.refresh_from_db()
    removal.record(phase("removing_domain", data={"step": "begins"}))
    removal.record(Progress("receipt", "removing_domain", "", data={"state": "gone", "kind": "domain", "id": "d"}))
    removal.record(phase("removing_domain", data={"step": "ends"}))
    end(removal, succeeded=False)
    said = deployment_page.page_context(Deployment.objects.get(pk=live.pk), [], "owner")
    was = {"title": "The stack was live", "text": "It has since stopped working."}
    assert (said["headline"], said["url"], said["success"]) == ("No longer live", None, was)
    said = deployment_page.page_context(Deployment.objects.get(pk=removal.pk), list(removal.events.all()), "owner")
    assert "Some objects could not be removed" in said["failure"]["impact"]
    assert said["phases"][0].state == "done", "the removed domain is shown as a completed phase, not as undone"


def test_the_list_shows_a_stack_even_if_another_was_deployed_very_often(anna: Any) -> None:
    for name in ("seldom", *(["often"] * 5), *(f"gone-{number}" for number in range(5))):
        end(claimed(anna, name), succeeded=True)
    last = Deployment.objects.filter(stack__name="often").first()
    assert last is not None
    more = {"stack": last.stack, "template": last.template, "requested_by": anna, "status": "success"}
    Deployment.objects.bulk_create([Deployment(**more, completed_at=timezone.now()) for _ in range(100)])
    Stack.objects.filter(name__startswith="gone").update(state="gone")
    request(anna, "gone-0")
    listed = [deployment.stack.name for deployment in stack_list.newest_deployments(anna.pk)]
    assert sorted(listed) == ["gone-0", "gone-2", "gone-3", "gone-4", "often", "seldom"]
    assert listed[-1] == "seldom"


def made(id: str) -> Progress:
    data = {"state": "made", "kind": "project", "mark": "m", "id": id}
    return Progress("receipt", "creating_project", "", data=data)


def test_the_oldest_deployment_is_claimed_first(anna: Any) -> None:
    first, second = request(anna, "first"), request(anna, "second")
    assert second.queue_position() == 1
    taken = [Deployment.claim("worker", excluding=[]) for _ in range(3)]
    assert [deployment and deployment.pk for deployment in taken] == [first.pk, second.pk, None]


def test_a_quota_refusal_has_the_seconds_until_the_next_try(anna: Any, settings: Any) -> None:
    settings.PORTAL_QUOTA = 1
    request(anna)
    with pytest.raises(Refusal) as refused:
        request(anna, "second")
    assert (refused.value.code, refused.value.retry_after) == ("QUOTA", 3600)


def test_the_database_refuses_invalid_rows(anna: Any) -> None:
    deployment = claimed(anna)
    wrong: list[Any] = [
        lambda: Stack.objects.create(
            name="shop", owner=anna, template=deployment.stack.template, host="x", url="https://x"
        ),
        lambda: Deployment.objects.create(stack=deployment.stack, template=deployment.template, requested_by=anna),
        lambda: Deployment.objects.filter(pk=deployment.pk).update(status="odd"),
        lambda: Deployment.objects.filter(pk=deployment.pk).update(progress=101),
        lambda: Deployment.objects.filter(pk=deployment.pk).update(status="success"),
        lambda: Event.objects.create(deployment=deployment, seq=1, type="phase", phase="x", status="x", progress=0),
        lambda: Stack.objects.filter(pk=deployment.stack_id).update(state="odd"),
    ]
    for write in wrong:
        with pytest.raises(IntegrityError), transaction.atomic():
            write()


def test_the_first_template_follows_the_settings(settings: Any) -> None:
    settings.STACK_IMAGE = "ghcr.io/example/other:2"
    Template.follow_settings()
    assert Template.objects.get(from_settings=True).image == "ghcr.io/example/other:2"


def test_a_deployment_keeps_the_spec_that_it_began_with(anna: Any, settings: Any) -> None:
    deployment = request(anna)
    before = deployment.stack_spec()
    settings.STACK_IMAGE = "ghcr.io/example/other:2"
    Template.follow_settings()
    assert Deployment.objects.get(pk=deployment.pk).stack_spec() == before


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(settings.ON_SQLITE, reason="on SQLite the transactions run one after the other")
def test_of_simultaneous_redeploys_and_removals_only_one_kind_is_accepted(anna: Any) -> None:
    stack = request(anna).stack
    for _ in range(8):
        deployment = Deployment.claim("worker", excluding=[])
        assert deployment is not None
        deployment.record(phase("failed", status="failure", error={"phase": "deploying", "code": "TIMEOUT"}))
        Stack.objects.update(state="live")
        start = threading.Barrier(4)

        def ask(verb: Callable[[Stack], Deployment], start: threading.Barrier = start) -> str:
            connection.ensure_connection()
            start.wait(10)
            try:
                return verb(Stack.objects.get()).kind
            except Refusal as refusal:
                return refusal.code
            finally:
                connection.close()

        redeploy = DeploymentRequest(anna, stack.template, {}, "api").redeploy
        remove = partial(request_removal, anna, via="api")
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(ask, redeploy) for _ in range(2)]
            asked += [pool.submit(ask, remove) for _ in range(2)]
            answers = sorted(future.result() for future in asked)
        assert answers in (["BUSY", "BUSY", "BUSY", "deploy"], ["BUSY", "BUSY", "remove", "remove"])
        assert Deployment.objects.in_progress().count() == 1
