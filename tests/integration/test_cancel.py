"""A deployment is cancelled and undone; a failed one is retried with the same parameters."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest
from cryptography.fernet import Fernet
from django.test import Client

from deployments.engine.errors import Cancelled
from deployments.engine.spec import Progress
from deployments.models import Deployment, Refusal, Stack, retry_deployment

from ..gates import GATES, held
from ..processes import Portal, until
from ..users import People, browser, end, new_token, submit
from ..users import token as token_of
from .test_removal import NO_OBJECTS, ONE_OF_EACH, count_objects, deploy_and_wait, final_state
from .test_resume import assert_no_event_missing
from .test_sweeper import left_behind


@pytest.fixture
def person(portal: Portal) -> Iterator[httpx.Client]:
    """Yield a client of the demo user, as a browser would be."""
    with closing(browser(portal)) as http:
        http.base_url = httpx.URL(f"http://localhost:{portal.port}")
        yield http


@pytest.fixture
def token(portal: Portal, person: httpx.Client) -> Iterator[dict[str, str]]:
    header = {**new_token(person), "Accept": "application/json"}
    portal.http.headers.update(header)
    yield header
    for name in header:
        del portal.http.headers[name]


def start(portal: Portal, name: str, **more: Any) -> httpx.Response:
    answer = portal.http.post("/api/deploy", json={"name": name, **more})
    assert answer.status_code == 202, answer.text
    return answer


def ask(portal: Portal, id: str, verb: str) -> httpx.Response:
    return portal.http.post(f"/api/deployments/{id}/{verb}")


@pytest.mark.parametrize("phase", GATES)
def test_a_deployment_cancelled_in_any_phase_is_undone_and_leaves_nothing(
    portal: Portal, token: dict[str, str], phase: str
) -> None:
    name = f"cancel-{phase.replace('_', '-')}"[:30].rstrip("-")
    with held(portal, GATES[phase], "project.remove"):  # the undo is still in progress at the second request
        answer = start(portal, name)
        id = answer.json()["deploymentId"]
        until(lambda: portal.status(id)["phase"] == phase)
        if phase == "verifying_health":
            portal.wait_at("container")
        requested = ask(portal, id, "cancel")
        assert requested.status_code == 202, requested.text
        assert ask(portal, id, "cancel").status_code == 202, "a repeated cancel is not recorded twice"
        state = portal.status(id)
        assert (state["status"], state["cancelRequested"]) == ("in_progress", True)
    state = final_state(portal, token, answer)
    assert (state["status"], state["error"]["code"], state["error"]["phase"]) == ("failure", "CANCELLED", phase)
    assert state["progress"] <= 95
    assert count_objects(portal, name) == NO_OBJECTS
    events = assert_no_event_missing(portal, id)
    notes = [(event["message"], event["data"]) for event in events if event["kind"] == "note"]
    assert notes == [("Cancel requested", {"by": "visitor"})]
    assert portal.has_free(name)
    over = ask(portal, id, "cancel")
    assert (over.status_code, over.json()["error"]["code"]) == (409, "CONFLICT")


def test_the_page_shows_that_a_cancel_is_requested_and_then_completed(
    portal: Portal, person: httpx.Client, token: dict[str, str]
) -> None:
    with held(portal, "application.create"):
        answer = start(portal, "cancel-page")
        page = answer.json()["pageUrl"]
        portal.wait_at(
            "application.create"
        )  # nothing is reported during this call, so the worker notices the cancel only after it
        assert "Cancel the deployment of cancel-page?" in person.get(f"{page}/cancel").text
        assert portal.status(answer.json()["deploymentId"])["cancelRequested"] is False, "GET changes nothing"
        assert submit(person, f"{page}/cancel", {}).headers["Location"] == page
        assert "Cancel requested" in person.get(page).text
    final_state(portal, token, answer)
    html = person.get(page).text
    assert "Cancelled" in html
    assert "Undone, nothing left behind" in html
    stale = submit(person, "/tokens", {}, action=f"{page}/cancel")
    assert stale.headers["Location"] == page
    assert "This deployment has ended; there is nothing to cancel." in person.get(page).text


def test_a_cancelled_redeploy_restores_the_former_version(portal: Portal, token: dict[str, str]) -> None:
    deploy_and_wait(portal, token, "cancel-again", template="web-page", parameters={"GREETING": "one"})
    with held(portal, "pull"):
        answer = start(portal, "cancel-again", template="web-page", parameters={"GREETING": "two"})
        id = answer.json()["deploymentId"]
        until(lambda: portal.status(id)["message"] == "Pulling the image and starting the container")
        assert ask(portal, id, "cancel").status_code == 202
        until(lambda: portal.status(id)["phase"] == "rolling_back")
    state = final_state(portal, token, answer)
    assert (state["error"]["code"], state["message"]) == ("CANCELLED", "Rollback completed")
    assert count_objects(portal, "cancel-again") == ONE_OF_EACH
    service = next(row for row in portal.dokploy()["services"] if row["name"].startswith("cancel-again-"))
    assert "GREETING=one" in service["env"]


def test_a_cancel_without_effect_is_refused_with_a_sentence(portal: Portal, token: dict[str, str]) -> None:
    deploy_and_wait(portal, token, "not-cancelled")
    with held(portal, "domain.delete"):
        removal = portal.http.delete("/api/stacks/not-cancelled")
        refused = ask(portal, removal.json()["deploymentId"], "cancel")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "CONFLICT")
        assert "A removal can't be cancelled" in refused.json()["error"]["message"]
    assert final_state(portal, token, removal)["status"] == "success"
    with held(portal, "project.remove"):
        failing = start(portal, "not-cancelled", template="broken")
        portal.wait_at("project.remove")
        refused = ask(portal, failing.json()["deploymentId"], "cancel")
        assert "already being undone" in refused.json()["error"]["message"]
    assert final_state(portal, token, failing)["error"]["code"] == "REGISTRY_UNREACHABLE"


def test_a_caller_with_only_the_link_can_neither_cancel_nor_retry(portal: Portal) -> None:
    with held(portal, "job"):
        id = portal.deploy("link-only")
        for verb in ("cancel", "retry"):
            answer = ask(portal, id, verb)
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "FORBIDDEN")
    assert portal.finished(id)["status"] == "success"


def test_a_retry_has_the_same_parameters_and_creates_nothing_twice(portal: Portal, token: dict[str, str]) -> None:
    portal.turn(pull_error="no space left on device")
    given = {"template": "web-page", "parameters": {"GREETING": "kept"}}
    answer = start(portal, "tried-again", **given)
    failed = final_state(portal, token, answer)
    assert failed["error"]["code"] == "SERVER_DISK_FULL"
    portal.turn(pull_error=None)
    id = failed["deploymentId"]
    with held(portal, "job"):
        first, second = ask(portal, id, "retry"), ask(portal, id, "retry")
        assert first.status_code == 202, first.text
        assert first.json() == second.json(), "two identical requests cause one deployment"
    assert final_state(portal, token, first)["status"] == "success"
    assert count_objects(portal, "tried-again") == ONE_OF_EACH
    application = next(row for row in portal.dokploy()["applications"] if row["name"] == "tried-again")
    assert "GREETING='kept'" in application["env"]
    for deployment, says in (
        (id, "newer deployment of this stack exists"),
        (first.json()["deploymentId"], "succeeded"),
    ):
        refused = ask(portal, deployment, "retry")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "CONFLICT")
        assert says in refused.json()["error"]["message"]


def test_a_retry_on_the_page_leads_to_the_new_deployment_and_reuses_leftovers(
    portal: Portal, person: httpx.Client, token: dict[str, str]
) -> None:
    portal.turn(pull_error="no space left on device")
    portal.fault("application.delete", "error500", times=None)
    answer = start(portal, "left-and-retried")
    state = final_state(portal, token, answer)
    assert "Left at Dokploy: the application" in state["message"]
    portal.turn(pull_error=None)
    portal.switches.delete("faults")
    page = answer.json()["pageUrl"]
    html = person.get(page).text
    assert ">Try again</a>" in html
    assert "Finish cleanup" in html
    sent = person.post(f"{page}/retry", headers={**csrf(person), "HX-Request": "true"})
    assert sent.headers["HX-Redirect"].startswith("/deployments/dep_")
    again = sent.headers["HX-Redirect"]
    until(lambda: "The stack is live" in person.get(again).text, 30)
    assert count_objects(portal, "left-and-retried") == ONE_OF_EACH
    events = assert_no_event_missing(portal, again.rpartition("/")[2])
    begun = [event["phase"] for event in events if event["data"].get("step") == "begins"]
    assert begun == ["initializing", "configuring_application", "creating_domain", "deploying", "verifying_health"]
    assert person.get(again).text.count("already exists") == 3


def csrf(person: httpx.Client) -> dict[str, str]:
    """Return the CSRF header that every page tells htmx to send."""
    html = person.get("/").text
    return {"X-CSRFToken": html.split('"X-CSRFToken": "')[1].split('"')[0]}


# -- in the model: races with the end, names taken by others -----------------------------------------------------------


@pytest.fixture(name="people")
def three_people(db: None) -> People:
    return People()


def test_an_accepted_cancel_prevents_a_later_success(people: People) -> None:
    waiting = people.deploy(people.owner, "shop")
    working = Deployment.claim("worker", excluding=[])
    assert working is not None
    waiting.cancel(people.owner)
    with pytest.raises(Cancelled):
        working.record(Progress("phase", "completed", "It is live", "success", progress=100))
    waiting.refresh_from_db()
    for deployment in (waiting, working):  # the worker continues with the stored row and keeps its lease
        assert (deployment.status, deployment.phase, deployment.progress, deployment.version) == (
            "in_progress",
            "initializing",
            0,
            2,
        )
    assert list(waiting.events.values_list("seq", flat=True)) == [1, 2]


def test_a_second_cancel_has_no_effect_even_during_the_undo(people: People) -> None:
    deployment = people.deploy(people.owner, "shop")
    working = Deployment.claim("worker", excluding=[])
    assert working is not None
    deployment.cancel(people.owner)
    error = {"phase": "initializing", "code": "CANCELLED", "message": "", "evidence": "", "retryable": True}
    working.record(Progress("phase", "rolling_back", "Rolling back", error=error))
    deployment.cancel(people.owner)
    assert deployment.events.filter(type="note").count() == 1


@pytest.mark.parametrize("kind", ["deploy", "redeploy", "retry"])
def test_a_deployment_that_has_not_begun_ends_as_soon_as_it_is_cancelled(people: People, kind: str) -> None:
    """It does not wait for a free worker, unless it is a retry that has objects of an earlier deployment to undo."""
    if kind == "retry":
        retry_deployment(left_behind(people), people.owner, via="api")
    else:
        deployment = people.deploy(people.owner, "shop")
        if kind == "redeploy":
            end(deployment)
            people.deploy(people.owner, "shop")
    deployment = Deployment.objects.in_progress().get()
    deployment.cancel(people.owner)
    left = kind == "retry"
    assert deployment.done is not left
    assert Deployment.objects.due().exists() is left
    deployment.stack.refresh_from_db()
    assert deployment.stack.state == {"deploy": "gone", "redeploy": "live", "retry": "broken"}[kind]
    said = [(event.seq, event.message) for event in deployment.events.all()]
    assert said[:2] == [(1, "Queued"), (2, "Cancel requested")]
    if not left:
        assert said[2:] == [(3, "It had not begun, so there is nothing to undo")]
        state = Client().get(f"/api/deployments/{deployment.pk}", headers=token_of(people.owner)).json()
        assert (state["phase"], state["status"], state["error"]["code"]) == ("failed", "failure", "CANCELLED")
        with pytest.raises(Refusal):
            deployment.cancel(people.owner)
        assert retry_deployment(deployment, people.owner, via="api").status == "in_progress"


def test_a_cancel_after_the_end_is_refused(people: People) -> None:
    deployment = end(people.deploy(people.owner, "shop"))
    with pytest.raises(Refusal) as refused:
        deployment.cancel(people.owner)
    assert refused.value.code == "CONFLICT"
    deployment.refresh_from_db()
    assert (deployment.status, deployment.cancel_requested_at) == ("success", None)


@pytest.mark.parametrize("state", ["live", "broken"])
def test_a_redeploy_that_ends_before_any_change_leaves_the_stack_as_it_was(people: People, state: str) -> None:
    end(people.deploy(people.owner, "shop"))
    Stack.objects.update(state=state)  # broken: a removal has failed
    people.deploy(people.owner, "shop")
    again = Deployment.claim("worker", excluding=[])
    assert again is not None
    error = {"phase": "creating_project", "code": "CANCELLED", "message": "", "evidence": "", "retryable": True}
    again.record(Progress("phase", "creating_project", "Creating the project", progress=10))
    again.record(Progress("phase", "failed", "Nothing was changed", "failure", error=error))
    assert (again.kind, again.stack.state) == ("redeploy", state)


def test_a_retry_is_refused_when_another_user_has_taken_the_name(people: People) -> None:
    failed = end(people.deploy(people.owner, "shop"), "failure")
    assert failed.stack.state == "gone"
    people.deploy(people.other, "shop")
    with pytest.raises(Refusal) as refused:
        retry_deployment(failed, people.owner, via="form")
    assert (refused.value.code, refused.value.field) == ("NAME_TAKEN", "name")


def test_a_retry_is_refused_when_its_secret_can_no_longer_be_decrypted(people: People, settings: Any) -> None:
    people.template.parameters = [{"key": "TOKEN", "label": "Token", "type": "secret"}]
    people.template.save()
    failed = end(people.deploy(people.owner, "shop", TOKEN="given"), "failure")
    settings.ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
    with pytest.raises(Refusal) as refused:
        retry_deployment(failed, people.owner, via="form")
    assert (refused.value.code, "TOKEN" in refused.value.message) == ("CONFLICT", True)


CHANGED_MEANWHILE = [
    ("COLOR", {"type": "choice", "choices": ["green", "blue"]}, "Select a valid choice. red is not one of"),
    ("COUNT", {"type": "integer", "max": 3}, "Ensure this value is less than or equal to 3."),
    ("TITLE", {"type": "text", "required": True}, "This field is required."),
    ("TOKEN", {"type": "secret", "required": True}, "This field is required."),
]


@pytest.mark.parametrize(("key", "change", "why"), CHANGED_MEANWHILE)
def test_a_retry_whose_parameters_no_longer_fit_the_template_is_refused_on_page_and_api(
    people: People, settings: Any, key: str, change: dict[str, Any], why: str
) -> None:
    people.template.parameters = [{"key": "COLOR", "type": "choice", "choices": ["red"]}, {"key": "COUNT"}]
    people.template.save()
    failed = end(people.deploy(people.owner, "shop", COLOR="red", COUNT="7"), "failure")
    kept = [entry for entry in people.template.parameters if entry["key"] != key]
    people.template.parameters = [*kept, {"key": key, "label": f"The {key.lower()}", **change}]
    people.template.save()
    answer = Client().post(f"/api/deployments/{failed.pk}/retry", headers=token_of(people.owner))
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["field"]) == (409, "CONFLICT", key)
    assert error["message"].startswith(f"The stored values no longer fit the template. The {key.lower()}: {why}")
    assert error["message"].endswith("Deploy again with the form.")
    for person in (people.owner, people.operator):
        http = Client()
        http.force_login(person)
        if person == people.operator:
            assert (
                f'href="/deployments/{failed.pk}/retry"' in http.get("/admin/deployments/deployment/").content.decode()
            )
        shown = http.post(f"/deployments/{failed.pk}/retry", follow=True).content.decode()
        assert f"The stored values no longer fit the template. The {key.lower()}: " in shown
    assert Deployment.objects.get() == failed


def test_a_retry_uses_the_defaults_of_parameters_added_meanwhile(people: People) -> None:
    failed = end(people.deploy(people.owner, "shop"), "failure")
    people.template.parameters = [
        {"key": "COLOR", "type": "choice", "choices": ["red"], "default": "red", "required": True},
        {"key": "TOKEN", "type": "secret"},
    ]
    people.template.save()
    failed = Deployment.objects.select_related("template").get(pk=failed.pk)
    again = retry_deployment(failed, people.owner, via="form")
    assert again.stored_spec.environment() == {"COLOR": "red", "TOKEN": ""}


def test_an_operator_cancels_and_retries_any_users_deployment_from_the_admin(people: People) -> None:
    deployment = people.deploy(people.owner, "shop")
    http = Client()
    http.force_login(people.operator)

    def offered() -> set[str]:
        html = http.get("/admin/deployments/deployment/").content.decode()
        return {verb for verb in ("cancel", "retry") if f'href="/deployments/{deployment.pk}/{verb}"' in html}

    assert offered() == {"cancel"}
    assert http.get(f"/deployments/{deployment.pk}/cancel").status_code == 200, "the link opens a confirmation page"
    deployment.refresh_from_db()
    assert deployment.cancel_requested_at is None
    http.post(f"/deployments/{deployment.pk}/cancel")
    assert offered() == {"retry"}
    deployment.refresh_from_db()
    assert deployment.cancel_requested_at is not None
    http.post(f"/deployments/{deployment.pk}/retry")
    assert Deployment.objects.get(retry_of=deployment).stack.owner == people.owner


def test_a_retry_from_a_stale_page_is_refused_and_changes_nothing(people: People) -> None:
    deployment = end(people.deploy(people.owner, "shop"), "failure")
    end(retry_deployment(deployment, people.owner, via="form"))
    before = list(Deployment.objects.order_by("pk").values())
    http = Client()
    http.force_login(people.owner)
    said = http.post(f"/deployments/{deployment.pk}/retry", follow=True).content.decode()
    assert "A newer deployment of this stack exists" in said
    assert list(Deployment.objects.order_by("pk").values()) == before


def test_an_operators_retry_keeps_the_owner(people: People) -> None:
    failed = end(people.deploy(people.owner, "shop"), "failure")
    again = retry_deployment(failed, people.operator, via="form")
    assert (again.stack.owner, again.requested_by, again.retry_of) == (people.owner, people.operator, failed)
