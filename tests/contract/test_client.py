"""The client against a server that answers what a test says, byte for byte: HTTP becomes meaning, in bounds."""

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
    NotAllowedOrUnknown,
    NotDokploy,
    NotFound,
    OutcomeUnknown,
    Refused,
    Unavailable,
    UnknownProcedure,
)

from ..scripted_server import Behaviour, Request, Server, answer, error_of, in_turn, kind_of, says, says_json

KEY = "key-canary-4711"
PASSWORD = "password-canary-4712"
VALUE = "value-canary-4713"
pytestmark = pytest.mark.asyncio(loop_scope="module")
LIMIT = 1.0  # of what would never end, instead of the seconds that a call may take


def reset(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def resets(request: Request, writer: asyncio.StreamWriter) -> None:
    reset(writer)


async def resets_in_the_head(request: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Le")
    await writer.drain()
    reset(writer)


async def resets_halfway(request: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(answer(200, b'[{"projectId": "a"}]')[:-8])
    await writer.drain()
    reset(writer)


async def closes(request: Request, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def says_nothing(request: Request, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()  # until the server stops


async def dribbles(request: Request, writer: asyncio.StreamWriter) -> None:
    """One byte at a time, each well within any pause that a read allows."""
    for byte in answer(200, b"[" + b" " * 1000 + b"]"):
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(LIMIT / 10)


async def puts_off(request: Request, writer: asyncio.StreamWriter) -> None:
    """Interim answers without end."""
    while True:
        writer.write(b"HTTP/1.1 102 Processing\r\n\r\n")
        await writer.drain()


async def has_a_long_head(request: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n" + b"X-Padding: x\r\n" * 100_000 + answer(200, b"[]"))
    await writer.drain()


async def is_no_http(request: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")
    writer.close()


def trpc(status: int, message: str, path: str | None = "project.create", **more: Any) -> Behaviour:
    data = {"code": "X", "httpStatus": status, **({"path": path} if path else {}), "zodError": None}
    return says_json(status, {"message": message, "code": "X", "data": data, **more})


@pytest.fixture(autouse=True)
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "SECOND_TRY_SECONDS", 0.01)


@pytest.fixture
def limited(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what needs it: an answer may be late on a busy machine, and would be taken for none."""
    if request.getfixturevalue("name") in ENDLESS:
        monkeypatch.setattr(transport, "CALL_SECONDS", LIMIT)


@pytest_asyncio.fixture(loop_scope="module")
async def server() -> AsyncIterator[Server]:
    running = Server()
    await running.start()
    yield running
    await running.stop()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def pool() -> AsyncIterator[Dokploy]:
    """One for all tests: to load the certificates that plain HTTP does not need takes longer than a test."""
    made = Dokploy("http://127.0.0.1:9", KEY)
    yield made
    await made.aclose()


@pytest.fixture
def client(server: Server, pool: Dokploy) -> Dokploy:
    pool._transport._http.base_url = httpx.URL(server.url)
    return pool


def question(client: Dokploy) -> Awaitable[Any]:
    return client.projects()


def creation(client: Dokploy) -> Awaitable[Any]:
    return client.create_project("shop", "mark")


# -- what cannot be told from having been done -------------------------------------------------------------------------

UNCLEAR: dict[str, Behaviour] = {
    "an empty 200": says(200, b""),
    "a blank 200": says(200, b" \n"),
    "a 204": says(204, b""),
    "a page of a proxy with 200": says(200, b"<html>hello</html>"),
    "a page of a proxy with 502": says(502, b"<html><h1>502 Bad Gateway</h1></html>", Content_Type="text/html"),
    "truncated JSON": says(200, b'{"project": {"projectId": "a'),
    "JSON that is no UTF-8": says(200, b'{"project": "\xff"}'),
    "JSON nested without end": says(200, b"[" * 200_000),
    "a number of a million digits": says(200, b"1" * 1_000_000),
    "a number": says(200, b"7"),
    "a text": says(200, b'"made"'),
    "null": says(200, b"null"),
    "an object without what was made": says(200, b"{}"),
    "wrong types": says(200, b'{"project": {"projectId": 7, "name": [], "environments": {"0": 1}}}'),
    "a list in a list": says(200, b"[[]]"),
    "rows of wrong types": says(200, b'[{"projectId": "a", "name": "b", "environments": [{"applications": 7}]}]'),
    "gzip that nobody asked for": says(200, gzip.compress(b"[]"), Content_Encoding="gzip"),
    "something that is not HTTP": is_no_http,
    "a head without end": has_a_long_head,
    "interim answers without end": puts_off,
    "a body that breaks off": resets_halfway,
    "a head that breaks off": resets_in_the_head,
    "a reset": resets,
    "a close": closes,
    "silence": says_nothing,
    "one byte at a time": dribbles,
    "a 500": trpc(500, "Internal server error"),
    "a 500 that is no JSON": says(500, b"Internal Server Error"),
    "a 500 whose JSON is a list": says(500, b"[]"),
    "a 500 with wrong types": says_json(500, {"message": 7, "data": [], "issues": 7}),
    "a 400 without issues": trpc(400, "Error creating the project: connection terminated"),
    "a 400 with a list of no issues": trpc(400, "Input validation failed", issues=[]),
    "a 400 for want of a permission": trpc(400, "Error creating the project: unauthorized to access resource"),
    "a 409": trpc(409, "Conflict"),
    "a 418": says(418, b""),
    "a 503": says(503, b"upstream connect error"),
}
ENDLESS = ("silence", "one byte at a time", "interim answers without end")


@pytest.mark.parametrize("name", UNCLEAR)
@pytest.mark.usefixtures("limited")
async def test_a_creation_that_was_not_answered_cleanly_is_unclear(server: Server, client: Dokploy, name: str) -> None:
    server.does = UNCLEAR[name]
    began = time.monotonic()
    error = await error_of(creation(client))
    assert kind_of(error) is (NotAllowedOrUnknown if "permission" in name else OutcomeUnknown)
    assert not error.permanent
    assert time.monotonic() - began < 7 * LIMIT
    assert server.asked == ["project.create"], "an unclear call is never repeated by the client"


@pytest.mark.parametrize("name", UNCLEAR)
@pytest.mark.usefixtures("limited")
async def test_a_question_that_was_not_answered_cleanly_may_be_asked_again(
    server: Server, client: Dokploy, name: str
) -> None:
    server.does = UNCLEAR[name]
    began = time.monotonic()
    assert kind_of(await error_of(question(client))) is Unavailable
    assert time.monotonic() - began < 7 * LIMIT


@pytest.mark.parametrize(
    "row", ['{"redis": 7}', '{"applications": {"0": {}}}', '{"applications": [7]}', '{"mysql": [7]}']
)
async def test_an_environment_whose_services_cannot_be_counted_is_no_empty_one(
    server: Server, client: Dokploy, row: str
) -> None:
    """A project is only removed when it is seen to be empty."""
    server.does = says(200, b"[" + row.replace("{", '{"environmentId": "e", "isDefault": true, ', 1).encode() + b"]")
    assert kind_of(await error_of(client.environments("p"))) is Unavailable


@pytest.mark.parametrize(
    "save",
    [
        lambda client: client.save_image("app", "web:1"),
        lambda client: client.save_environment("app", "A='1'\n"),
        lambda client: client.save_limits("app", 1, 1.0),
        lambda client: client.update_domain("dom", "a.test", 80, https=False, certificate_type="none"),
    ],
)
async def test_a_save_that_was_answered_with_nothing_is_unclear(
    server: Server, client: Dokploy, save: Callable[[Dokploy], Awaitable[None]]
) -> None:
    server.does = says(200, b"")
    assert kind_of(await error_of(save(client))) is OutcomeUnknown
    server.does = says(200, b"true")
    await save(client)


async def test_what_answers_with_an_empty_body_by_design_is_no_error(server: Server, client: Dokploy) -> None:
    server.does = says(200, b"", Content_Type="application/json")
    await client.deploy("app", "title")
    await client.clean_queue("app")


class Flood:
    """An answer of 50 megabytes; counts what of it could be got rid of."""

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
    "of a declared length": Flood(200, f"Content-Length: {Flood.SIZE}"),
    "in many chunks": Flood(200, "Transfer-Encoding: chunked", block=b"10000\r\n" + Flood.BLOCK + b"\r\n"),
    "in one chunk": Flood(200, "Transfer-Encoding: chunked", f"{Flood.SIZE:x}\r\n".encode()),
    "that only the close ends": Flood(200, "Connection: close"),
    "that is an error": Flood(500, f"Content-Length: {Flood.SIZE}"),
    "that is a bare 401": Flood(401, "Connection: close"),
}
NEAR = 3 * transport.MAX_BYTES  # with what is on its way between two sockets, and a growing list of bytes in two copies


@pytest.mark.parametrize("name", FLOODS)
async def test_a_body_of_50_megabytes_is_given_up_on_near_the_limit(
    server: Server, client: Dokploy, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(transport, "CALL_SECONDS", 5.0)
    flood = server.does = FLOODS[name]
    tracemalloc.start()
    try:
        for call, kind in ((creation, OutcomeUnknown), (question, Unavailable)):
            error = await error_of(call(client))
            assert kind_of(error) is kind
            assert "too large" in str(error)
            assert transport.MAX_BYTES <= flood.sent < NEAR
        assert tracemalloc.get_traced_memory()[1] < NEAR
    finally:
        tracemalloc.stop()
    assert server.asked == ["project.create", "project.all"]


@pytest.mark.parametrize("encoding", ["gzip", "gzip, gzip"])
async def test_a_gzip_bomb_is_never_unpacked(server: Server, client: Dokploy, encoding: str) -> None:
    """A gigabyte of spaces in a megabyte: gzip's members may follow one another."""
    bomb = gzip.compress(b" " * 16 * 1024 * 1024) * 64
    server.does = says(200, bomb, Content_Encoding=encoding, Content_Type="application/json")
    tracemalloc.start()
    try:
        assert kind_of(await error_of(creation(client))) is OutcomeUnknown
        assert kind_of(await error_of(question(client))) is Unavailable
        assert tracemalloc.get_traced_memory()[1] < 8 * len(bomb)
    finally:
        tracemalloc.stop()


async def test_a_reset_before_the_request_was_read_may_have_come_after_it(client: Dokploy) -> None:
    """A client cannot tell these two apart."""
    hasty = await asyncio.start_server(lambda reader, writer: reset(writer), "127.0.0.1", 0)
    client._transport._http.base_url = httpx.URL(f"http://127.0.0.1:{hasty.sockets[0].getsockname()[1]}")
    for call, kind in ((creation, OutcomeUnknown), (question, Unavailable)):
        assert kind_of(await error_of(call(client))) is kind
    hasty.close()


async def test_a_body_just_below_the_limit_is_read(server: Server, client: Dokploy) -> None:
    server.does = says(200, b"[" + b" " * (transport.MAX_BYTES - 2) + b"]")
    assert await client.projects() == []


# -- what was surely not done ------------------------------------------------------------------------------------------


async def test_a_refused_connection_is_unavailable_for_changes_too(server: Server, client: Dokploy) -> None:
    await server.stop()  # nobody listens at its port any more
    assert kind_of(await error_of(creation(client))) is Unavailable
    assert kind_of(await error_of(question(client))) is Unavailable


async def test_a_host_that_swallows_connections_is_unavailable_for_changes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "CALL_SECONDS", LIMIT)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        crowd = [socket.socket() for _ in range(4)]
        for one in crowd:  # once the queue of the listener is full, Linux drops what else wants to connect
            one.setblocking(False)
            one.connect_ex(deaf.getsockname())
        client = Dokploy(f"http://127.0.0.1:{deaf.getsockname()[1]}", KEY)
        began = time.monotonic()
        assert kind_of(await error_of(creation(client))) is Unavailable
        assert time.monotonic() - began < 7 * LIMIT
        await client.aclose()
        for one in crowd:
            one.close()


async def test_a_call_that_waits_for_its_turn_is_guarded_and_timed_from_when_it_is_sent(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "CALL_SECONDS", LIMIT)
    server.does = in_turn(says_nothing, says(200, b"true"))
    client = Dokploy(server.url, KEY, connections=1)
    guarded: list[int] = []
    view = client.for_deployment(lambda procedure: guarded.append(len(server.requests)), lambda exchange: None)
    first = asyncio.ensure_future(error_of(creation(view)))
    await asyncio.wait_for(server.arrived.wait(), 5)
    await view.save_limits("app", 1, 1.0)  # after all the time that the first call had
    assert kind_of(await first) is OutcomeUnknown
    assert guarded == [0, 1]
    assert server.asked == ["project.create", "application.update"]
    await client.aclose()


async def test_a_bare_401_while_the_database_is_down_is_an_outage(server: Server, client: Dokploy) -> None:
    server.does, server.health = says_json(401, {"message": "Unauthorized"}), says(500, b"{}")
    for call in (question, creation):
        assert kind_of(await error_of(call(client))) is Unavailable
    assert server.asked == ["project.all", "trpc/settings.health", "project.create", "trpc/settings.health"]


async def test_a_bare_401_while_all_is_well_is_asked_once_more_and_then_is_the_key(
    server: Server, client: Dokploy
) -> None:
    server.does = says_json(401, {"message": "Unauthorized"})
    error = await error_of(creation(client))
    assert kind_of(error) is KeyRefused
    assert error.permanent
    assert server.asked == ["project.create", "trpc/settings.health", "project.create"]


async def test_a_bare_401_that_goes_away_is_forgotten(server: Server, client: Dokploy) -> None:
    server.does = in_turn(says_json(401, {"message": "Unauthorized"}), says(200, b"[]"))
    assert await client.projects() == []


@pytest.mark.parametrize("call", [question, creation])
@pytest.mark.parametrize(
    ("does", "kind"),
    [
        (trpc(401, "UNAUTHORIZED"), KeyExhausted),
        (trpc(401, "You don't have access to this service"), NotAllowed),
        (trpc(403, "Forbidden"), NotAllowed),
        (trpc(404, "Project not found"), NotFound),
        (trpc(404, "Not found", path=None, code="NOT_FOUND"), UnknownProcedure),
        (trpc(404, "Not found", path=None), NotDokploy),
        (says(404, b"404 page not found\n"), NotDokploy),
        (says(404, b"<html>nothing here</html>"), NotDokploy),
        (says(413, b"Body exceeded 1mb limit"), Refused),
        (trpc(415, "Unsupported content-type"), Refused),
        (says(429, b'{"message":"Too many requests."}'), Unavailable),
        (says(400, b"Invalid JSON"), Refused),
        (trpc(400, "Input validation failed", issues=[{"path": ["host"], "message": "Add a hostname"}]), Refused),
        (trpc(400, "Input validation failed", issues=[{"path": 7, "message": []}]), Refused),
        (trpc(400, "Input validation failed", issues={"path": 7}), Refused),
        (says(301, b"", Location="/elsewhere"), NotDokploy),
        (says(308, b""), NotDokploy),
    ],
)
async def test_a_clear_no_has_its_own_name(
    server: Server, client: Dokploy, call: Any, does: Behaviour, kind: type[DokployError]
) -> None:
    server.does = does
    error = await error_of(call(client))
    assert kind_of(error) is kind
    assert error.permanent is issubclass(kind, Refused)
    assert len(server.requests) == 1


async def test_the_first_complaint_of_a_validation_is_kept_with_its_field(server: Server, client: Dokploy) -> None:
    issues = [{"path": ["ports", 0], "message": "Too   small"}, {"path": [], "message": "second"}]
    server.does = trpc(400, "Input validation failed", issues=issues)
    assert (await error_of(creation(client))).evidence == "ports.0: Too small"


async def test_an_error_with_sql_in_it_is_for_nobodys_eyes(server: Server, client: Dokploy) -> None:
    server.does = trpc(500, f'Failed query: insert into "domain" params: {VALUE}')
    error = await error_of(creation(client))
    assert "Failed query" not in f"{error} {error.evidence}"
    assert VALUE not in f"{error} {error.evidence}"


async def test_the_beginning_of_an_unreadable_answer_is_not_shown(server: Server, client: Dokploy) -> None:
    """Rows hold other people's variables."""
    server.does = says(200, f'[{{"projectId": "a", "env": "TOKEN={VALUE}", "name": "b'.encode())
    error = await error_of(question(client))
    assert VALUE not in f"{error} {error.evidence}"


# -- what is asked about the server itself -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("does", "kind"),
    [
        (says(200, b'{"ok": true}'), None),
        (says(200, b'{"ok": "true"}'), NotDokploy),
        (says(200, b"<html>hello</html>"), NotDokploy),
        (says(204, b""), NotDokploy),
        (says(302, b"", Location="/login"), NotDokploy),
        (says(401, b"who are you?"), NotDokploy),
        (says(404, b"404 page not found"), NotDokploy),
        (says(503, b"upstream connect error"), OutcomeUnknown),
        (closes, OutcomeUnknown),
    ],
)
async def test_dokploy_is_known_by_its_health_and_needs_no_database_for_it(
    server: Server, client: Dokploy, does: Behaviour, kind: type[DokployError] | None
) -> None:
    server.does, server.health = does, says(500, b"")
    if kind is None:
        await client.require_dokploy()
    else:
        assert kind_of(await error_of(client.require_dokploy())) is kind
    assert server.asked == ["health"]


async def test_what_a_user_is_in_several_organizations_is_told_once_each(server: Server, client: Dokploy) -> None:
    server.does = says_json(200, [{"members": [{"role": role}]} for role in ("owner", "member", "owner")])
    assert await client.roles() == {"owner", "member"}
    server.does = says_json(200, [])
    assert await client.roles() == frozenset()


async def test_of_the_servers_settings_only_one_number_is_kept(server: Server, client: Dokploy) -> None:
    exchanges: list[Exchange] = []
    view = client.for_deployment(lambda procedure: None, exchanges.append)
    server.does = says_json(200, {"sshPrivateKey": VALUE, "buildsConcurrency": 3})
    assert await view.builds_concurrency() == 3
    for unknown in ({"sshPrivateKey": VALUE}, {"buildsConcurrency": VALUE}, {"buildsConcurrency": True}):
        server.does = says_json(200, unknown)
        assert await view.builds_concurrency() is None
    server.does = says(200, f'{{"sshPrivateKey": "{VALUE}", '.encode())
    error = await error_of(view.builds_concurrency())
    assert VALUE not in f"{error!r} {error} {error.evidence} {exchanges}"


async def test_what_the_engine_says_of_dokploys_own_parts_is_one_line_each(server: Server, client: Dokploy) -> None:
    parts = {"postgres": {"status": "healthy"}, "traefik": {"status": "unhealthy", "message": "no\nsuch   service "}}
    server.does = says_json(200, parts)
    assert await client.infrastructure_errors() == {"postgres": "", "traefik": "no such service"}
    server.does = says_json(200, {**parts, "postgres": {"status": "unhealthy"}})
    assert (await client.infrastructure_errors())["postgres"] == "unhealthy"


@pytest.mark.parametrize(
    "body", [b"{}", b"[7]", b'[{"members": 7}]', b'[{"members": [{"role": 7}]}]', b'{"traefik": 7}']
)
async def test_an_answer_about_the_server_that_cannot_be_one_is_an_outage(
    server: Server, client: Dokploy, body: bytes
) -> None:
    server.does = says(200, body)
    assert kind_of(await error_of(client.roles())) is Unavailable
    assert kind_of(await error_of(client.infrastructure_errors())) is Unavailable


# -- where the key goes ------------------------------------------------------------------------------------------------


async def test_a_redirect_is_not_followed_and_the_key_reaches_nobody_else(server: Server, client: Dokploy) -> None:
    elsewhere = Server()
    url = await elsewhere.start()
    for status in (301, 302, 303, 307, 308):
        server.does = says(status, b"", Location=f"{url}/api/project.all")
        for call in (question, creation):
            assert kind_of(await error_of(call(client))) is NotDokploy
    assert elsewhere.connections == 0
    assert len(server.requests) == 10
    await elsewhere.stop()


async def test_no_proxy_of_the_environment_gets_the_key(
    server: Server, client: Dokploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = Server()
    url = await proxy.start()
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, url)
    fresh = Dokploy(server.url, KEY)
    assert await fresh.projects() == []
    assert proxy.connections == 0
    await fresh.aclose()
    await proxy.stop()


async def test_every_request_carries_the_key_and_asks_for_no_compression(server: Server, client: Dokploy) -> None:
    await client.projects()
    head = server.requests[0].head.lower()
    assert f"x-api-key: {KEY}" in head
    assert "accept-encoding: identity" in head
    assert KEY not in server.requests[0].path


async def test_an_address_with_a_slash_at_its_end_is_the_same_address(server: Server) -> None:
    client = Dokploy(f"{server.url}/", KEY)
    await client.projects()
    assert server.asked == ["project.all"]
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

    async def does(request: Request, writer: asyncio.StreamWriter) -> None:
        sent = f"{request.head} {request.body.decode()}"
        whole = json.dumps({"message": sent, "data": {"path": "x"}, "issues": [{"path": [sent], "message": sent}]})
        writer.write(answer(status, template.replace("ALL", whole).encode()))
        await writer.drain()

    return does


@pytest.mark.parametrize("template", ["ALL", "<html>ALL</html>"])
@pytest.mark.parametrize("status", [200, 302, 400, 401, 403, 404, 413, 429, 500, 502])
async def test_no_secret_is_in_an_error_or_in_the_record_though_the_server_repeats_it(
    server: Server, client: Dokploy, status: int, template: str
) -> None:
    server.does = echo(status, template)
    exchanges: list[Exchange] = []
    view = client.for_deployment(lambda procedure: None, exchanges.append)
    told = ""
    for call in secret_calls(view):
        try:
            await call
        except DokployError as error:
            told += f"{error!r} {error} {error.evidence}"
    told += " ".join(f"{exchange} {exchange!r}" for exchange in exchanges)
    assert [exchange.procedure for exchange in exchanges] == server.asked
    for secret in (KEY, PASSWORD, VALUE, "robot"):
        assert secret not in told
    assert "saveEnvironment" in told


async def test_a_key_that_cannot_be_sent_is_not_shown(server: Server) -> None:
    client = Dokploy(server.url, f"{KEY}\n{KEY}")
    error = await error_of(creation(client))
    assert KEY not in f"{error!r} {error} {error.evidence}"
    assert server.requests == []
    await client.aclose()


async def test_an_address_without_a_scheme_is_not_dokploy() -> None:
    client = Dokploy("dokploy.test", KEY)
    assert kind_of(await error_of(question(client))) is NotDokploy
    await client.aclose()


async def test_every_exchange_is_recorded_with_its_outcome(server: Server, client: Dokploy) -> None:
    exchanges: list[Exchange] = []
    view = client.for_deployment(lambda procedure: None, exchanges.append)
    await view.projects()
    server.does = resets
    await error_of(creation(view))
    first, second = exchanges
    assert (first.method, first.procedure, first.status) == ("GET", "project.all", 200)
    assert (second.method, second.procedure, second.status) == ("POST", "project.create", 0)
    assert second.fields == {"name": "shop", "description": "mark"}
    assert str(first).endswith(f"-> 200, {first.milliseconds} ms")
    assert "no answer" in str(second)


# -- the guard ---------------------------------------------------------------------------------------------------------


async def test_the_guard_is_asked_before_every_change_and_never_before_a_question(
    server: Server, client: Dokploy
) -> None:
    guarded: list[int] = []
    view = client.for_deployment(lambda procedure: guarded.append(len(server.requests)), lambda exchange: None)
    questions: list[Awaitable[Any]] = [
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
    for call in questions:
        with suppress(DokployError):
            await call
    assert guarded == []
    server.does = says(200, b"true")
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
    first = len(questions)
    assert guarded == list(range(first, first + len(changes)))
    assert all(request.method == "POST" for request in server.requests[first:])


async def test_what_the_guard_forbids_is_not_sent(server: Server, client: Dokploy) -> None:
    def forbids(procedure: str) -> None:
        raise Interrupted

    view = client.for_deployment(forbids, lambda exchange: None)
    with pytest.raises(Interrupted):
        await view.create_project("shop", "mark")
    assert server.requests == []
    assert await view.projects() == []


async def test_the_second_try_after_a_bare_401_asks_the_guard_again(server: Server, client: Dokploy) -> None:
    server.does = says_json(401, {"message": "Unauthorized"})
    asked = 0

    def once(procedure: str) -> None:
        nonlocal asked
        asked += 1
        if asked > 1:
            raise Interrupted

    with pytest.raises(Interrupted):
        await client.for_deployment(once, lambda exchange: None).create_project("shop", "mark")
    assert server.asked.count("project.create") == 1


# -- what is sent ------------------------------------------------------------------------------------------------------


async def test_a_domain_is_made_with_every_field_that_has_a_dangerous_default(server: Server, client: Dokploy) -> None:
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


async def test_a_save_sends_all_the_fields_that_dokploy_wants(server: Server, client: Dokploy) -> None:
    server.does = says(200, b"true")
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


async def test_a_question_with_strange_text_arrives_as_it_was_meant(server: Server, client: Dokploy) -> None:
    await client.domains("a&b=c/../d #é")
    assert server.requests[0].path == "/api/domain.byApplicationId?applicationId=a%26b%3Dc%2F..%2Fd+%23%C3%A9"
