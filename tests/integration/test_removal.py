"""A stack is removed by its owner, a script or an operator: every object is removed, and its name is free again."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import httpx
import pytest

from ..gates import held
from ..processes import Portal, until
from ..users import browser, new_token, operator, submit
from .test_resume import KINDS, assert_no_event_missing

PHASES = ["removing_domain", "removing_application", "removing_project"]


@pytest.fixture
def person(portal: Portal) -> Iterator[httpx.Client]:
    """Yield a client of the demo user, as a browser would be."""
    with browser(portal) as http:
        http.base_url = httpx.URL(f"http://localhost:{portal.port}")
        yield http


@pytest.fixture
def token(person: httpx.Client) -> dict[str, str]:
    return {**new_token(person), "Accept": "application/json"}


def final_state(portal: Portal, token: dict[str, str], answer: httpx.Response) -> Any:
    """Wait until the deployment that this answer announces has ended, and return its state."""
    assert answer.status_code == 202, answer.text
    address = answer.json()["statusUrl"]
    ask = lambda: portal.http.get(address, headers=token).json()  # noqa: E731
    return until(lambda: (state := ask())["status"] != "in_progress" and state, 30)


def deploy_and_wait(portal: Portal, token: dict[str, str], name: str, **more: Any) -> Any:
    state = final_state(portal, token, portal.http.post("/api/deploy", json={"name": name, **more}, headers=token))
    assert state["status"] == "success", state
    return state


def count_objects(portal: Portal, name: str) -> dict[str, int]:
    """Return the number of this stack's objects at Dokploy, by type."""
    state = portal.dokploy()
    apps = {row["appName"] for row in state["applications"] if row["name"] == name}
    return {
        "projects": sum(row["name"] == name for row in state["projects"]),
        "applications": len(apps),
        "domains": sum(row["host"] == f"{name}.localhost" for row in state["domains"]),
        "services": sum(row["name"].startswith(f"{name}-") for row in state["services"]),
    }


ONE_OF_EACH, NO_OBJECTS = dict.fromkeys(KINDS, 1), dict.fromkeys(KINDS, 0)


def test_a_script_removes_its_stack_and_the_name_is_free_again(portal: Portal, token: dict[str, str]) -> None:
    deploy_and_wait(portal, token, "script-removes")
    assert count_objects(portal, "script-removes") == ONE_OF_EACH
    answer = portal.http.delete("/api/stacks/script-removes", headers=token)
    state = final_state(portal, token, answer)
    assert (state["kind"], state["phase"], state["progress"], state["error"]) == ("remove", "completed", 100, None)
    assert state["message"] == "script-removes is gone, and its name is free again"
    assert (state["url"], state["resources"]) == (None, {})
    assert count_objects(portal, "script-removes") == NO_OBJECTS
    assert portal.router.get("/", headers={"Host": "script-removes.localhost"}).status_code == 404
    events = portal.http.get(f"{answer.json()['eventsUrl']}?after=0", headers=token).json()["events"]
    begun = [(e["phase"], e["progress"]) for e in events if e["data"].get("step") == "begins"][1:]
    assert begun == [*zip(PHASES, (25, 50, 75), strict=True)]
    receipts = [(e["data"]["kind"], e["data"]["state"]) for e in events if e["kind"] == "receipt"]
    for kind in ("domain", "application", "project"):
        assert [state for seen, state in receipts if seen == kind] == ["removing", "gone", "gone"]
    assert portal.has_free("script-removes")
    again = portal.http.delete("/api/stacks/script-removes", headers=token)
    assert (again.status_code, again.json()["error"]["code"]) == (404, "NOT_FOUND")
    deploy_and_wait(portal, token, "script-removes")


def test_a_user_removes_a_stack_by_typing_its_name(portal: Portal, person: httpx.Client, token: dict[str, str]) -> None:
    deploy_and_wait(portal, token, "typed-name")
    page = link(person, "/", "typed-name", "remove")
    shown = person.get(page)
    assert "Remove typed-name?" in shown.text
    wrong = submit(person, page, {"name": "typed"})
    assert wrong.status_code == 400
    assert "type its name: typed-name" in wrong.text
    assert count_objects(portal, "typed-name") == ONE_OF_EACH
    deployment = submit(person, page, {"name": "typed-name"}).headers["Location"]
    until(lambda: "The stack was removed" in person.get(deployment).text, 30)
    html = person.get(deployment).text
    assert "Removed, nothing left behind" in html
    assert html.count("removed and verified") == 3
    assert "Change settings and deploy" not in html
    assert count_objects(portal, "typed-name") == NO_OBJECTS
    stale = submit(person, "/tokens", {"name": "typed-name"}, action=page)
    assert stale.status_code == 302
    assert "“typed-name” has been removed." in person.get("/").text


