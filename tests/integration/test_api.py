"""The HTTP API that scripts rely on: every field, status code and refusal."""

import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from django.core.cache import cache
from django.test import Client

from deployments.models import ApiToken, Deployment, Event, Refusal, Stack, Template

from ..gates import held
from ..processes import Portal, until
from ..users import People, browser, end, new_token, operator, token

DEPLOYMENT_ID = re.compile(r"dep_[0-9a-f]{32}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
STATE = {
    "deploymentId": str,
    "name": str,
    "kind": str,
    "phase": str,
    "status": str,
    "progress": int,
    "message": str,
    "currentStep": str,
    "url": (str, type(None)),
    "resources": dict,
    "error": (dict, type(None)),
    "timestamps": dict,
    "logs": list,
    "version": int,
    "cancelRequested": bool,
}
EVENT = {
    "seq": int,
    "at": str,
    "kind": str,
    "phase": str,
    "status": str,
    "progress": int,
    "message": str,
    "data": dict,
}
PROGRESS = {
    "initializing": 0,
    "creating_project": 10,
    "getting_environment": 20,
    "creating_application": 35,
    "configuring_application": 50,
    "creating_domain": 65,
    "deploying": 85,
    "verifying_health": 90,
    "completed": 100,
    "rolling_back": 95,
}


@pytest.fixture(autouse=True)
def clear_cache() -> None:
    cache.clear()


@pytest.fixture
def people(db: None) -> People:
    return People()


@pytest.fixture(scope="module")
def visitor(shared_portal: Portal) -> dict[str, str]:
    """Return the Authorization header of a token of the demo user."""
    with browser(shared_portal) as http:
        return new_token(http)


def assert_shape(given: Any, shape: dict[str, Any]) -> None:
    assert list(given) == list(shape)
    wrong = {name: given[name] for name, kind in shape.items() if not isinstance(given[name], kind)}
    assert not wrong


def assert_state(state: Any, *, stream: bool = False) -> None:
    assert_shape(state, {name: kind for name, kind in STATE.items() if not (stream and name == "logs")})
    assert state["kind"] in ("deploy", "redeploy", "remove")
    assert state["status"] in ("in_progress", "success", "failure")
    assert state["progress"] == PROGRESS[state["phase"]]
    assert list(state["timestamps"]) == ["started", "updated", "completed"]
    assert TIME.fullmatch(state["timestamps"]["started"])
    assert TIME.fullmatch(state["timestamps"]["updated"])
    assert bool(state["timestamps"]["completed"]) == (state["status"] != "in_progress")
    assert (state["error"] is None) or state["status"] != "success"


def post(client: Client, body: Any, **headers: str) -> Any:
    content = body if isinstance(body, bytes | str) else json.dumps(body)
    return client.post("/api/deploy", content, content_type="application/json", headers=headers)


def assert_refused(answer: Any, status: int, code: str, field: str | None = None) -> dict[str, Any]:
    """Assert the form of a refusal: a code for scripts, a sentence for users."""
    assert (answer.status_code, answer.json().get("error", {}).get("code")) == (status, code), answer.content
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert list(body) == ["success", "error"]
    assert body["success"] is False
    error: dict[str, Any] = body["error"]
    assert list(error) == ["code", "message", *(["field"] if field else [])]
    assert error.get("field") == field
    assert error["message"].endswith(".")
    return error


# -- start -------------------------------------------------------------------------------------------------------------


def test_a_start_sent_by_curl_is_answered_with_exactly_these_fields(portal: Portal) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "*/*", "User-Agent": "curl/8.5.0"}
    answer = portal.http.post("/api/deploy", content=b'{"name":"api-curl"}', headers=form)
    assert answer.status_code == 202
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    id = body["deploymentId"]
    assert DEPLOYMENT_ID.fullmatch(id)
    assert list(body.items()) == [
        ("success", True),
        ("deploymentId", id),
        ("name", "api-curl"),
        ("url", f"http://api-curl.localhost:{portal.port + 2}"),
        ("statusUrl", f"/api/status/{id}"),
        ("eventsUrl", f"/api/deployments/{id}/events"),
        ("pageUrl", f"/deployments/{id}"),
    ]
    accept = {"Accept": "application/json"}
    assert portal.http.get(body["statusUrl"], headers=accept).json()["deploymentId"] == id
    assert portal.http.get(body["eventsUrl"]).json()["events"][0]["seq"] == 1
    assert portal.http.get(body["pageUrl"]).status_code == 200


