"""The client of Dokploy's log WebSocket: its requests, the received text, and its errors."""

import asyncio
import contextlib
import logging
import struct
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from deployments.engine.dokploy import Dokploy, log_stream, transport
from deployments.engine.errors import Unavailable

from ..processes import KEY
from .engine.harness import eventually
from .log_server import BINARY, CLOSE, Behaviour, LogServer, Peer, answers, closes, frame, resets, says_nothing, sends
from .test_probe import certificate

pytestmark = pytest.mark.asyncio(loop_scope="module")
PATH = "/etc/dokploy/logs/web-a1b2c3/web-a1b2c3-2026-11-23:07:01:45.log"
CANARY = "log-canary-4711"
LIMIT = 1.0  # seconds; replaces the time limit of a call in tests of answers that never end


@pytest_asyncio.fixture(loop_scope="module")
async def server() -> AsyncIterator[LogServer]:
    running = LogServer()
    await running.start()
    yield running
    await running.stop()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def pool() -> AsyncIterator[Dokploy]:
    """Yield one client for all tests: loading the certificates of each client would take longer than a test."""
    client = Dokploy("http://127.0.0.1:9", KEY)
    yield client
    await client.aclose()


@pytest.fixture
def client(server: LogServer, pool: Dokploy, monkeypatch: pytest.MonkeyPatch) -> Dokploy:
    monkeypatch.setattr(log_stream, "CLOSE_SECONDS", 0.3)
    pool._transport._http.base_url = httpx.URL(server.url)
    return pool


@pytest.fixture
def short_call_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "CALL_SECONDS", LIMIT)


async def follow_until_error(client: Dokploy) -> tuple[list[str], Unavailable]:
    """Return the received text and the error that ended it."""
    pieces: list[str] = []

    async def follow() -> None:
        async for text in client.follow_log(PATH):
            pieces.append(text)

    with pytest.raises(Unavailable) as caught:
        await asyncio.wait_for(follow(), 20)
    assert type(caught.value) is Unavailable
    return pieces, caught.value


# -- requests and received text ----------------------------------------------------------------------------------------


async def test_text_is_received_as_it_is_written(server: LogServer, client: Dokploy) -> None:
    release = asyncio.Event()

    async def behave(peer: Peer) -> None:
        await peer.upgrade()
        await peer.send(frame("Initializing deployment\n"))
        await release.wait()
        await peer.send(frame("Pulling é", fin=False), frame(" web:1\n", 0))
        await peer.wait_until_closed()

    server.on_listen = behave
    async with contextlib.aclosing(client.follow_log(PATH)) as pieces, asyncio.timeout(20):
        assert await anext(pieces) == "Initializing deployment\n"
        release.set()
        assert await anext(pieces) == "Pulling é web:1\n"
    target = httpx.URL(server.request_heads[0].split()[1])
    assert (target.path, dict(target.params)) == ("/listen-deployment", {"logPath": PATH})
    await eventually(lambda: server.ended_count == 1)


async def test_the_request_carries_the_key_and_requests_no_compression(server: LogServer, client: Dokploy) -> None:
    server.on_listen = closes()
    await follow_until_error(client)
    head = server.request_heads[0]
    assert f"\r\nx-api-key: {KEY}\r\n" in head
    assert "Sec-WebSocket-Extensions" not in head
    assert KEY not in head.split("\r\n")[0]


async def test_the_path_of_the_address_is_kept(server: LogServer, client: Dokploy) -> None:
    server.on_listen = closes()
    client._transport._http.base_url = httpx.URL(f"{server.url}/behind/here/")
    await follow_until_error(client)
    assert server.connections == 1
    assert server.request_heads == [], "the requested path begins with that of the address"


async def test_a_log_in_many_frames_is_complete(server: LogServer, client: Dokploy) -> None:
    chunk = "x" * 65_535 + "\n"
    server.on_listen = sends(*[frame(chunk)] * 20, frame("", CLOSE), stays=False)
    assert "".join((await follow_until_error(client))[0]) == chunk * 20