def link(person: httpx.Client, page: str, name: str, what: str) -> str:
    """Return the address that the list of stacks links to for this stack."""
    html = person.get(page).text
    entry = html[html.index(f'id="stack-{name}"') :]
    found = re.search(rf'href="(/stacks/stk_\w+/{what})"', entry)
    assert found is not None
    return found[1]


def test_simultaneous_removals_create_one_deployment_and_a_busy_stack_is_refused(
    portal: Portal, token: dict[str, str]
) -> None:
    deploy_and_wait(portal, token, "twice-removed")
    with held(portal, "application.delete"):
        first, second = (portal.http.delete("/api/stacks/twice-removed", headers=token) for _ in range(2))
        assert first.json() == second.json()
        again = portal.http.post("/api/deploy", json={"name": "twice-removed"}, headers=token)
        assert (again.status_code, again.json()["error"]["code"]) == (409, "BUSY")
        assert "is being removed" in again.json()["error"]["message"]
    assert final_state(portal, token, first)["status"] == "success"
    with held(portal, "job"):
        deployment = portal.http.post("/api/deploy", json={"name": "twice-removed"}, headers=token)
        refused = portal.http.delete("/api/stacks/twice-removed", headers=token)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "BUSY")
    assert final_state(portal, token, deployment)["status"] == "success"
    assert count_objects(portal, "twice-removed") == ONE_OF_EACH


def test_a_failed_removal_names_what_is_left_and_the_next_one_continues(
    portal: Portal, person: httpx.Client, token: dict[str, str]
) -> None:
    deploy_and_wait(portal, token, "stays-behind")
    portal.fault("application.delete", "error500", times=None)
    answer = portal.http.delete("/api/stacks/stays-behind", headers=token)
    state = final_state(portal, token, answer)
    assert (state["status"], state["phase"], state["error"]["phase"]) == ("failure", "failed", "removing_application")
    assert state["message"] == "Left at Dokploy: the application, the project"
    assert count_objects(portal, "stays-behind") == {**ONE_OF_EACH, "domains": 0}
    html = person.get(answer.json()["pageUrl"]).text
    assert "Some objects could not be removed. The name “stays-behind” stays yours until they are" in html
    assert portal.http.get("/api/check/stays-behind").json()["available"] is False
    assert "Finish cleanup" in html
    portal.switches.delete("faults")
    page = link(person, "/", "stays-behind", "remove")
    again = submit(person, page, {}).headers["Location"]  # removing leftovers needs no typed name
    until(lambda: "The stack was removed" in person.get(again).text, 30)
    assert count_objects(portal, "stays-behind") == NO_OBJECTS


def test_a_removal_that_could_not_begin_changes_nothing(portal: Portal, token: dict[str, str]) -> None:
    deploy_and_wait(portal, token, "not-begun")
    portal.fault("project.all", "redirect", times=1)
    state = final_state(portal, token, portal.http.delete("/api/stacks/not-begun", headers=token))
    assert (state["phase"], state["error"]["code"]) == ("failed", "DOKPLOY_ADDRESS_WRONG")
    assert state["message"] == "Nothing was removed and nothing has changed"
    assert count_objects(portal, "not-begun") == ONE_OF_EACH
    assert portal.router.get("/", headers={"Host": "not-begun.localhost"}).status_code == 200
    assert deploy_and_wait(portal, token, "not-begun")["kind"] == "redeploy"


def test_a_removal_names_an_object_that_lost_its_mark_until_the_mark_is_put_back(
    portal: Portal, person: httpx.Client, token: dict[str, str]
) -> None:
    made = deploy_and_wait(portal, token, "mark-changed")["resources"]
    project = next(row for row in portal.dokploy()["projects"] if row["projectId"] == made["projectId"])
    change_by_hand(portal, "project.update", projectId=made["projectId"], description="mine now")
    answer = portal.http.delete("/api/stacks/mark-changed", headers=token)
    state = final_state(portal, token, answer)
    assert (state["phase"], state["error"]["phase"]) == ("failed", "removing_project")
    assert (state["error"]["code"], state["message"]) == ("MARK_CHANGED_AT_DOKPLOY", "Left at Dokploy: the project")
    assert count_objects(portal, "mark-changed") == {**NO_OBJECTS, "projects": 1}
    with closing(sqlite3.connect(portal.data / "portal.sqlite3", timeout=10)) as database:
        query = "SELECT kind, state FROM deployments_receipt WHERE external_id IN (?, ?, ?)"
        states = dict(database.execute(query, [made[f"{kind}Id"] for kind in ("project", "application", "domain")]))
    assert states == {"project": "left", "application": "gone", "domain": "gone"}
    html = person.get(answer.json()["pageUrl"]).text
    assert f"Put “{project['description']}” into the description again, or remove the project in Dokploy." in html
    assert portal.http.get("/api/check/mark-changed").json()["available"] is False
    change_by_hand(portal, "project.update", projectId=made["projectId"], description=project["description"])
    again = final_state(portal, token, portal.http.delete("/api/stacks/mark-changed", headers=token))
    assert again["message"] == "mark-changed is gone, and its name is free again"
    assert count_objects(portal, "mark-changed") == NO_OBJECTS