@pytest.mark.parametrize(
    "content_type", ["application/json", "text/plain", "multipart/form-data; boundary=x", "application/octet-stream"]
)
def test_the_body_is_read_as_json_whatever_its_content_type(client: Client, people: People, content_type: str) -> None:
    answer = client.post("/api/deploy", b'{"name": "shop"}', content_type=content_type)
    assert answer.status_code == 202
    assert Stack.objects.get().name == "shop"


def test_a_start_returns_before_dokploy_does_anything(portal: Portal) -> None:
    portal.close_gate("project.all")
    id = portal.deploy("api-at-once")
    until(lambda: portal.status(id)["phase"] == "creating_project")
    portal.open_gate("project.all")
    assert portal.finished(id)["status"] == "success"


def test_a_body_of_64_kib_is_read_and_one_byte_more_is_not(portal: Portal) -> None:
    given = b'{"name": "api-full"}'
    full = given + b" " * (65536 - len(given))
    assert portal.http.post("/api/deploy", content=full).status_code == 202
    assert_refused(portal.http.post("/api/deploy", content=full + b" "), 413, "TOO_LARGE")


def test_a_body_without_a_length_is_limited_too(portal: Portal) -> None:
    def pieces(count: int) -> Iterator[bytes]:
        yield b'{"name": "api-pieces"}'
        for _ in range(count):
            yield b" " * 1024

    assert portal.http.post("/api/deploy", content=pieces(2)).status_code == 202
    assert_refused(portal.http.post("/api/deploy", content=pieces(65)), 413, "TOO_LARGE")


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        (b"", "INVALID_JSON", None),
        (b"name=shop", "INVALID_JSON", None),
        (b"\xff\xfe{", "INVALID_JSON", None),
        (b"[" * 30_000, "INVALID_JSON", None),
        (b'{"name": "shop"', "INVALID_JSON", None),
        ([], "INVALID_JSON", None),
        ("null", "INVALID_JSON", None),
        ({}, "INVALID_NAME", "name"),
        ({"name": None}, "INVALID_NAME", "name"),
        ({"name": 7}, "INVALID_NAME", "name"),
        ({"name": ["shop"]}, "INVALID_NAME", "name"),
        ({"name": ""}, "INVALID_NAME", "name"),
        ({"name": "ab"}, "INVALID_NAME", "name"),
        ({"name": "a" * 31}, "INVALID_NAME", "name"),
        ({"name": "Shop"}, "INVALID_NAME", "name"),
        ({"name": "1shop"}, "INVALID_NAME", "name"),
        ({"name": "shop-"}, "INVALID_NAME", "name"),
        ({"name": "sh_op"}, "INVALID_NAME", "name"),
        ({"name": "shop\n"}, "INVALID_NAME", "name"),
        ({"name": " shop"}, "INVALID_NAME", "name"),
        ({"name": "xn--shop"}, "INVALID_NAME", "name"),
        ({"name": "www"}, "INVALID_NAME", "name"),
        ({"name": "shop", "template": 7}, "INVALID_PARAMETER", "template"),
        ({"name": "shop", "template": "unheard-of"}, "INVALID_PARAMETER", "template"),
        ({"name": "shop", "template": "un\0heard"}, "INVALID_PARAMETER", "template"),
        ({"name": "shop", "template": "\ud800"}, "INVALID_PARAMETER", "template"),
        ({"name": "shop", "template": ""}, "INVALID_PARAMETER", "template"),
        ({"name": "shop", "parameters": []}, "INVALID_PARAMETER", "parameters"),
        ({"name": "shop", "parameters": None}, "INVALID_PARAMETER", "parameters"),
        ({"name": "shop", "parameters": {"X": 1}}, "INVALID_PARAMETER", "X"),
    ],
)
def test_an_invalid_start_is_refused_with_a_code_and_a_sentence(
    client: Client, people: People, body: Any, code: str, field: str | None
) -> None:
    assert_refused(post(client, body), 400, code, field)
    assert not Stack.objects.exists()


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "shop\x7f"])
def test_a_name_that_cannot_be_stored_is_refused(client: Client, people: People, name: str) -> None:
    header = token(people.owner)
    body = json.dumps({"name": name})
    answer = client.post("/api/deploy", body, content_type="application/json", headers=header)
    assert_refused(answer, 400, "INVALID_NAME", "name")
    answer = client.delete(f"/api/stacks/{quote(name, errors='surrogatepass')}", headers=header)
    assert_refused(answer, 404, "NOT_FOUND")


def test_revoking_a_token_number_that_does_not_exist_only_redirects(client: Client, people: People) -> None:
    client.force_login(people.owner)
    assert client.post("/tokens", {"revoke": "9" * 5000}).status_code == 302


