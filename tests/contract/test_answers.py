"""Every response that was recorded from Dokploy v0.30.2, read by the client over a socket.

answers.json contains each distinct response once, with its meaning, and lists the recordings that are left out.
"""

import asyncio
import json
import re
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from deployments.engine.dokploy import Dokploy, Exchange, transport
from deployments.engine.errors import (
    DokployError,
    KeyRefused,
    NotDokploy,
    NotFound,
    OutcomeUnknown,
    Refused,
    Unavailable,
)

from ..processes import ROOT
from ..scripted_server import Behaviour, Request, Server, error_of, responds

CONTRACT = Path(__file__).parent
DATA = json.loads((CONTRACT / "answers.json").read_text())
USUAL_HEADERS = {"content-type": "application/json", "transfer-encoding": "chunked"}
HEALTH = "GET trpc/settings.health"
ANSWERS = [entry for entry in DATA["answers"] if entry["call"] != HEALTH]
UP, DOWN = (entry for entry in DATA["answers"] if entry["call"] == HEALTH)
ERRORS = {
    "refused": Refused,
    "key": KeyRefused,
    "wait": Unavailable,
    "unknown": OutcomeUnknown,
    "absent": NotFound,
    "not_dokploy": NotDokploy,
}
KEY = "key-canary-4711"
CANARY = "canary-4715"
SECRETS = {"env", "password", "refreshToken", "buildArgs", "buildSecrets", "previewEnv", "sshPrivateKey", "token"}
pytestmark = pytest.mark.asyncio(loop_scope="module")

Call = Callable[[Dokploy], Awaitable[Any]]


# What the client returns for a successful response: the expected fields by name, or None when it returns nothing.


def project(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": row["projectId"],
        "name": row["name"],
        "description": row["description"] or "",
        "created_at": row["createdAt"],
        "application_ids": tuple(
            application["applicationId"]
            for environment in row.get("environments", [])
            for application in environment["applications"]
        ),
    }


def application(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": row["applicationId"],
        "name": row["name"],
        "app_name": row["appName"],
        "description": row["description"] or "",
        "created_at": row["createdAt"],
    }


def environment(row: dict[str, Any]) -> dict[str, Any]:
    service_lists = ("applications", "mariadb", "mongo", "mysql", "postgres", "redis", "compose", "libsql")
    return {
        "id": row["environmentId"],
        "is_default": row["isDefault"],
        "applications": tuple(application(entry) for entry in row["applications"]),
        "services": sum(len(row[name]) for name in service_lists),
    }


def domain(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": row["domainId"],
        "host": row["host"],
        "path": row["path"],
        "port": row["port"],
        "https": row["https"],
        "certificate_type": row["certificateType"],
    }


def queue_entry(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "application_id": row["data"]["applicationId"],
        "title": row["data"]["titleLog"],
        "state": row["state"],
        "timestamp": row["timestamp"],
    }


def dokploy_deployment(row: dict[str, Any]) -> dict[str, Any]:
    return {"id": row["deploymentId"], "title": row["title"], "status": row["status"]}


def container(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("name", "state", "status")}


def service(body: Any) -> dict[str, Any] | None:
    if not body:
        return None
    update = body.get("UpdateStatus", {})
    return {
        "image": body["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"],
        "update_state": update.get("State", ""),
        "update_started_at": update.get("StartedAt", ""),
    }


def program_log(body: str) -> str:
    return "".join(f"{line.split(' ', 1)[1]}\n" for line in sorted(body.splitlines()))


def each(row: Callable[[dict[str, Any]], Any]) -> Callable[[list[Any]], list[Any]]:
    return lambda body: [row(entry) for entry in body]


def nothing(body: Any) -> None:
    return None


def unchanged(body: Any) -> Any:
    return body