def change_by_hand(portal: Portal, procedure: str, **given: Any) -> None:
    """Call a Dokploy procedure as another user would, without the portal. Return its result."""
    key = {"x-api-key": (portal.data / "simulator-key").read_text()}
    address = f"http://127.0.0.1:{portal.port + 1}/api/{procedure}"
    portal.http.post(address, json=given, headers=key).raise_for_status()


def test_another_users_stack_is_not_found(portal: Portal, person: httpx.Client) -> None:
    id = portal.deploy("nobodys-own")
    portal.finished(id)
    anonymous = portal.http.delete("/api/stacks/nobodys-own")
    mine = portal.http.delete("/api/stacks/nobodys-own", headers=new_token(person))
    for answer in (anonymous, mine):
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "NOT_FOUND")
    with closing(operator(portal)) as admin:
        listed = admin.get("/admin/deployments/stack/?q=nobodys-own").text
        found = re.search(r'href="(/stacks/stk_\w+/remove)"', listed)
        assert found is not None
        assert person.get(found[1]).status_code == 404
        deployment = submit(admin, found[1], {"name": "nobodys-own"}).headers["Location"]
        until(lambda: "The stack was removed" in admin.get(deployment).text, 30)
        assert re.search(r"Requested by</dt>\s*<dd>operator", admin.get(deployment).text)
    assert count_objects(portal, "nobodys-own") == NO_OBJECTS


def test_a_redeploy_page_is_filled_in_and_applies_its_values(
    portal: Portal, person: httpx.Client, token: dict[str, str]
) -> None:
    deploy_and_wait(
        portal, token, "filled-in", template="web-page", parameters={"GREETING": "one", "SHOW_CLOCK": False}
    )
    page = link(person, "/", "filled-in", "deploy")
    shown = person.get(page).text
    assert 'value="one"' in shown
    assert re.search(r'name="web-page-SHOW_CLOCK"[^>]*checked', shown) is None
    deployment = submit(person, page, {"template": "web-page", "web-page-GREETING": "two"}).headers["Location"]
    until(lambda: "The stack is live" in person.get(deployment).text, 30)
    assert "Redeployment" in person.get(deployment).text
    application = next(row for row in portal.dokploy()["applications"] if row["name"] == "filled-in")
    assert "GREETING='two'" in application["env"]
    assert count_objects(portal, "filled-in") == ONE_OF_EACH
    kept = deploy_and_wait(portal, token, "filled-in")  # without template and parameters all values stay
    application = next(row for row in portal.dokploy()["applications"] if row["name"] == "filled-in")
    assert kept["kind"] == "redeploy"
    assert "GREETING='two'" in application["env"]


def test_a_redeploy_of_a_busy_stack_is_refused_with_a_sentence(
    portal: Portal, person: httpx.Client, token: dict[str, str]
) -> None:
    deploy_and_wait(portal, token, "busy-again", template="web-page")
    page = link(person, "/", "busy-again", "deploy")
    with held(portal, "job"):
        deployment = portal.http.post("/api/deploy", json={"name": "busy-again"}, headers=token)
        refused = submit(person, page, {"template": "web-page"})
        assert refused.status_code == 400
        assert "“busy-again” is being deployed." in refused.text
    assert final_state(portal, token, deployment)["status"] == "success"


REMOVAL_PLACES = [
    "project.remove:answer",
    "project.remove",
    "application.delete:answer",
    "application.delete",
    "domain.delete:answer",
    "domain.delete",
    "application.cleanQueues",
]


def test_every_removal_resumes_after_kill_9_in_every_phase(own_portal: Any) -> None:
    portal = own_portal().start()
    with browser(portal) as http:
        http.base_url = httpx.URL(f"http://localhost:{portal.port}")
        token = {**new_token(http), "Accept": "application/json"}
    names = {f"gone-{number}": place for number, place in enumerate(REMOVAL_PLACES)}
    for name in names:
        deploy_and_wait(portal, token, name)
    with ExitStack() as holding:
        answers = {}
        for name, place in names.items():
            holding.enter_context(held(portal, place))
            answers[name] = portal.http.delete(f"/api/stacks/{name}", headers=token)
            portal.wait_at(place)
        portal.kill()
    portal.start()
    for name, answer in answers.items():
        state = final_state(portal, token, answer)
        assert state["phase"] == "completed", (name, state)
        portal.http.headers.update(token)
        assert_no_event_missing(portal, state["deploymentId"])
    state = portal.dokploy()
    assert {kind: state[kind] for kind in KINDS} == {kind: [] for kind in KINDS}