PARAMETERS = [
    {"key": "TITLE", "label": "Title", "type": "text", "required": True},
    {"key": "COUNT", "type": "integer", "min": 1, "max": 9},
    {"key": "CLOCK", "type": "boolean", "default": True},
    {"key": "COLOR", "type": "choice", "choices": ["red", "green"], "default": "red"},
    {"key": "SECRET", "type": "secret"},
]


@pytest.fixture
def shop(people: People) -> Template:
    """Create a template with a parameter of each type."""
    given = {"name": "Shop", "image": "docker.io/library/caddy:2", "parameters": PARAMETERS, "position": 5}
    return Template.objects.create(slug="shop", **given)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({}, "TITLE"),
        ({"TITLE": ""}, "TITLE"),
        ({"TITLE": None}, "TITLE"),
        ({"TITLE": "a\0b"}, "TITLE"),
        ({"TITLE": "a\r\nEVIL=1"}, "TITLE"),
        ({"TITLE": "${{project.SECRET}}"}, "TITLE"),
        ({"TITLE": "\ud800"}, "TITLE"),
        ({"TITLE": "a" * 2001}, "TITLE"),
        ({"TITLE": ["a"]}, "TITLE"),
        ({"TITLE": {"a": 1}}, "TITLE"),
        ({"TITLE": "a", "COUNT": 0}, "COUNT"),
        ({"TITLE": "a", "COUNT": 10}, "COUNT"),
        ({"TITLE": "a", "COUNT": "two"}, "COUNT"),
        ({"TITLE": "a", "COUNT": 1.5}, "COUNT"),
        ({"TITLE": "a", "COUNT": True}, "COUNT"),
        ({"TITLE": "a", "COUNT": float("nan")}, "COUNT"),
        ({"TITLE": "a", "COUNT": 10**400}, "COUNT"),
        ({"TITLE": "a", "CLOCK": "perhaps"}, "CLOCK"),
        ({"TITLE": "a", "COLOR": "blue"}, "COLOR"),
        ({"TITLE": "a", "SECRET": "${{"}, "SECRET"),
        ({"TITLE": "a", "PATH": "/bin"}, "PATH"),
        ({"TITLE": "a", "": ""}, ""),
    ],
)
def test_a_parameter_that_does_not_fit_is_refused_by_its_name(
    client: Client, shop: Template, given: dict[str, Any], field: str
) -> None:
    answer = post(client, {"name": "shop", "template": "shop", "parameters": given})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error.get("field", "")) == (400, "INVALID_PARAMETER", field)
    assert error["message"].endswith(".")
    assert not Stack.objects.exists()


def test_parameters_arrive_typed_with_their_defaults(client: Client, shop: Template) -> None:
    given = {"TITLE": "Größe “7”", "COUNT": "3", "CLOCK": False, "SECRET": "s3cret"}
    assert post(client, {"name": "shop", "template": "shop", "parameters": given}).status_code == 202
    deployment = Deployment.objects.get()
    env = {"TITLE": "Größe “7”", "COUNT": "3", "CLOCK": "false", "COLOR": "red", "SECRET": "s3cret"}
    assert dict(deployment.stack_spec().env) == env


@pytest.mark.parametrize(
    "authorization", ["Bearer dpt_wrong", "Bearer", "Bearer ", "Basic b3duZXI6eA==", "dpt_wrong", "Bearer \xe9"]
)
def test_a_wrong_token_is_refused_even_if_the_portal_is_open(
    client: Client, people: People, authorization: str
) -> None:
    assert_refused(post(client, {"name": "shop"}, Authorization=authorization), 401, "NOT_SIGNED_IN")


def test_a_revoked_token_and_the_token_of_a_deactivated_user_are_refused(client: Client, people: People) -> None:
    header = token(people.owner)
    assert client.get("/api/check/shop", headers=header).status_code == 200
    people.owner.is_active = False
    people.owner.save()
    assert_refused(client.get("/api/check/shop", headers=header), 401, "NOT_SIGNED_IN")
    header = token(people.other)
    ApiToken.objects.filter(owner=people.other).delete()
    assert_refused(client.get("/api/check/shop", headers=header), 401, "NOT_SIGNED_IN")


def test_a_closed_portal_requires_a_token(client: Client, people: People, settings: Any) -> None:
    settings.PORTAL_OPEN = False
    assert_refused(post(client, {"name": "shop"}), 401, "NOT_SIGNED_IN")
    assert post(client, {"name": "shop"}, **token(people.owner)).status_code == 202
    assert Stack.objects.get().owner == people.owner