@pytest.mark.usefixtures("short_call_limit")
async def test_a_silent_connection_that_answers_pings_stays_open(server: LogServer, client: Dokploy) -> None:
    pings = asyncio.Queue[None]()

    async def behave(peer: Peer) -> None:
        await peer.upgrade()
        for _ in range(3):
            first, second = await peer.reader.readexactly(2)
            data = await peer.reader.readexactly(4 + (second & 0x7F))
            assert first == 0x89
            pong = bytes(byte ^ data[place % 4] for place, byte in enumerate(data[4:]))
            await peer.send(frame(pong, 10))
            pings.put_nowait(None)
        await peer.send(frame("still here\n"))
        await peer.wait_until_closed()

    server.on_listen = behave
    async with contextlib.aclosing(client.follow_log(PATH)) as pieces, asyncio.timeout(20):
        assert await anext(pieces) == "still here\n"
    assert pings.qsize() == 3


# -- failures ----------------------------------------------------------------------------------------------------------


async def resets_later(peer: Peer) -> None:
    await peer.upgrade()
    await peer.send(frame(CANARY))
    peer.reset()


async def ends_without_a_close_frame(peer: Peer) -> None:
    await peer.upgrade()


async def ends_within_a_frame(peer: Peer) -> None:
    await peer.upgrade()
    await peer.send(frame(CANARY * 10)[:-3])


async def sends_byte_by_byte(peer: Peer) -> None:
    for byte in b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n" + b"X-A: b\r\n" * 1000:
        await peer.send(bytes([byte]))
        await asyncio.sleep(0.01)


async def sends_no_http(peer: Peer) -> None:
    await peer.send(b"SSH-2.0-OpenSSH_9.6\r\n")


async def accepts_another_request(peer: Peer) -> None:
    peer.head = peer.head.replace("Sec-WebSocket-Key: ", "Sec-WebSocket-Key: other")
    await peer.upgrade()


async def closes_with_secrets(peer: Peer) -> None:
    await peer.upgrade()
    await peer.send(frame(struct.pack("!H", 4000) + f"{KEY} {CANARY}".encode(), CLOSE))


FAILURES: dict[str, Behaviour] = {
    "a close without a code, as for a wrong key": closes(),
    "a normal close": closes(1000),
    "a close with Dokploy's code": closes(4000, "Invalid log path"),
    "a close with a reason that repeats secrets": closes_with_secrets,
    "a close frame without an end of the connection": sends(frame(b"", CLOSE)),
    "an end without a close frame": ends_without_a_close_frame,
    "an end in the middle of a frame": ends_within_a_frame,
    "a reset": resets_later,
    "a reset instead of the upgrade": resets,
    "silence instead of the upgrade": says_nothing,
    "an upgrade byte by byte": sends_byte_by_byte,
    "unanswered pings": sends(),
    "a page instead of the upgrade": answers(200, f"<html>{CANARY}</html>", "Content-Type: text/html"),
    "an upgrade refused with 401": answers(401, f'{{"message":"Unauthorized {KEY}"}}'),
    "an upgrade refused with 403": answers(403, f"{KEY}"),
    "an upgrade refused with 404": answers(404, f"404: This page could not be found. {KEY}"),
    "an upgrade refused with 502": answers(502, f"<html>{CANARY}</html>", f"X-Echo: {KEY}"),
    "an upgrade for another request": accepts_another_request,
    "something that is not HTTP": sends_no_http,
    "a binary frame": sends(frame(CANARY, BINARY)),
    "text that is not UTF-8": sends(frame(CANARY.encode() + b"\xff\xfe")),
    "an unknown frame type": sends(frame(CANARY, 3)),
    "a frame that is too large": sends(frame("x" * (log_stream.MAX_FRAME_BYTES + 1))),
    "a frame with an enormous length": sends(b"\x81\x7f" + struct.pack("!Q", 2**62) + CANARY.encode()),
    "an endless fragmented text": sends(frame("x" * 60_000, fin=False), *[frame("x" * 60_000, 0, fin=False)] * 10),
    "an error of tail": sends(frame(f"tail error: tail: cannot open '{CANARY}'\ntail: no files remaining\n")),
}
# The failures in which the server keeps its side of the connection open.
ENDLESS = {
    "silence instead of the upgrade",
    "an upgrade byte by byte",
    "unanswered pings",
    "a close frame without an end of the connection",
    "an unknown frame type",
    "a frame that is too large",
    "a frame with an enormous length",
    "an endless fragmented text",
}