TYPED: dict[str, tuple[Call, Callable[[Any], Any]]] = {
    "GET docker.getConfig": (lambda client: client.service("a"), service),
    "GET application.readLogs": (lambda client: client.read_program_log("a", 20), program_log),
    "GET settings.getDokployVersion": (lambda client: client.version(), unchanged),
    "GET project.all": (lambda client: client.projects(), each(project)),
    "POST project.create": (lambda client: client.create_project("a", "b"), lambda body: project(body["project"])),
    "POST project.remove": (lambda client: client.remove_project("a"), nothing),
    "GET environment.byProjectId": (lambda client: client.environments("a"), each(environment)),
    "POST application.create": (lambda client: client.create_application("a", "b", "c"), application),
    "POST application.saveDockerProvider": (lambda client: client.save_image("a", "b"), nothing),
    "POST application.saveEnvironment": (lambda client: client.save_environment("a", ""), nothing),
    "POST application.update": (lambda client: client.save_limits("a", 1, 1.0), nothing),
    "POST application.deploy": (lambda client: client.deploy("a", "b"), nothing),
    "GET deployment.all": (lambda client: client.dokploy_deployments("a"), each(dokploy_deployment)),
    "GET deployment.queueList": (lambda client: client.queue(), each(queue_entry)),
    "GET deployment.readLogs": (lambda client: client.read_deploy_log("a"), unchanged),
    "POST application.cleanQueues": (lambda client: client.clean_queue("a"), nothing),
    "GET docker.getContainersByAppNameMatch": (lambda client: client.containers("web-xdqmvf"), each(container)),
    "POST domain.create": (
        lambda client: client.create_domain("a", "b", 80, https=False, certificate_type="none"),
        domain,
    ),
    "POST domain.update": (
        lambda client: client.update_domain("a", "b", 80, https=False, certificate_type="none"),
        nothing,
    ),
    "GET domain.byApplicationId": (lambda client: client.domains("a"), each(domain)),
    "POST domain.delete": (lambda client: client.delete_domain("a"), nothing),
    "POST application.delete": (lambda client: client.delete_application("a"), nothing),
    "GET application.one": (
        lambda client: client.saved_config("a"),
        lambda body: {"source": body["sourceType"], "image": body["dockerImage"] or "", "env": body["env"] or ""},
    ),
    "GET organization.all": (
        lambda client: client.roles(),
        lambda body: frozenset(member["role"] for one in body for member in one["members"]),
    ),
    "GET settings.getWebServerSettings": (
        lambda client: client.builds_concurrency(),
        lambda body: body["buildsConcurrency"],
    ),
    "GET settings.checkInfrastructureHealth": (
        lambda client: client.infrastructure_errors(),
        lambda body: {name: " ".join(part["message"].split()) for name, part in body.items()},
    ),
}
LOWER = {name.lower(): name for name in TYPED}  # Dokploy's paths are case-insensitive


def call_of(entry: dict[str, Any]) -> tuple[Call, Callable[[Any], Any]]:
    """Return the client's method for the procedure, or a call of the transport if it has none."""
    if name := LOWER.get(entry["call"].lower()):
        return TYPED[name]
    method, procedure = entry["call"].split()
    if method == "GET":
        return (lambda client: client._transport.query(procedure)), unchanged
    return (lambda client: client._transport.change(procedure)), unchanged


def agrees(value: Any, expected: Any) -> bool:
    """Return whether a value is the expected one. An object is compared by the fields that are expected of it."""
    if isinstance(expected, dict) and not isinstance(value, dict):
        return all(agrees(getattr(value, name), part) for name, part in expected.items())
    if isinstance(expected, list | tuple):
        return len(value) == len(expected) and all(map(agrees, value, expected))
    return type(value) is type(expected) and bool(value == expected)


def class_of(error: DokployError) -> type[DokployError]:
    """Return the most specific class of the error that answers.json knows."""
    return next(error_type for error_type in type(error).__mro__ if error_type in ERRORS.values())