def test_anonymous_users_can_deploy_public_templates_only(client: Client, people: People, shop: Template) -> None:
    body = {"name": "shop", "template": "shop", "parameters": {"TITLE": "a"}}
    Template.objects.filter(pk=shop.pk).update(public=False)
    assert_refused(post(client, body), 400, "INVALID_PARAMETER", "template")
    assert post(client, body, **token(people.owner)).status_code == 202
    Template.objects.filter(pk=shop.pk).update(active=False)
    assert_refused(post(client, {**body, "name": "shop2"}, **token(people.owner)), 400, "INVALID_PARAMETER", "template")


def test_another_users_name_is_refused_as_taken_and_a_deploying_one_as_busy(client: Client, people: People) -> None:
    people.deploy(people.owner, "shop")
    assert_refused(post(client, {"name": "shop"}, **token(people.owner)), 409, "BUSY", "name")
    assert_refused(post(client, {"name": "shop"}, **token(people.other)), 409, "NAME_TAKEN", "name")
    assert_refused(post(client, {"name": "shop"}, **token(people.operator)), 409, "NAME_TAKEN", "name")
    assert_refused(post(client, {"name": "shop"}), 409, "NAME_TAKEN", "name")


def test_an_owner_redeploys_a_live_name_and_nobody_else_does(client: Client, people: People) -> None:
    end(people.deploy(people.owner, "shop"))
    assert_refused(post(client, {"name": "shop"}, **token(people.other)), 409, "NAME_TAKEN", "name")
    assert_refused(post(client, {"name": "shop"}), 409, "NAME_TAKEN", "name")
    answer = post(client, {"name": "shop"}, **token(people.owner))
    assert answer.status_code == 202
    assert Deployment.objects.get(pk=answer.json()["deploymentId"]).kind == "redeploy"
    assert Stack.objects.count() == 1


def test_nobody_can_redeploy_an_anonymous_deployment(client: Client, people: People) -> None:
    answer = post(client, {"name": "shop"})
    end(Deployment.objects.get(pk=answer.json()["deploymentId"]))
    assert_refused(post(client, {"name": "shop"}), 409, "NAME_TAKEN", "name")
    assert_refused(post(client, {"name": "shop"}, **token(people.operator)), 409, "NAME_TAKEN", "name")


@pytest.mark.parametrize("who", ["owner", "anonymous"])
def test_a_start_beyond_the_quota_is_refused(client: Client, people: People, settings: Any, who: str) -> None:
    header = token(people.owner) if who == "owner" else {}
    settings.PORTAL_QUOTA = 1
    assert post(client, {"name": "shop"}, **header).status_code == 202
    answer = post(client, {"name": "shop2"}, **header)
    assert_refused(answer, 429, "QUOTA")
    assert int(answer.headers["Retry-After"]) > 0
    assert Stack.objects.count() == 1
    assert post(client, {"name": "shop3"}, **token(people.other)).status_code == 202


def test_all_anonymous_users_share_one_quota(client: Client, people: People, settings: Any) -> None:
    settings.PORTAL_OPEN_QUOTA = 1
    assert post(client, {"name": "shop"}).status_code == 202
    other_address = Client(REMOTE_ADDR="192.0.2.7")
    answer = post(other_address, {"name": "shop2"})
    assert_refused(answer, 429, "QUOTA")
    assert int(answer.headers["Retry-After"]) > 0


def test_a_start_is_refused_when_the_queue_is_full(client: Client, people: People, settings: Any) -> None:
    settings.PORTAL_WAITING = 1
    people.deploy(people.owner, "shop")
    answer = post(client, {"name": "shop2"}, **token(people.other))
    assert_refused(answer, 429, "QUOTA")
    assert int(answer.headers["Retry-After"]) > 0


def test_a_repeated_idempotency_key_gets_the_same_answer_and_creates_nothing(client: Client, people: People) -> None:
    header = {**token(people.owner), "Idempotency-Key": "k-1"}
    first = post(client, {"name": "shop"}, **header)
    again = post(client, {"name": "shop"}, **header)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json() == again.json()
    assert (Stack.objects.count(), Deployment.objects.count(), Event.objects.count()) == (1, 1, 1)
    end(Deployment.objects.get())
    assert post(client, {"name": "shop"}, **header).json() == first.json(), "also when the deployment has ended"


def test_idempotency_keys_of_different_callers_are_independent(client: Client, people: People) -> None:
    key = {"Idempotency-Key": "k-1"}
    callers = [
        (client, token(people.owner)),
        (client, token(people.other)),
        (client, {}),
        (Client(REMOTE_ADDR="192.0.2.7"), {}),
    ]
    ids = {
        post(caller, {"name": f"shop-{number}"}, **key, **header).json()["deploymentId"]
        for number, (caller, header) in enumerate(callers)
    }
    assert len(ids) == len(callers)


