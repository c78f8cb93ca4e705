"""The Dokploy client against a scripted server: what each response means, and the limits of time and size."""

import asyncio
import gzip
import json
import socket
import struct
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import httpx
import pytest
import pytest_asyncio

from deployments.engine.dokploy import Dokploy, Exchange, transport
from deployments.engine.errors import (
    DokployError,
    Interrupted,
    KeyExhausted,
    KeyRefused,
    NotAllowed,
    NotDokploy,
    NotFound,
    OutcomeUnknown,
    Refused,
    Unavailable,
    UnknownProcedure,
)

from ..scripted_server import Behaviour, Request, Server, error_of, http_response, in_turn, responds, responds_json

KEY = "key-canary-4711"
PASSWORD = "password-canary-4712"
VALUE = "value-canary-4713"
pytestmark = pytest.mark.asyncio(loop_scope="module")
LIMIT = 1.0  # seconds for a call that would never end, instead of CALL_SECONDS


def reset(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def resets(request: Request, writer: asyncio.StreamWriter) -> None:
    reset(writer)


async def resets_in_head(request: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Le")
    await writer.drain()
    reset(writer)


async def resets_halfway(request: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(http_response(200, b'[{"projectId": "a"}]')[:-8])
    await writer.drain()
    reset(writer)


async def closes(request: Request, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def stays_silent(request: Request, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()  # until the server stops


async def trickles(request: Request, writer: asyncio.StreamWriter) -> None:
    """Send one byte at a time, each within the time limit of a read."""
    for byte in http_response(200, b"[" + b" " * 1000 + b"]"):
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(LIMIT / 10)


async def sends_interim_responses(request: Request, writer: asyncio.StreamWriter) -> None:
    """Send interim responses without end."""
    while True:
        writer.write(b"HTTP/1.1 102 Processing\r\n\r\n")
        await writer.drain()


async def sends_endless_head(request: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n" + b"X-Padding: x\r\n" * 100_000 + http_response(200, b"[]"))
    await writer.drain()


async def sends_ssh(request: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")
    writer.close()


def trpc(status: int, message: str, path: str | None = "project.create", **more: Any) -> Behaviour:
    data = {"code": "X", "httpStatus": status, **({"path": path} if path else {}), "zodError": None}
    return responds_json(status, {"message": message, "code": "X", "data": data, **more})


@pytest.fixture(autouse=True)
def short_retry_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "SECOND_TRY_SECONDS", 0.01)


@pytest.fixture
def limited(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the time limit only for endless responses: others may be late under load."""
    if request.getfixturevalue("name") in ENDLESS:
        monkeypatch.setattr(transport, "CALL_SECONDS", LIMIT)


@pytest_asyncio.fixture(loop_scope="module")
async def server() -> AsyncIterator[Server]:
    server = Server()
    await server.start()
    yield server
    await server.stop()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def pool() -> AsyncIterator[Dokploy]:
    """Yield one client for all tests: loading the certificates takes longer than a test."""
    client = Dokploy("http://127.0.0.1:9", KEY)
    yield client
    await client.aclose()


@pytest.fixture
def client(server: Server, pool: Dokploy) -> Dokploy:
    pool._transport._http.base_url = httpx.URL(server.url)
    return pool


def read_call(client: Dokploy) -> Awaitable[Any]:
    return client.projects()


def create_call(client: Dokploy) -> Awaitable[Any]:
    return client.create_project("shop", "mark")


# -- responses that leave the outcome unknown --------------------------------------------------------------------------

UNKNOWN_OUTCOMES: dict[str, Behaviour] = {
    "an empty 200": responds(200, b""),
    "a blank 200": responds(200, b" \n"),
    "a 204": responds(204, b""),
    "a page of a proxy with 200": responds(200, b"<html>hello</html>"),
    "a page of a proxy with 502": responds(502, b"<html><h1>502 Bad Gateway</h1></html>", Content_Type="text/html"),
    "truncated JSON": responds(200, b'{"project": {"projectId": "a'),
    "JSON that is not UTF-8": responds(200, b'{"project": "\xff"}'),
    "JSON nested without end": responds(200, b"[" * 200_000),
    "a number of a million digits": responds(200, b"1" * 1_000_000),
    "a number": responds(200, b"7"),
    "a string": responds(200, b'"made"'),
    "null": responds(200, b"null"),
    "an object without the project": responds(200, b"{}"),
    "wrong types": responds(200, b'{"project": {"projectId": 7, "name": [], "environments": {"0": 1}}}'),
    "a list in a list": responds(200, b"[[]]"),
    "rows of wrong types": responds(200, b'[{"projectId": "a", "name": "b", "environments": [{"applications": 7}]}]'),
    "gzip that was not accepted": responds(200, gzip.compress(b"[]"), Content_Encoding="gzip"),
    "something that is not HTTP": sends_ssh,
    "a head without end": sends_endless_head,
    "interim responses without end": sends_interim_responses,
    "a body that breaks off": resets_halfway,
    "a head that breaks off": resets_in_head,
    "a reset": resets,
    "a close": closes,
    "silence": stays_silent,
    "one byte at a time": trickles,
    "a 500": trpc(500, "Internal server error"),
    "a 500 that is not JSON": responds(500, b"Internal Server Error"),
    "a 500 whose JSON is a list": responds(500, b"[]"),
    "a 500 with wrong types": responds_json(500, {"message": 7, "data": [], "issues": 7}),
    "a 400 without issues": trpc(400, "Error creating the project: connection terminated"),
    "a 400 with an empty list of issues": trpc(400, "Input validation failed", issues=[]),
    "a 400 for a missing permission": trpc(400, "Error creating the project: unauthorized to access resource"),
    "a 409": trpc(409, "Conflict"),
    "a 418": responds(418, b""),
    "a 503": responds(503, b"upstream connect error"),
}
ENDLESS = ("silence", "one byte at a time", "interim responses without end")


@pytest.mark.parametrize("name", UNKNOWN_OUTCOMES)
@pytest.mark.usefixtures("limited")
async def test_an_unclear_response_to_a_create_call_means_an_unknown_outcome(
    server: Server, client: Dokploy, name: str
) -> None:
    server.behaviour = UNKNOWN_OUTCOMES[name]
    started = time.monotonic()
    error = await error_of(create_call(client))
    assert type(error) is OutcomeUnknown
    assert not error.permanent
    assert time.monotonic() - started < 7 * LIMIT
    assert server.procedures == ["project.create"], "the client repeated a call with an unknown outcome"


@pytest.mark.parametrize("name", UNKNOWN_OUTCOMES)
@pytest.mark.usefixtures("limited")
async def test_an_unclear_response_to_a_read_means_unavailable(server: Server, client: Dokploy, name: str) -> None:
    server.behaviour = UNKNOWN_OUTCOMES[name]
    started = time.monotonic()
    assert type(await error_of(read_call(client))) is Unavailable
    assert time.monotonic() - started < 7 * LIMIT


@pytest.mark.parametrize(
    "row", ['{"redis": 7}', '{"applications": {"0": {}}}', '{"applications": [7]}', '{"mysql": [7]}']
)
async def test_an_environment_whose_services_cannot_be_counted_is_not_taken_for_an_empty_one(
    server: Server, client: Dokploy, row: str
) -> None:
    """A project is removed only if it is empty."""
    server.behaviour = responds(
        200, b"[" + row.replace("{", '{"environmentId": "e", "isDefault": true, ', 1).encode() + b"]"
    )
    assert type(await error_of(client.environments("p"))) is Unavailable


@pytest.mark.parametrize(
    "save",
    [
        lambda client: client.save_image("app", "web:1"),
        lambda client: client.save_environment("app", "A='1'\n"),
        lambda client: client.save_limits("app", 1, 1.0),
        lambda client: client.update_domain("dom", "a.test", 80, https=False, certificate_type="none"),
    ],
)
async def test_an_empty_response_to_a_save_call_means_an_unknown_outcome(
    server: Server, client: Dokploy, save: Callable[[Dokploy], Awaitable[None]]
) -> None:
    server.behaviour = responds(200, b"")
    assert type(await error_of(save(client))) is OutcomeUnknown
    server.behaviour = responds(200, b"true")
    await save(client)


async def test_an_empty_response_is_accepted_where_dokploy_sends_one(server: Server, client: Dokploy) -> None:
    server.behaviour = responds(200, b"", Content_Type="application/json")
    await client.deploy("app", "title")
    await client.clean_queue("app")


class Flood:
    """A behaviour that sends a response of 50 MB and counts the bytes that the client accepted."""

    SIZE = 50 * 1024 * 1024
    BLOCK = b"x" * 65536

    def __init__(self, status: int, framing: str, start: bytes = b"", block: bytes = BLOCK) -> None:
        self.head = f"HTTP/1.1 {status} Whatever\r\n{framing}\r\n\r\n".encode() + start
        self.block, self.sent = block, 0

    async def __call__(self, request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(self.head)
        self.sent = 0
        while self.sent < self.SIZE:
            writer.write(self.block)
            await writer.drain()
            self.sent += len(self.block)


FLOODS = {
    "with a content length": Flood(200, f"Content-Length: {Flood.SIZE}"),
    "in many chunks": Flood(200, "Transfer-Encoding: chunked", block=b"10000\r\n" + Flood.BLOCK + b"\r\n"),
    "in one chunk": Flood(200, "Transfer-Encoding: chunked", f"{Flood.SIZE:x}\r\n".encode()),
    "that ends with the connection": Flood(200, "Connection: close"),
    "that is an error": Flood(500, f"Content-Length: {Flood.SIZE}"),
    "that is an ambiguous 401": Flood(401, "Connection: close"),
}
NEAR = 3 * transport.MAX_BYTES  # includes the sockets' buffers, and a bytearray that is copied when it grows


@pytest.mark.parametrize("name", FLOODS)
async def test_reading_a_body_of_50_megabytes_stops_near_the_limit(
    server: Server, client: Dokploy, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(transport, "CALL_SECONDS", 5.0)
    flood = server.behaviour = FLOODS[name]
    tracemalloc.start()
    try:
        for call, error_type in ((create_call, OutcomeUnknown), (read_call, Unavailable)):
            error = await error_of(call(client))
            assert type(error) is error_type
            assert "too large" in str(error)
            assert transport.MAX_BYTES <= flood.sent < NEAR
        assert tracemalloc.get_traced_memory()[1] < NEAR
    finally:
        tracemalloc.stop()
    assert server.procedures == ["project.create", "project.all"]


@pytest.mark.parametrize("encoding", ["gzip", "gzip, gzip"])
async def test_a_gzip_bomb_is_not_decompressed(server: Server, client: Dokploy, encoding: str) -> None:
    """The body is a gigabyte of spaces in a megabyte: gzip members may be concatenated."""
    bomb = gzip.compress(b" " * 16 * 1024 * 1024) * 64
    server.behaviour = responds(200, bomb, Content_Encoding=encoding, Content_Type="application/json")
    tracemalloc.start()
    try:
        assert type(await error_of(create_call(client))) is OutcomeUnknown
        assert type(await error_of(read_call(client))) is Unavailable
        assert tracemalloc.get_traced_memory()[1] < 8 * len(bomb)
    finally:
        tracemalloc.stop()


async def test_a_reset_before_the_request_was_read_means_an_unknown_outcome(client: Dokploy) -> None:
    """A client cannot tell a reset before the request was read from one after it."""
    resetting = await asyncio.start_server(lambda reader, writer: reset(writer), "127.0.0.1", 0)
    client._transport._http.base_url = httpx.URL(f"http://127.0.0.1:{resetting.sockets[0].getsockname()[1]}")
    for call, error_type in ((create_call, OutcomeUnknown), (read_call, Unavailable)):
        assert type(await error_of(call(client))) is error_type
    resetting.close()


async def test_a_body_just_below_the_limit_is_read(server: Server, client: Dokploy) -> None:
    server.behaviour = responds(200, b"[" + b" " * (transport.MAX_BYTES - 2) + b"]")
    assert await client.projects() == []


# -- calls that certainly did nothing ----------------------------------------------------------------------------------


async def test_a_refused_connection_means_unavailable_for_changes_too(server: Server, client: Dokploy) -> None:
    await server.stop()
    assert type(await error_of(create_call(client))) is Unavailable
    assert type(await error_of(read_call(client))) is Unavailable


async def test_a_host_that_drops_connections_means_unavailable_for_changes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "CALL_SECONDS", LIMIT)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:  # Linux drops further connections when the listener's queue is full
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        client = Dokploy(f"http://127.0.0.1:{listener.getsockname()[1]}", KEY)
        started = time.monotonic()
        assert type(await error_of(create_call(client))) is Unavailable
        assert time.monotonic() - started < 7 * LIMIT
        await client.aclose()
        for filler in fillers:
            filler.close()


async def test_the_hook_and_the_time_limit_of_a_waiting_call_start_when_it_is_sent(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "CALL_SECONDS", LIMIT)
    server.behaviour = in_turn(stays_silent, responds(200, b"true"))
    client = Dokploy(server.url, KEY, connections=1)
    request_counts: list[int] = []
    view = client.for_deployment(lambda procedure: request_counts.append(len(server.requests)), lambda exchange: None)
    first = asyncio.ensure_future(error_of(create_call(view)))
    await asyncio.wait_for(server.arrived.wait(), 5)
    await view.save_limits("app", 1, 1.0)  # sent after the first call has timed out
    assert type(await first) is OutcomeUnknown
    assert request_counts == [0, 1]
    assert server.procedures == ["project.create", "application.update"]
    await client.aclose()


async def test_an_ambiguous_401_while_the_database_is_down_means_unavailable(server: Server, client: Dokploy) -> None:
    server.behaviour, server.health = responds_json(401, {"message": "Unauthorized"}), responds(500, b"{}")
    for call in (read_call, create_call):
        assert type(await error_of(call(client))) is Unavailable
    assert server.procedures == ["project.all", "trpc/settings.health", "project.create", "trpc/settings.health"]


async def test_an_ambiguous_401_while_dokploy_is_healthy_is_blamed_on_the_key_after_a_read(
    server: Server, client: Dokploy
) -> None:
    server.behaviour = responds_json(401, {"message": "Unauthorized"})
    error = await error_of(create_call(client))
    assert type(error) is KeyRefused
    assert error.permanent
    read = ["trpc/settings.health", "settings.getDokployVersion"]
    assert server.procedures == ["project.create", *read, *read]


async def test_a_change_is_not_sent_again_after_an_ambiguous_401(server: Server, client: Dokploy) -> None:
    """A proxy may have answered after Dokploy made the change."""
    server.behaviour = in_turn(responds_json(401, {"message": "Unauthorized"}), responds_json(200, "v0.30.2"))
    assert type(await error_of(create_call(client))) is OutcomeUnknown
    assert server.procedures.count("project.create") == 1


async def test_an_ambiguous_401_that_does_not_recur_is_ignored(server: Server, client: Dokploy) -> None:
    server.behaviour = in_turn(responds_json(401, {"message": "Unauthorized"}), responds(200, b"[]"))
    assert await client.projects() == []


@pytest.mark.parametrize("call", [read_call, create_call])
@pytest.mark.parametrize(
    ("behaviour", "error_type"),
    [
        (trpc(401, "UNAUTHORIZED"), KeyExhausted),
        (trpc(401, "You don't have access to this service"), NotAllowed),
        (trpc(403, "Forbidden"), NotAllowed),
        (trpc(404, "Project not found"), NotFound),
        (trpc(404, "Not found", path=None, code="NOT_FOUND"), UnknownProcedure),
        (trpc(404, "Not found", path=None), NotDokploy),
        (responds(404, b"404 page not found\n"), NotDokploy),
        (responds(404, b"<html>nothing here</html>"), NotDokploy),
        (responds(413, b"Body exceeded 1mb limit"), Refused),
        (trpc(415, "Unsupported content-type"), Refused),
        (responds(429, b'{"message":"Too many requests."}'), Unavailable),
        (responds(400, b"Invalid JSON"), Refused),
        (trpc(400, "Input validation failed", issues=[{"path": ["host"], "message": "Add a hostname"}]), Refused),
        (trpc(400, "Input validation failed", issues=[{"path": 7, "message": []}]), Refused),
        (trpc(400, "Input validation failed", issues={"path": 7}), Refused),
        (responds(301, b"", Location="/elsewhere"), NotDokploy),
        (responds(308, b""), NotDokploy),
    ],
)
async def test_a_clear_refusal_has_its_own_error(
    server: Server, client: Dokploy, call: Any, behaviour: Behaviour, error_type: type[DokployError]
) -> None:
    server.behaviour = behaviour
    error = await error_of(call(client))
    assert type(error) is error_type
    assert error.permanent is issubclass(error_type, Refused)
    assert len(server.requests) == 1


async def test_the_first_issue_of_a_validation_error_is_the_evidence(server: Server, client: Dokploy) -> None:
    issues = [{"path": ["ports", 0], "message": "Too   small"}, {"path": [], "message": "second"}]
    server.behaviour = trpc(400, "Input validation failed", issues=issues)
    assert (await error_of(create_call(client))).evidence == "ports.0: Too small"


async def test_an_error_with_sql_is_not_shown(server: Server, client: Dokploy) -> None:
    server.behaviour = trpc(500, f'Failed query: insert into "domain" params: {VALUE}')
    error = await error_of(create_call(client))
    assert "Failed query" not in f"{error} {error.evidence}"
    assert VALUE not in f"{error} {error.evidence}"


async def test_the_text_of_an_invalid_response_is_not_shown(server: Server, client: Dokploy) -> None:
    """Rows contain the variables of other users."""
    server.behaviour = responds(200, f'[{{"projectId": "a", "env": "TOKEN={VALUE}", "name": "b'.encode())
    error = await error_of(read_call(client))
    assert VALUE not in f"{error} {error.evidence}"


# -- the server --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behaviour", "error_type"),
    [
        (responds(200, b'{"ok": true}'), None),
        (responds(200, b'{"ok": "true"}'), NotDokploy),
        (responds(200, b"<html>hello</html>"), NotDokploy),
        (responds(204, b""), NotDokploy),
        (responds(302, b"", Location="/login"), NotDokploy),
        (responds(401, b"who are you?"), NotDokploy),
        (responds(404, b"404 page not found"), NotDokploy),
        (responds(503, b"upstream connect error"), OutcomeUnknown),
        (closes, OutcomeUnknown),
    ],
)
async def test_dokploy_is_recognized_by_its_health_response_without_its_database(
    server: Server, client: Dokploy, behaviour: Behaviour, error_type: type[DokployError] | None
) -> None:
    server.behaviour, server.health = behaviour, responds(500, b"")
    if error_type is None:
        await client.require_dokploy()
    else:
        assert type(await error_of(client.require_dokploy())) is error_type
    assert server.procedures == ["health"]


async def test_roles_in_several_organizations_are_returned_once_each(server: Server, client: Dokploy) -> None:
    server.behaviour = responds_json(200, [{"members": [{"role": role}]} for role in ("owner", "member", "owner")])
    assert await client.roles() == {"owner", "member"}
    server.behaviour = responds_json(200, [])
    assert await client.roles() == frozenset()


async def test_only_one_number_is_kept_from_the_servers_settings(server: Server, client: Dokploy) -> None:
    exchanges: list[Exchange] = []
    view = client.for_deployment(lambda procedure: None, exchanges.append)
    server.behaviour = responds_json(200, {"sshPrivateKey": VALUE, "buildsConcurrency": 3})
    assert await view.builds_concurrency() == 3
    for settings in ({"sshPrivateKey": VALUE}, {"buildsConcurrency": VALUE}, {"buildsConcurrency": True}):
        server.behaviour = responds_json(200, settings)
        assert await view.builds_concurrency() is None
    server.behaviour = responds(200, f'{{"sshPrivateKey": "{VALUE}", '.encode())
    error = await error_of(view.builds_concurrency())
    assert VALUE not in f"{error!r} {error} {error.evidence} {exchanges}"


async def test_the_errors_of_the_infrastructure_are_one_line_each(server: Server, client: Dokploy) -> None:
    parts = {"postgres": {"status": "healthy"}, "traefik": {"status": "unhealthy", "message": "no\nsuch   service "}}
    server.behaviour = responds_json(200, parts)
    assert await client.infrastructure_errors() == {"postgres": "", "traefik": "no such service"}
    server.behaviour = responds_json(200, {**parts, "postgres": {"status": "unhealthy"}})
    assert (await client.infrastructure_errors())["postgres"] == "unhealthy"


@pytest.mark.parametrize(
    "body", [b"{}", b"[7]", b'[{"members": 7}]', b'[{"members": [{"role": 7}]}]', b'{"traefik": 7}']
)
async def test_a_malformed_response_about_the_server_means_unavailable(
    server: Server, client: Dokploy, body: bytes
) -> None:
    server.behaviour = responds(200, body)
    assert type(await error_of(client.roles())) is Unavailable
    assert type(await error_of(client.infrastructure_errors())) is Unavailable


# -- the destination of the key ----------------------------------------------------------------------------------------


async def test_a_redirect_is_not_followed_and_the_key_goes_to_no_other_server(server: Server, client: Dokploy) -> None:
    elsewhere = Server()
    url = await elsewhere.start()
    for status in (301, 302, 303, 307, 308):
        server.behaviour = responds(status, b"", Location=f"{url}/api/project.all")
        for call in (read_call, create_call):
            assert type(await error_of(call(client))) is NotDokploy
    assert elsewhere.connections == 0
    assert len(server.requests) == 10
    await elsewhere.stop()


async def test_proxies_in_the_environment_do_not_get_the_key(
    server: Server, client: Dokploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = Server()
    url = await proxy.start()
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, url)
    client = Dokploy(server.url, KEY)
    assert await client.projects() == []
    assert proxy.connections == 0
    await client.aclose()
    await proxy.stop()


async def test_every_request_carries_the_key_and_declines_compression(server: Server, client: Dokploy) -> None:
    await client.projects()
    head = server.requests[0].head.lower()
    assert f"x-api-key: {KEY}" in head
    assert "accept-encoding: identity" in head
    assert KEY not in server.requests[0].path


async def test_a_slash_at_the_end_of_the_address_is_ignored(server: Server) -> None:
    client = Dokploy(f"{server.url}/", KEY)
    await client.projects()
    assert server.procedures == ["project.all"]
    await client.aclose()


# -- secrets -----------------------------------------------------------------------------------------------------------


def secret_calls(client: Dokploy) -> list[Awaitable[Any]]:
    return [
        client.projects(),
        client.create_project("shop", "mark"),
        client.save_image("app", "web:1", "registry.test", "robot", PASSWORD),
        client.save_environment("app", f"TOKEN='{VALUE}'\n"),
    ]


def echo(status: int, template: str) -> Behaviour:
    """Return a behaviour that repeats the request in its error."""

    async def behave(request: Request, writer: asyncio.StreamWriter) -> None:
        text = f"{request.head} {request.body.decode()}"
        error = json.dumps({"message": text, "data": {"path": "x"}, "issues": [{"path": [text], "message": text}]})
        writer.write(http_response(status, template.replace("ERROR", error).encode()))
        await writer.drain()

    return behave


@pytest.mark.parametrize("template", ["ERROR", "<html>ERROR</html>"])
@pytest.mark.parametrize("status", [200, 302, 400, 401, 403, 404, 413, 429, 500, 502])
async def test_no_secret_that_the_server_repeats_gets_into_an_error_or_the_record(
    server: Server, client: Dokploy, status: int, template: str
) -> None:
    server.behaviour = echo(status, template)
    exchanges: list[Exchange] = []
    view = client.for_deployment(lambda procedure: None, exchanges.append)
    output = ""
    for call in secret_calls(view):
        try:
            await call
        except DokployError as error:
            output += f"{error!r} {error} {error.evidence}"
    output += " ".join(f"{exchange} {exchange!r}" for exchange in exchanges)
    assert [exchange.procedure for exchange in exchanges] == server.procedures
    for secret in (KEY, PASSWORD, VALUE, "robot"):
        assert secret not in output
    assert "saveEnvironment" in output


async def test_a_key_that_cannot_be_sent_is_not_shown(server: Server) -> None:
    client = Dokploy(server.url, f"{KEY}\n{KEY}")
    error = await error_of(create_call(client))
    assert KEY not in f"{error!r} {error} {error.evidence}"
    assert server.requests == []
    await client.aclose()


async def test_an_address_without_a_scheme_is_not_dokploy() -> None:
    client = Dokploy("dokploy.test", KEY)
    assert type(await error_of(read_call(client))) is NotDokploy
    await client.aclose()


async def test_every_exchange_is_recorded_with_its_outcome(server: Server, client: Dokploy) -> None:
    exchanges: list[Exchange] = []
    view = client.for_deployment(lambda procedure: None, exchanges.append)
    await view.projects()
    server.behaviour = resets
    await error_of(create_call(view))
    first, second = exchanges
    assert (first.method, first.procedure, first.status) == ("GET", "project.all", 200)
    assert (second.method, second.procedure, second.status) == ("POST", "project.create", 0)
    assert second.fields == {"name": "shop", "description": "mark"}
    assert str(first).endswith(f"-> 200, {first.milliseconds} ms")
    assert "no answer" in str(second)


# -- the hook before changes -------------------------------------------------------------------------------------------


async def test_the_hook_is_called_before_every_change_and_never_before_a_read(server: Server, client: Dokploy) -> None:
    request_counts: list[int] = []
    view = client.for_deployment(lambda procedure: request_counts.append(len(server.requests)), lambda exchange: None)
    reads: list[Awaitable[Any]] = [
        view.projects(),
        view.environments("p"),
        view.dokploy_deployments("a"),
        view.queue(),
        view.containers("a"),
        view.domains("a"),
        view.healthy(),
        view.require_dokploy(),
        view.roles(),
        view.builds_concurrency(),
        view.infrastructure_errors(),
    ]
    for call in reads:
        with suppress(DokployError):
            await call
    assert request_counts == []
    server.behaviour = responds(200, b"true")
    changes: list[Awaitable[Any]] = [
        view.create_project("shop", "mark"),
        view.remove_project("p"),
        view.create_application("e", "shop", "mark"),
        view.save_image("a", "web:1"),
        view.save_environment("a", ""),
        view.save_limits("a", None, None),
        view.deploy("a", "title"),
        view.clean_queue("a"),
        view.create_domain("a", "h.test", 80, https=False, certificate_type="none"),
        view.update_domain("d", "h.test", 80, https=False, certificate_type="none"),
        view.delete_domain("d"),
        view.delete_application("a"),
    ]
    for call in changes:
        with suppress(OutcomeUnknown):
            await call
    first = len(reads)
    assert request_counts == list(range(first, first + len(changes)))
    assert all(request.method == "POST" for request in server.requests[first:])


async def test_a_change_that_the_hook_prevents_is_not_sent(server: Server, client: Dokploy) -> None:
    def prevent(procedure: str) -> None:
        raise Interrupted

    view = client.for_deployment(prevent, lambda exchange: None)
    with pytest.raises(Interrupted):
        await view.create_project("shop", "mark")
    assert server.requests == []
    assert await view.projects() == []


# -- requests ----------------------------------------------------------------------------------------------------------


async def test_creating_a_domain_sends_every_field_with_a_dangerous_default(server: Server, client: Dokploy) -> None:
    await error_of(client.create_domain("app", "h.test", 8080, https=True, certificate_type="letsencrypt"))
    assert json.loads(server.requests[0].body) == {
        "applicationId": "app",
        "host": "h.test",
        "path": "/",
        "port": 8080,
        "https": True,
        "certificateType": "letsencrypt",
        "domainType": "application",
    }


async def test_saving_sends_all_fields_that_dokploy_requires(server: Server, client: Dokploy) -> None:
    server.behaviour = responds(200, b"true")
    await client.save_image("app", "web:1")
    await client.save_environment("app", "")
    await client.save_limits("app", 512, 0.5)
    image, environment, limits = (json.loads(request.body) for request in server.requests)
    assert image == {
        "applicationId": "app",
        "dockerImage": "web:1",
        "username": None,
        "password": None,
        "registryUrl": None,
    }
    assert environment == {
        "applicationId": "app",
        "env": "",
        "buildArgs": None,
        "buildSecrets": None,
        "createEnvFile": False,
    }
    assert limits == {"applicationId": "app", "memoryLimit": "512", "cpuLimit": "500000000"}


async def test_special_characters_in_a_read_are_encoded(server: Server, client: Dokploy) -> None:
    await client.domains("a&b=c/../d #é")
    assert server.requests[0].path == "/api/domain.byApplicationId?applicationId=a%26b%3Dc%2F..%2Fd+%23%C3%A9"