def bytes_of(entry: dict[str, Any]) -> bytes:
    """Return the response as Dokploy sent it: chunked, or with a content length."""
    text = entry["text"] if "text" in entry else json.dumps(entry["body"], ensure_ascii=False, separators=(",", ":"))
    body, headers = text.encode(), entry.get("headers", USUAL_HEADERS)
    lines = [f"HTTP/1.1 {entry['status']} Recorded", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    if "content-length" in headers:
        assert int(headers["content-length"]) == len(body)
    else:
        parts = [part for part in (body[: len(body) // 2], body[len(body) // 2 :]) if part]
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    return "\r\n".join(lines).encode() + body


def replays(entry: dict[str, Any]) -> Behaviour:
    async def behave(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes_of(entry))
        await writer.drain()

    return behave


def names(entries: list[dict[str, Any]]) -> list[str]:
    return [f"{entry['call']} {entry['status']}: {entry['recordings'][0]}" for entry in entries]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared() -> AsyncIterator[tuple[Server, Dokploy]]:
    """Yield one server and one client for all tests: loading the certificates takes longer than a test."""
    server = Server()
    client = Dokploy(await server.start(), KEY)
    yield server, client
    await client.aclose()
    await server.stop()


@pytest.fixture
def server(shared: tuple[Server, Dokploy], monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setattr(transport, "SECOND_TRY_SECONDS", 0.001)
    server, _ = shared
    server.requests.clear()
    server.health = replays(UP)
    return server


@pytest.fixture
def client(shared: tuple[Server, Dokploy]) -> Dokploy:
    return shared[1]


# -- each response -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ANSWERS, ids=names(ANSWERS))
async def test_a_response_has_its_meaning(server: Server, client: Dokploy, entry: dict[str, Any]) -> None:
    call, expected = call_of(entry)
    method, procedure = entry["call"].split()
    server.behaviour = replays(entry)
    if entry["meaning"] in ("made", "done"):
        value = await asyncio.wait_for(call(client), 5)
        assert agrees(value, expected(entry.get("body")))
    else:
        error_type = ERRORS[entry["meaning"]]
        if error_type is OutcomeUnknown and method == "GET":  # a read can be repeated
            error_type = Unavailable
        error = await error_of(call(client))
        assert class_of(error) is error_type
        assert error.permanent is issubclass(error_type, Refused)
        assert str(error).endswith(".")
        assert "\n" not in f"{error}{error.evidence}"
        assert "Failed query" not in f"{error}{error.evidence}"
    sent = [(request.method, path.lower()) for request, path in zip(server.requests, server.procedures, strict=True)]
    once, health = (method, procedure.lower()), ("GET", "trpc/settings.health")
    read = ("GET", "settings.getdokployversion")
    again = [once] if method == "GET" else [read, health, read]  # a change is never sent again
    assert sent == ([once, health, *again] if entry["meaning"] == "key" else [once])


AMBIGUOUS = [entry for entry in ANSWERS if entry["meaning"] == "key"]


@pytest.mark.parametrize("entry", AMBIGUOUS, ids=names(AMBIGUOUS))
async def test_an_ambiguous_401_while_the_database_is_down_means_unavailable(
    server: Server, client: Dokploy, entry: dict[str, Any]
) -> None:
    server.behaviour, server.health = replays(entry), replays(DOWN)
    error = await error_of(call_of(entry)[0](client))
    assert class_of(error) is Unavailable
    assert server.procedures == [entry["call"].split()[1], "trpc/settings.health"]


async def test_health_responses_are_understood(server: Server, client: Dokploy) -> None:
    assert [UP["meaning"], DOWN["meaning"]] == ["done", "wait"]
    assert await client.healthy() is True
    server.health = replays(DOWN)
    assert await client.healthy() is False


# -- completeness ------------------------------------------------------------------------------------------------------


async def test_every_recording_is_used_or_left_out_with_a_reason() -> None:
    answered = [name for entry in DATA["answers"] for name in entry["recordings"]]
    left_out = [name for entry in DATA["left_out"] for name in entry["recordings"]]
    assert Counter(answered + left_out) == Counter(json.loads((CONTRACT / "recordings.json").read_text()))
    assert all(entry["reason"] for entry in DATA["left_out"])


async def test_every_meaning_is_explained_and_used() -> None:
    assert set(DATA["meanings"]) == {entry["meaning"] for entry in DATA["answers"]} == {"made", "done", *ERRORS}


async def test_every_procedure_of_the_client_is_tested_with_a_successful_response() -> None:
    source = (ROOT / "deployments/engine/dokploy/client.py").read_text()
    successful = {entry["call"] for entry in ANSWERS if entry["meaning"] in ("made", "done")}
    for name in TYPED:
        assert f'"{name.split()[1]}"' in source
        assert name in successful
    assert {name.split()[1] for name in TYPED} == set(re.findall(r'"([a-z]+\.[a-zA-Z]+)"', source))


# -- secrets -----------------------------------------------------------------------------------------------------------


def with_canaries(value: Any) -> Any:
    """Return the value with a canary in each field that may contain a secret."""
    if isinstance(value, dict):
        return {
            name: f"A={CANARY}" if name in SECRETS and not isinstance(part, dict | list) else with_canaries(part)
            for name, part in value.items()
        }
    return [with_canaries(part) for part in value] if isinstance(value, list) else value


def with_wrong_types(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: part if name in SECRETS else with_wrong_types(part) for name, part in value.items()}
    if isinstance(value, list):
        return [with_wrong_types(part) for part in value]
    return 7 if isinstance(value, str) else value


def with_secrets(error: dict[str, Any]) -> dict[str, Any]:
    """Return the error with secrets in every object that it contains, but not in its messages."""
    canaries = dict.fromkeys(SECRETS, CANARY)
    more: dict[str, Any] = {**error, **canaries}
    if "data" in error:
        more["data"] = {**error["data"], **canaries}
    if "issues" in error:
        more["issues"] = [{**issue, **canaries, "input": canaries} for issue in error["issues"]]
    return more


WITH_SECRETS = [
    entry for entry in ANSWERS if entry["status"] == 200 and with_canaries(entry.get("body")) != entry.get("body")
]
WITH_ERROR_BODY = [entry for entry in ANSWERS if entry["status"] >= 400 and "body" in entry]


async def error_output(server: Server, client: Dokploy, call: Call, status: int, body: bytes) -> str:
    """Return the error in each of its forms, and the recorded exchanges. Empty when there was no error."""
    server.behaviour = responds(status, body, Content_Type="application/json")
    exchanges: list[Exchange] = []
    try:
        await asyncio.wait_for(call(client.for_deployment(lambda procedure: None, exchanges.append)), 5)
    except DokployError as error:
        assert exchanges
        formatted = "".join(traceback.format_exception(error))
        return f"{formatted} {error!r} {error.args} {vars(error)} {exchanges} {' '.join(map(str, exchanges))}"
    return ""


@pytest.mark.parametrize("entry", WITH_SECRETS, ids=names(WITH_SECRETS))
async def test_no_secret_of_a_broken_response_is_shown(
    server: Server, client: Dokploy, caplog: pytest.LogCaptureFixture, entry: dict[str, Any]
) -> None:
    caplog.set_level("DEBUG")
    call, _ = call_of(entry)
    whole = json.dumps(with_canaries(entry["body"])).encode()
    wrong = json.dumps(with_wrong_types(with_canaries(entry["body"]))).encode()
    for status, body in (
        *((200, broken) for broken in (whole[:-1], b"<html>" + whole, whole * 2, whole.replace(b"A=", b"\xff"))),
        *(
            (status, body)
            for status in (302, 400, 401, 403, 404, 409, 413, 429, 500, 502)
            for body in (whole, whole[:-1])
        ),
    ):
        text = await error_output(server, client, call, status, body)
        assert text
        assert CANARY not in text
    assert CANARY not in await error_output(server, client, call, 200, wrong)
    assert CANARY not in caplog.text


@pytest.mark.parametrize("entry", WITH_ERROR_BODY, ids=names(WITH_ERROR_BODY))
async def test_no_secret_of_an_error_is_shown_apart_from_its_message(
    server: Server, client: Dokploy, entry: dict[str, Any]
) -> None:
    call, _ = call_of(entry)
    text = await error_output(server, client, call, entry["status"], json.dumps(with_secrets(entry["body"])).encode())
    assert text
    assert CANARY not in text