@pytest.mark.parametrize("key", ["", "k" * 256, "a\tb"])
def test_an_invalid_idempotency_key_is_refused(client: Client, people: People, key: str) -> None:
    answer = post(client, {"name": "shop"}, **{"Idempotency-Key": key})
    assert_refused(answer, 400, "INVALID_PARAMETER", "Idempotency-Key")


def test_simultaneous_starts_of_one_name_create_one_deployment(portal: Portal, visitor: dict[str, str]) -> None:
    """Eight simultaneous clients, once anonymous and once with one user's token."""
    for header, code in (({}, "NAME_TAKEN"), (visitor, "BUSY")):
        name = f"api-race-{code.lower().replace('_', '-')}"
        start = threading.Barrier(8)

        def ask(name: str = name, header: dict[str, str] = header, start: threading.Barrier = start) -> httpx.Response:
            with browser(portal) as http:
                start.wait(30)
                return http.post("/api/deploy", json={"name": name}, headers=header)

        with held(portal, "project.all"), ThreadPoolExecutor(8) as pool:  # a later request would redeploy it
            answers = [future.result() for future in [pool.submit(ask) for _ in range(8)]]
        assert sorted(answer.status_code for answer in answers) == [202] + [409] * 7
        for answer in answers:
            if answer.status_code == 409:
                assert_refused(answer, 409, code, "name")


def test_simultaneous_starts_with_one_idempotency_key_get_one_answer(portal: Portal) -> None:
    start = threading.Barrier(4)

    def ask() -> httpx.Response:
        with browser(portal) as http:
            start.wait(30)
            return http.post("/api/deploy", json={"name": "api-key-race"}, headers={"Idempotency-Key": "api-race"})

    with ThreadPoolExecutor(4) as pool:
        answers = [future.result() for future in [pool.submit(ask) for _ in range(4)]]
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.text for answer in answers}) == 1


@pytest.mark.parametrize("path", ["/api/deploy", "/api/status/x", "/api/deployments/x", "/api/check/x"])
@pytest.mark.parametrize("method", ["put", "delete", "patch"])
def test_an_unsupported_method_is_refused(client: Client, people: People, path: str, method: str) -> None:
    answer = getattr(client, method)(path)
    assert answer.status_code == 405
    assert answer.headers["Allow"] == ("POST" if path == "/api/deploy" else "GET")
    assert answer.json()["success"] is False


# -- poll --------------------------------------------------------------------------------------------------------------


def test_the_state_has_these_fields_from_the_first_poll_to_the_last(portal: Portal, visitor: dict[str, str]) -> None:
    portal.close_gate("project.all")
    portal.close_gate("job")
    started = portal.http.post("/api/deploy", json={"name": "api-state"}, headers=visitor).json()
    id = started["deploymentId"]

    def state() -> Any:
        found = portal.http.get(f"/api/deployments/{id}", headers=visitor).json()
        assert_state(found)
        return found

    first = until(lambda: (found := state())["phase"] == "creating_project" and found)
    assert (first["phase"], first["progress"], first["kind"]) == ("creating_project", 10, "deploy")
    assert (first["url"], first["resources"], first["error"], first["logs"]) == (None, {}, None, [])
    portal.open_gate("project.all")
    portal.wait_at("job")
    held = until(lambda: (found := state())["phase"] == "deploying" and found)
    assert held["url"] == started["url"]
    assert list(held["resources"]) == ["projectId", "environmentId", "applicationId", "domainId"]
    assert all(isinstance(id, str) and id for id in held["resources"].values())
    assert held["logs"] == []
    portal.open_gate("job")
    last = until(lambda: (found := state())["status"] == "success" and found, 20)
    assert (last["phase"], last["progress"], last["error"]) == ("completed", 100, None)
    assert last["currentStep"] and last["currentStep"] != "completed"  # noqa: PT018 - a sentence
    assert any("POST project.create" in line for line in last["logs"])
    assert first["timestamps"]["started"] == last["timestamps"]["started"]
    assert last["version"] > held["version"] > first["version"] > 0
    started_at, ended_at = (datetime.fromisoformat(last["timestamps"][name]) for name in ("started", "completed"))
    assert timedelta(0) < ended_at - started_at < timedelta(minutes=1)


def test_a_failed_deployment_names_its_phase_and_frees_its_name(portal: Portal, visitor: dict[str, str]) -> None:
    body = {"name": "api-broken", "template": "broken"}
    id = portal.http.post("/api/deploy", json=body, headers=visitor).json()["deploymentId"]
    state = until(lambda: (found := ask(portal, id, visitor))["status"] != "in_progress" and found, 20)
    assert_state(state)
    assert (state["status"], state["phase"], state["message"]) == ("failure", "rolling_back", "Rollback completed")
    error = state["error"]
    assert list(error) == ["phase", "code", "message", "retryable", "help", "evidence"]
    assert (error["phase"], error["code"], error["retryable"]) == ("deploying", "REGISTRY_UNREACHABLE", True)
    assert portal.http.get(error["help"]).status_code == 200
    *_, last = portal.stream(id, **visitor)
    assert (last["event"], last["data"]["status"]) == ("error", "failure")
    assert_state(last["data"], stream=True)
    assert portal.http.post("/api/deploy", json={"name": "api-broken"}).status_code == 202, "the name is free again"