@pytest.mark.parametrize("kind", FAILURES)
async def test_every_failure_raises_unavailable_without_secrets(
    request: pytest.FixtureRequest, server: LogServer, client: Dokploy, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    server.on_listen = FAILURES[kind]
    if kind in ENDLESS:
        request.getfixturevalue("short_call_limit")
    began = time.monotonic()
    pieces, error = await follow_until_error(client)
    assert time.monotonic() - began < 7 * LIMIT
    assert pieces in ([], [CANARY])
    for secret in (KEY, CANARY):
        assert secret not in f"{error!r} {error} {error.evidence} {error.__cause__!r} {caplog.text}"
    assert len(server.request_heads) == 1
    await eventually(lambda: server.ended_count == 1)


async def test_a_refused_connection_raises_unavailable(server: LogServer, client: Dokploy) -> None:
    await server.stop()
    assert (await follow_until_error(client))[0] == []


@pytest.mark.usefixtures("short_call_limit")
@pytest.mark.parametrize("url", ["dokploy.test", "http://", "http://[::1", "http://host.invalid:70000"])
async def test_an_invalid_address_raises_unavailable(client: Dokploy, url: str) -> None:
    with contextlib.suppress(httpx.InvalidURL):
        client._transport._http.base_url = httpx.URL(url)
        assert (await follow_until_error(client))[0] == []


async def test_an_endless_log_is_limited(server: LogServer, client: Dokploy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_BYTES", 1_000_000)

    async def behave(peer: Peer) -> None:
        await peer.upgrade()
        while True:
            await peer.send(frame("x" * 60_000))

    server.on_listen = behave
    pieces, _ = await follow_until_error(client)
    assert 900_000 < sum(map(len, pieces)) <= 1_000_000
    await eventually(lambda: server.ended_count == 1)


# -- the key -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
async def test_no_redirect_is_followed(server: LogServer, client: Dokploy, status: int) -> None:
    elsewhere = LogServer()
    await elsewhere.start()
    elsewhere.on_listen = sends(frame("from elsewhere\n"))
    places = [f"http://127.0.0.1:{elsewhere.port}", f"ws://localhost:{elsewhere.port}", f"//127.0.0.1:{elsewhere.port}"]
    for place in (*places, server.url, ""):
        server.on_listen = answers(status, "", f"Location: {place}/listen-deployment?logPath=other")
        assert (await follow_until_error(client))[0] == []
    assert elsewhere.connections == 0
    assert server.connections == len(server.request_heads) == len(places) + 2
    await elsewhere.stop()


async def test_proxies_of_the_environment_are_not_used(
    server: LogServer, client: Dokploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = LogServer()
    url = await proxy.start()
    for name in ("http_proxy", "https_proxy", "ws_proxy", "wss_proxy", "all_proxy", "socks_proxy"):
        monkeypatch.setenv(name, url)
        monkeypatch.setenv(name.upper(), url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    server.on_listen = sends(frame("direct\n"), frame("", CLOSE), stays=False)
    assert (await follow_until_error(client))[0] == ["direct\n"]
    assert proxy.connections == 0
    await proxy.stop()


@pytest.mark.parametrize("trusted", [True, False])
async def test_the_key_is_sent_only_over_a_trusted_certificate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trusted: bool
) -> None:
    tls, file = certificate(tmp_path, "localhost")
    secure = LogServer()
    await secure.start(ssl=tls)
    secure.on_listen = sends(frame("over TLS\n"), frame("", CLOSE), stays=False)
    if trusted:
        monkeypatch.setattr("certifi.where", lambda: str(file))
    client = Dokploy(f"https://localhost:{secure.port}", KEY)
    assert (await follow_until_error(client))[0] == ["over TLS\n"] * trusted
    assert len(secure.request_heads) == trusted
    client._transport._http.base_url = httpx.URL(f"https://127.0.0.1:{secure.port}")
    assert (await follow_until_error(client))[0] == [], "the certificate is for another name"
    assert len(secure.request_heads) == trusted
    await client.aclose()
    await secure.stop()


async def test_neither_the_key_nor_the_text_is_logged(
    server: LogServer, client: Dokploy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.on_listen = sends(frame(CANARY), frame(b"", CLOSE), stays=False)
    assert (await follow_until_error(client))[0] == [CANARY]
    assert KEY not in caplog.text
    assert CANARY not in caplog.text