def ask(portal: Portal, id: str, header: dict[str, str]) -> Any:
    return portal.http.get(f"/api/deployments/{id}", headers=header).json()


def test_an_unchanged_state_is_answered_with_304(client: Client, people: People) -> None:
    deployment, header = people.deploy(people.owner, "shop"), token(people.owner)

    def poll(etag: str = "") -> Any:
        return client.get(
            f"/api/deployments/{deployment.pk}", headers={**header, **({"If-None-Match": etag} if etag else {})}
        )

    etag = poll().headers["ETag"]
    for given in (etag, f'"x", {etag}', f"W/{etag}"):
        unchanged = poll(given)
        assert (unchanged.status_code, unchanged.content, unchanged.headers["ETag"]) == (304, b"", etag)
    assert poll('"x"').status_code == 200
    end(deployment)
    changed = poll(etag)
    assert changed.status_code == 200
    assert changed.headers["ETag"] != etag


def test_owner_and_operator_get_different_etags(client: Client, people: People) -> None:
    deployment = people.deploy(people.owner, "shop")
    path = f"/api/deployments/{deployment.pk}"
    etags = {client.get(path, headers=token(person)).headers["ETag"] for person in (people.owner, people.operator)}
    assert len(etags) == 2
    assert "private" in client.get(path, headers=token(people.owner)).headers["Cache-Control"]


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("application/json", "application/json"),
        ("application/json, text/plain, */*", "application/json"),
        ("application/json;q=0.9", "application/json"),
        ("*/*", "text/event-stream"),
        ("text/event-stream", "text/event-stream"),
        ("text/event-stream, application/json", "text/event-stream"),
        (None, "text/event-stream"),
    ],
)
def test_the_accept_header_selects_the_state_or_the_stream(
    client: Client, people: People, accept: str | None, content_type: str
) -> None:
    deployment = end(people.deploy(people.owner, "shop"))
    headers = {**token(people.owner), **({"Accept": accept} if accept else {})}
    answer = client.get(f"/api/status/{deployment.pk}", headers=headers)
    assert answer.headers["Content-Type"].split(";")[0] == content_type


@pytest.mark.parametrize(
    "path", ["/api/status/{}", "/api/deployments/{}", "/api/deployments/{}/events", "/api/deployments/{}/events?wait=9"]
)
def test_an_unknown_deployment_is_not_found(client: Client, people: People, path: str) -> None:
    for id in ("dep_" + "0" * 32, "dep_", "x", "%00", "dep_%F0%9F%92%A9", "%ED%A0%80", "..%2Fetc"):
        for accept in ("application/json", "text/event-stream"):
            answer = client.get(path.format(id), headers={"Accept": accept})
            assert answer.status_code == 404
            if "%2F" not in id:
                assert_refused(answer, 404, "NOT_FOUND")


# -- events ------------------------------------------------------------------------------------------------------------


def test_events_are_numbered_without_gaps_and_have_these_fields(portal: Portal, visitor: dict[str, str]) -> None:
    started = portal.http.post("/api/deploy", json={"name": "api-events"}, headers=visitor).json()
    until(lambda: ask(portal, started["deploymentId"], visitor)["status"] == "success", 20)
    answer = portal.http.get(started["eventsUrl"], headers=visitor).json()
    assert list(answer) == ["events", "last", "done"]
    events = answer["events"]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert (answer["last"], answer["done"]) == (len(events), True)
    for event in events:
        assert_shape(event, EVENT)
        assert TIME.fullmatch(event["at"])
        assert event["kind"] in ("phase", "rung", "log", "receipt", "note")
        assert event["progress"] == PROGRESS[event["phase"]]
    assert {"phase", "rung", "log", "receipt"} <= {event["kind"] for event in events}
    assert [event["progress"] for event in events] == sorted(event["progress"] for event in events)
    assert (events[-1]["phase"], events[-1]["status"]) == ("completed", "success")
    rest = portal.http.get(started["eventsUrl"], params={"after": 5}, headers=visitor).json()
    assert rest["events"] == events[5:]
    nothing = portal.http.get(started["eventsUrl"], params={"after": len(events), "wait": 20}, headers=visitor).json()
    assert nothing == {"events": [], "last": len(events), "done": True}, "a deployment that has ended is not waited for"


def test_a_wait_for_events_ends_with_the_next_event(portal: Portal) -> None:
    """The request waits until the gate is opened, and the answer is not empty."""
    portal.close_gate("domain.create")
    id = portal.deploy("api-wait")
    portal.wait_at("domain.create")
    seen = portal.events(id)["last"]
    with ThreadPoolExecutor(1) as pool, browser(portal) as http:
        path = f"/api/deployments/{id}/events"
        waiting = pool.submit(http.get, path, params={"after": seen, "wait": 9}, timeout=20)
        portal.open_gate("domain.create")
        answer = waiting.result(20).json()
    assert [event["seq"] for event in answer["events"]][:1] == [seen + 1]
    until(lambda: portal.status(id)["status"] == "success", 20)


def test_a_wait_without_events_lasts_as_long_as_requested(portal: Portal) -> None:
    portal.turn(start=0)
    portal.close_gate("project.all")
    id = portal.deploy("api-nothing")
    portal.wait_at("project.all")
    seen = portal.events(id)["last"]
    answer = portal.http.get(f"/api/deployments/{id}/events", params={"after": seen, "wait": 0.5})
    assert answer.elapsed >= timedelta(seconds=0.5) or answer.json()["events"]
    assert answer.json()["done"] is False
    portal.open_gate("project.all")


@pytest.mark.parametrize("name", ["after", "wait"])
@pytest.mark.parametrize("value", ["-1", "x", "nan", "inf", "", "1e99", "0x10", "9" * 400])
def test_an_invalid_number_is_refused(client: Client, people: People, name: str, value: str) -> None:
    deployment = people.deploy(people.owner, "shop")
    answer = client.get(f"/api/deployments/{deployment.pk}/events", {name: value}, headers=token(people.owner))
    assert_refused(answer, 400, "INVALID_PARAMETER", name)


def test_no_events_are_returned_after_a_number_beyond_the_last(client: Client, people: People) -> None:
    deployment = end(people.deploy(people.owner, "shop"))
    path = f"/api/deployments/{deployment.pk}/events"
    answer = client.get(path, {"after": 1_000_000}, headers=token(people.owner)).json()
    assert answer == {"events": [], "last": deployment.version, "done": True}


# -- the stream --------------------------------------------------------------------------------------------------------


def test_the_stream_begins_at_once_and_ends_with_the_deployment(portal: Portal) -> None:
    portal.close_gate("job")
    id = portal.deploy("api-stream")
    portal.wait_at("job")
    until(lambda: portal.status(id)["phase"] == "deploying")
    stream = portal.stream(id)
    first = next(stream)
    assert list(first) == ["event", "id", "data"]
    assert (first["event"], first["data"]["phase"]) == ("progress", "deploying")
    assert first["id"] == str(first["data"]["version"])
    portal.open_gate("job")
    rest = list(stream)
    for event in [first, *rest]:
        assert_state(event["data"], stream=True)
        assert event["event"] == ("complete" if event["data"]["status"] == "success" else "progress")
    assert [event["event"] for event in rest].index("complete") == len(rest) - 1
    assert rest[-1]["data"]["progress"] == 100
    ids = [int(event["id"]) for event in [first, *rest]]
    assert ids == sorted(set(ids))


def test_the_headers_of_the_stream_forbid_caching_and_buffering(portal: Portal) -> None:
    id = portal.deploy("api-headers")
    with portal.http.stream("GET", f"/api/status/{id}", timeout=20) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-accel-buffering"] == "no"
        assert "content-length" not in answer.headers
        answer.read()


def test_a_client_that_reconnects_gets_the_events_after_its_last_event_id(portal: Portal) -> None:
    id = portal.deploy("api-back")
    portal.finished(id)
    phases = [event for event in portal.events(id)["events"] if event["kind"] == "phase"]
    seen = phases[3]["seq"]
    events = list(portal.stream(id, **{"Last-Event-ID": str(seen)}))
    assert [int(event["id"]) for event in events] == [event["seq"] for event in phases[4:]]
    assert [event["data"]["message"] for event in events] == [event["message"] for event in phases[4:]]
    assert [event["data"]["phase"] for event in events] == [event["phase"] for event in phases[4:]]
    assert events[-1]["event"] == "complete"


@pytest.mark.parametrize("seen", ["999999", "x", "-1", "1.5", "9" * 50, ""])
def test_an_invalid_last_event_id_gets_the_current_state(shared_portal: Portal, finished: str, seen: str) -> None:
    events = list(shared_portal.stream(finished, **{"Last-Event-ID": seen}))
    assert [event["event"] for event in events] == ["complete"]


def test_a_client_that_reconnects_after_the_end_gets_the_last_event_only(shared_portal: Portal, finished: str) -> None:
    last = shared_portal.status(finished)["version"]
    events = list(shared_portal.stream(finished, **{"Last-Event-ID": str(last)}))
    assert [(event["event"], event["id"]) for event in events] == [("complete", str(last))]
    assert events == list(shared_portal.stream(finished))


@pytest.fixture(scope="module")
def finished(shared_portal: Portal) -> str:
    """Return the id of an anonymous deployment that has ended."""
    id = shared_portal.deploy("api-finished")
    shared_portal.finished(id)
    return id


def test_the_stream_has_the_other_event_kinds_only_on_request(shared_portal: Portal, finished: str) -> None:
    def names(query: str) -> list[str]:
        with shared_portal.http.stream("GET", f"/api/status/{finished}{query}", headers={"Last-Event-ID": "0"}) as got:
            return [line.removeprefix("event: ") for line in got.iter_lines() if line.startswith("event: ")]

    kinds = [event["kind"] for event in shared_portal.events(finished)["events"]]
    assert set(names("")) == {"progress", "complete"}
    assert len(names("")) == kinds.count("phase")
    every = names("?all=1")
    assert [name if name not in ("progress", "complete") else "phase" for name in every] == kinds


# -- the name ----------------------------------------------------------------------------------------------------------


def test_the_name_check_tells_free_names_from_taken_and_invalid_ones(portal: Portal, visitor: dict[str, str]) -> None:
    portal.deploy("api-had")

    def check(name: str, header: dict[str, str] | None = None) -> Any:
        answer = portal.http.get(f"/api/check/{name}", headers=header or {})
        assert answer.status_code == 200, answer.text
        assert list(answer.json()) == ["available", "reason"]
        return answer.json()

    for header in (None, visitor):
        until(lambda header=header: check("api-never-had", header)["available"] is not None)  # Dokploy may be late once
        assert check("api-never-had", header) == {"available": True, "reason": None}
        for name in ("api-had", "Shop"):
            answer = check(name, header)
            assert answer["available"] is False
            assert answer["reason"].endswith(".")


def test_availability_is_unknown_while_dokploy_is_down(client: Client, people: People, settings: Any) -> None:
    settings.DOKPLOY_URL = "http://127.0.0.1:1"
    answer = client.get("/api/check/shop", headers=token(people.owner)).json()
    assert answer["available"] is None
    assert answer["reason"].endswith(".")


def test_the_name_check_applies_the_anonymous_quota(client: Client, people: People, settings: Any) -> None:
    settings.DOKPLOY_URL = "http://127.0.0.1:1"
    settings.PORTAL_QUOTA, settings.PORTAL_OPEN_QUOTA = 1, 2
    assert post(client, {"name": "shop"}).status_code == 202
    other_address = Client(REMOTE_ADDR="192.0.2.7")
    assert other_address.get("/api/check/shop2").json()["available"] is None, "not known, but not refused"
    assert post(other_address, {"name": "shop2"}).status_code == 202
    assert other_address.get("/api/check/shop3").json()["available"] is False
    assert_refused(post(other_address, {"name": "shop3"}), 429, "QUOTA")


@pytest.mark.parametrize(
    ("given", "env"),
    [(True, "true"), ("on", "true"), ("1", "true"), ("off", "false"), ("False", "false"), (0, "false")],
)
def test_every_notation_of_a_boolean_is_read(client: Client, shop: Template, given: Any, env: str) -> None:
    parameters = {"TITLE": "a", "CLOCK": given}
    assert post(client, {"name": "shop", "template": "shop", "parameters": parameters}).status_code == 202
    assert dict(Deployment.objects.get().stack_spec().env)["CLOCK"] == env


def test_refusal_codes_have_these_statuses() -> None:
    assert {code: Refusal(code, "").status for code in ("QUOTA", "PAUSED", "BUSY", "TOO_LARGE", "UNSUPPORTED")} == {
        "QUOTA": 429,
        "PAUSED": 503,
        "BUSY": 409,
        "TOO_LARGE": 413,
        "UNSUPPORTED": 415,
    }


def test_an_operator_gets_the_same_state_as_the_owner(portal: Portal, visitor: dict[str, str]) -> None:
    started = portal.http.post("/api/deploy", json={"name": "api-operator"}, headers=visitor).json()
    id = started["deploymentId"]
    until(lambda: ask(portal, id, visitor)["status"] == "success", 20)
    http = operator(portal)
    header = new_token(http)
    http.close()
    assert ask(portal, id, header) == ask(portal, id, visitor)
