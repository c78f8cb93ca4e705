"""A log that is followed by its WebSocket: where the key goes, every way to fail, and the run that reports it."""

import asyncio
import contextlib
import logging
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from websockets.utils import accept_key

from deployments.engine import containers, deploy, deploy_log
from deployments.engine import reporter as reporter_module
from deployments.engine.dokploy import Dokploy, log_stream, transport
from deployments.engine.errors import Interrupted, Unavailable
from deployments.engine.resources import base
from deployments.engine.spec import Progress

from ..processes import IMAGE, KEY, Simulator
from ..unit.test_probe import certificate
from .test_recipe import Found, Run, calls, logged, new_run, soon

pytestmark = pytest.mark.asyncio(loop_scope="module")
PATH = "/etc/dokploy/logs/web-a1b2c3/web-a1b2c3-2026-11-23:07:01:45.log"
CANARY = "log-canary-4711"
LIMIT = 1.0  # of what would never end, instead of the seconds that a call may take
TEXT, BINARY, CLOSE = 1, 2, 8


class Peer:
    """The server's end of one connection, after the head of its request has been read."""

    def __init__(self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.head, self.reader, self.writer = head, reader, writer

    async def say(self, *parts: bytes) -> None:
        self.writer.write(b"".join(parts))
        await self.writer.drain()

    async def upgrade(self) -> None:
        key = next(line.split(": ")[1] for line in self.head.split("\r\n") if line.startswith("Sec-WebSocket-Key"))
        head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        await self.say(f"{head}Sec-WebSocket-Accept: {accept_key(key)}\r\n\r\n".encode())

    async def until_gone(self) -> None:
        while await self.reader.read(65536):
            pass

    def reset(self) -> None:
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Behaviour = Callable[[Peer], Awaitable[None]]


def frame(payload: str | bytes, kind: int = TEXT, *, fin: bool = True) -> bytes:
    data = payload.encode() if isinstance(payload, str) else payload
    head = bytes([0x80 * fin | kind])
    if len(data) < 126:
        return head + bytes([len(data)]) + data
    if len(data) < 65536:
        return head + b"\x7e" + struct.pack("!H", len(data)) + data
    return head + b"\x7f" + struct.pack("!Q", len(data)) + data


class Server:
    """Answers a followed log as a test says; all else it passes on to the simulator, byte for byte."""

    def __init__(self, upstream: int = 0) -> None:
        self.upstream = upstream
        self.listens: Behaviour = self.pass_on
        self.heads: list[str] = []
        """Of the sockets, as they were asked for."""
        self.ended = 0
        self.connections = 0
        self._peers: set[Peer] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, **more: Any) -> str:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, **more)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self.url

    async def stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Every followed log breaks off."""
        for peer in self._peers:
            peer.reset()

    async def pass_on(self, peer: Peer) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        writer.write(peer.head.encode())
        pumps = {asyncio.create_task(pump(peer.reader, writer)), asyncio.create_task(pump(reader, peer.writer))}
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in pumps:
                task.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            writer.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            peer = Peer((await reader.readuntil(b"\r\n\r\n")).decode(), reader, writer)
            if " /listen-deployment" in peer.head.partition("?")[0]:
                await self._listen(peer)
            else:
                await self.pass_on(peer)
        writer.close()
        self._tasks.discard(task)

    async def _listen(self, peer: Peer) -> None:
        self.heads.append(peer.head)
        self._peers.add(peer)
        try:
            await self.listens(peer)
        finally:
            self._peers.discard(peer)
            self.ended += 1


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


@pytest_asyncio.fixture(loop_scope="module")
async def server() -> AsyncIterator[Server]:
    running = Server()
    await running.start()
    yield running
    await running.stop()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def pool() -> AsyncIterator[Dokploy]:
    """One for all: to load the certificates that plain HTTP does not need takes longer than a test."""
    made = Dokploy("http://127.0.0.1:9", KEY)
    yield made
    await made.aclose()


@pytest.fixture
def client(server: Server, pool: Dokploy, monkeypatch: pytest.MonkeyPatch) -> Dokploy:
    monkeypatch.setattr(log_stream, "CLOSE_SECONDS", 0.3)
    pool._transport._http.base_url = httpx.URL(server.url)
    return pool


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "CALL_SECONDS", LIMIT)


async def followed(client: Dokploy) -> tuple[list[str], Unavailable]:
    """What came, and how it ended."""
    pieces: list[str] = []

    async def follow() -> None:
        async for text in client.follow_log(PATH):
            pieces.append(text)

    with pytest.raises(Unavailable) as caught:
        await asyncio.wait_for(follow(), 20)
    assert type(caught.value) is Unavailable
    return pieces, caught.value


def sends(*frames: bytes, stays: bool = True) -> Behaviour:
    """Upgrades, sends them, and waits until the client goes."""

    async def does(peer: Peer) -> None:
        await peer.upgrade()
        await peer.say(*frames)
        if stays:
            await peer.until_gone()

    return does


def answers(status: int, body: str, *headers: str) -> Behaviour:
    async def does(peer: Peer) -> None:
        lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", *headers, "", body]
        await peer.say("\r\n".join(lines).encode())

    return does


def closes(code: int | None = None, reason: str = "") -> Behaviour:
    payload = b"" if code is None else struct.pack("!H", code) + reason.encode()

    async def does(peer: Peer) -> None:
        await peer.upgrade()
        await peer.say(frame(payload, CLOSE))

    return does


# -- what is sent and what comes ---------------------------------------------------------------------------------------


async def test_text_comes_as_it_is_written_from_the_path_that_was_asked_for(server: Server, client: Dokploy) -> None:
    go_on = asyncio.Event()

    async def does(peer: Peer) -> None:
        await peer.upgrade()
        await peer.say(frame("Initializing deployment\n"))
        await go_on.wait()
        await peer.say(frame("Pulling é", fin=False), frame(" web:1\n", 0))
        await peer.until_gone()

    server.listens = does
    async with contextlib.aclosing(client.follow_log(PATH)) as pieces, asyncio.timeout(20):
        assert await anext(pieces) == "Initializing deployment\n"
        go_on.set()
        assert await anext(pieces) == "Pulling é web:1\n"
    target = httpx.URL(server.heads[0].split()[1])
    assert (target.path, dict(target.params)) == ("/listen-deployment", {"logPath": PATH})
    await soon(lambda: server.ended == 1)


async def test_the_request_carries_the_key_and_asks_for_no_compression(server: Server, client: Dokploy) -> None:
    server.listens = closes()
    await followed(client)
    head = server.heads[0]
    assert f"\r\nx-api-key: {KEY}\r\n" in head
    assert "Sec-WebSocket-Extensions" not in head
    assert KEY not in head.split("\r\n")[0]


async def test_an_address_with_a_path_keeps_it(server: Server, client: Dokploy) -> None:
    server.listens = closes()
    client._transport._http.base_url = httpx.URL(f"{server.url}/behind/here/")
    await followed(client)
    assert server.connections == 1
    assert server.heads == [], "what is asked for begins with the path"


async def test_a_log_in_many_frames_arrives_whole(server: Server, client: Dokploy) -> None:
    chunk = "x" * 65_535 + "\n"
    server.listens = sends(*[frame(chunk)] * 20, frame("", CLOSE), stays=False)
    assert "".join((await followed(client))[0]) == chunk * 20


@pytest.mark.usefixtures("limited")
async def test_silence_is_no_fault_while_pings_are_answered(server: Server, client: Dokploy) -> None:
    pings = asyncio.Queue[None]()

    async def does(peer: Peer) -> None:
        await peer.upgrade()
        for _ in range(3):
            first, second = await peer.reader.readexactly(2)
            data = await peer.reader.readexactly(4 + (second & 0x7F))
            assert first == 0x89
            pong = bytes(byte ^ data[place % 4] for place, byte in enumerate(data[4:]))
            await peer.say(frame(pong, 10))
            pings.put_nowait(None)
        await peer.say(frame("still here\n"))
        await peer.until_gone()

    server.listens = does
    async with contextlib.aclosing(client.follow_log(PATH)) as pieces, asyncio.timeout(20):
        assert await anext(pieces) == "still here\n"
    assert pings.qsize() == 3


# -- every way to fail -------------------------------------------------------------------------------------------------


async def resets(peer: Peer) -> None:
    peer.reset()


async def resets_later(peer: Peer) -> None:
    await peer.upgrade()
    await peer.say(frame(CANARY))
    peer.reset()


async def ends_without_a_word(peer: Peer) -> None:
    await peer.upgrade()


async def ends_in_a_frame(peer: Peer) -> None:
    await peer.upgrade()
    await peer.say(frame(CANARY * 10)[:-3])


async def says_nothing(peer: Peer) -> None:
    await peer.until_gone()


async def dribbles(peer: Peer) -> None:
    for byte in b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n" + b"X-A: b\r\n" * 1000:
        await peer.say(bytes([byte]))
        await asyncio.sleep(0.01)


async def is_no_http(peer: Peer) -> None:
    await peer.say(b"SSH-2.0-OpenSSH_9.6\r\n")


async def accepts_for_another(peer: Peer) -> None:
    peer.head = peer.head.replace("Sec-WebSocket-Key: ", "Sec-WebSocket-Key: other")
    await peer.upgrade()


async def repeats_what_it_got(peer: Peer) -> None:
    await peer.upgrade()
    await peer.say(frame(struct.pack("!H", 4000) + f"{KEY} {CANARY}".encode(), CLOSE))


FAILURES: dict[str, Behaviour] = {
    "a close without a code, as for a wrong key": closes(),
    "a close in good order": closes(1000),
    "a close with Dokploy's code": closes(4000, "Invalid log path"),
    "a close with a reason that repeats secrets": repeats_what_it_got,
    "a close in words only": sends(frame(b"", CLOSE)),
    "an end without a close": ends_without_a_word,
    "an end in the middle of a frame": ends_in_a_frame,
    "a reset": resets_later,
    "a reset at the opening": resets,
    "silence at the opening": says_nothing,
    "an opening a byte at a time": dribbles,
    "nobody who answers pings": sends(),
    "a page instead of the upgrade": answers(200, f"<html>{CANARY}</html>", "Content-Type: text/html"),
    "an upgrade refused with 401": answers(401, f'{{"message":"Unauthorized {KEY}"}}'),
    "an upgrade refused with 403": answers(403, f"{KEY}"),
    "an upgrade refused with 404": answers(404, f"404: This page could not be found. {KEY}"),
    "an upgrade refused with 502": answers(502, f"<html>{CANARY}</html>", f"X-Echo: {KEY}"),
    "an upgrade for another request": accepts_for_another,
    "something that is not HTTP": is_no_http,
    "a binary frame": sends(frame(CANARY, BINARY)),
    "text that is no UTF-8": sends(frame(CANARY.encode() + b"\xff\xfe")),
    "an unknown kind of frame": sends(frame(CANARY, 3)),
    "a frame that is too large": sends(frame("x" * (log_stream.MAX_FRAME_BYTES + 1))),
    "a frame that says it is enormous": sends(b"\x81\x7f" + struct.pack("!Q", 2**62) + CANARY.encode()),
    "a text in endless fragments": sends(frame("x" * 60_000, fin=False), *[frame("x" * 60_000, 0, fin=False)] * 10),
    "a version_error of tail": sends(frame(f"tail error: tail: cannot open '{CANARY}'\ntail: no files remaining\n")),
}


# The server keeps its end open.
ENDLESS = {
    *("silence at the opening", "an opening a byte at a time", "nobody who answers pings", "a close in words only"),
    *("an unknown kind of frame", "a frame that is too large", "a frame that says it is enormous"),
    "a text in endless fragments",
}


@pytest.mark.parametrize("way", FAILURES)
async def test_every_way_to_fail_is_one_error_without_a_secret(
    request: pytest.FixtureRequest, server: Server, client: Dokploy, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    server.listens = FAILURES[way]
    if way in ENDLESS:
        request.getfixturevalue("limited")
    began = time.monotonic()
    pieces, error = await followed(client)
    assert time.monotonic() - began < 7 * LIMIT
    assert pieces in ([], [CANARY])
    for secret in (KEY, CANARY):
        assert secret not in f"{error!r} {error} {error.evidence} {error.__cause__!r} {caplog.text}"
    assert len(server.heads) == 1
    await soon(lambda: server.ended == 1)


async def test_nobody_at_the_address_is_the_same_error(server: Server, client: Dokploy) -> None:
    await server.stop()
    assert (await followed(client))[0] == []


@pytest.mark.usefixtures("limited")
@pytest.mark.parametrize("url", ["dokploy.test", "http://", "http://[::1", "http://host.invalid:70000"])
async def test_an_address_that_is_none_is_the_same_error(client: Dokploy, url: str) -> None:
    with contextlib.suppress(httpx.InvalidURL):
        client._transport._http.base_url = httpx.URL(url)
        assert (await followed(client))[0] == []


async def test_a_log_without_end_is_left(server: Server, client: Dokploy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_BYTES", 1_000_000)

    async def does(peer: Peer) -> None:
        await peer.upgrade()
        while True:
            await peer.say(frame("x" * 60_000))

    server.listens = does
    pieces, _ = await followed(client)
    assert 900_000 < sum(map(len, pieces)) <= 1_000_000
    await soon(lambda: server.ended == 1)


# -- where the key goes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
async def test_no_redirect_is_followed_not_even_to_another_port_or_path_of_the_same_host(
    server: Server, client: Dokploy, status: int
) -> None:
    elsewhere = Server()
    await elsewhere.start()
    elsewhere.listens = sends(frame("from elsewhere\n"))
    places = [f"http://127.0.0.1:{elsewhere.port}", f"ws://localhost:{elsewhere.port}", f"//127.0.0.1:{elsewhere.port}"]
    for place in (*places, server.url, ""):
        server.listens = answers(status, "", f"Location: {place}/listen-deployment?logPath=other")
        assert (await followed(client))[0] == []
    assert elsewhere.connections == 0
    assert server.connections == len(server.heads) == len(places) + 2
    await elsewhere.stop()


async def test_no_proxy_of_the_environment_gets_the_key(
    server: Server, client: Dokploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = Server()
    url = await proxy.start()
    for name in ("http_proxy", "https_proxy", "ws_proxy", "wss_proxy", "all_proxy", "socks_proxy"):
        monkeypatch.setenv(name, url)
        monkeypatch.setenv(name.upper(), url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    server.listens = sends(frame("direct\n"), frame("", CLOSE), stays=False)
    assert (await followed(client))[0] == ["direct\n"]
    assert proxy.connections == 0
    await proxy.stop()


@pytest.mark.parametrize("trusted", [True, False])
async def test_the_key_is_only_sent_to_a_certificate_that_is_trusted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trusted: bool
) -> None:
    tls, file = certificate(tmp_path, "localhost")
    secure = Server()
    await secure.start(ssl=tls)
    secure.listens = sends(frame("over TLS\n"), frame("", CLOSE), stays=False)
    if trusted:
        monkeypatch.setattr("certifi.where", lambda: str(file))
    client = Dokploy(f"https://localhost:{secure.port}", KEY)
    assert (await followed(client))[0] == ["over TLS\n"] * trusted
    assert len(secure.heads) == trusted
    client._transport._http.base_url = httpx.URL(f"https://127.0.0.1:{secure.port}")
    assert (await followed(client))[0] == [], "it is not the name that the certificate is for"
    assert len(secure.heads) == trusted
    await client.aclose()
    await secure.stop()


async def test_neither_key_nor_log_is_written_down_at_any_level(
    server: Server, client: Dokploy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.listens = sends(frame(CANARY), frame(b"", CLOSE), stays=False)
    assert (await followed(client))[0] == [CANARY]
    assert KEY not in caplog.text
    assert CANARY not in caplog.text


# -- a run that reports it ---------------------------------------------------------------------------------------------


@pytest_asyncio.fixture(loop_scope="module")
async def front(simulator: Simulator) -> AsyncIterator[Server]:
    """In front of the simulator."""
    made = Server(simulator.port)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
def dokploy(front: Server, pool: Dokploy, monkeypatch: pytest.MonkeyPatch) -> Dokploy:
    pool._transport._http.base_url = httpx.URL(front.url)
    monkeypatch.setattr(base, "RECHECK_SECONDS", 0.01)
    monkeypatch.setattr(containers, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(deploy, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(reporter_module, "LOG_SECONDS", 0.01)
    return pool


@pytest.fixture
def one_look(dokploy: Dokploy, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is reported after the first look at the row does not come from the next."""
    monkeypatch.setattr(deploy, "POLL_SECONDS", 60.0)


def lines(run: Run) -> list[str]:
    return [line for report in run.reports if report.kind == "log" for line in report.data["lines"]]


@contextlib.asynccontextmanager
async def deploying(run: Run, dokploy: Dokploy, *secrets: str) -> AsyncIterator[asyncio.Task[Any]]:
    reporter = run.reporter()
    reporter.secrets = secrets
    task = asyncio.ensure_future(run.deploy(dokploy, reporter))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})


@pytest.mark.usefixtures("one_look")
async def test_lines_are_reported_while_the_deploy_is_held_in_the_pull(
    simulator: Simulator, front: Server, dokploy: Dokploy
) -> None:
    """The gate opens after they have arrived: lines that came at the end only would be a deadlock."""
    run = new_run(simulator)
    before = calls(simulator)
    simulator.close_gate("job")
    simulator.close_gate("pull")
    async with deploying(run, dokploy):
        await soon(lambda: lines(run) == ["Initializing deployment"])
        simulator.open_gate("job")
        await soon(lambda: len(lines(run)) == 3)
        assert lines(run)[1] == f"Pulling {IMAGE}"
        simulator.open_gate("pull")
        await soon(lambda: "✅ Pulling image completed." in lines(run))
    assert (calls(simulator) - before)["deployment.readLogs"] == 0
    assert len(front.heads) == 1
    await soon(lambda: front.ended == 1)


async def test_lines_are_reported_while_the_look_at_the_row_hangs_and_nothing_is_lost_or_told_twice(
    simulator: Simulator, front: Server, dokploy: Dokploy
) -> None:
    run = new_run(simulator)
    simulator.close_gate("job")
    simulator.close_gate("pull")
    async with deploying(run, dokploy) as task:
        await soon(lambda: lines(run) == ["Initializing deployment"])
        simulator.close_gate("deployment.all")
        await soon(lambda: simulator.state()["gates"]["deployment.all"])
        simulator.open_gate("job")
        await soon(lambda: len(lines(run)) == 3)
        simulator.open_gate("pull")
        await soon(lambda: not simulator.state()["queue"])
        before = calls(simulator)
        simulator.open_gate("deployment.all")
        await task
    row = Found(simulator, run.spec).builds[0]
    assert logged(run) == {row["deploymentId"]: simulator.log(row).splitlines()}
    assert (calls(simulator) - before)["deployment.readLogs"] == 2, "once at the end, and once by this test"
    assert len(front.heads) == 1
    await soon(lambda: front.ended == 1)


async def breaks_off(peer: Peer) -> None:
    await peer.upgrade()
    await peer.say(frame("Initializing depl"))
    peer.reset()


REFUSALS: dict[str, Behaviour] = {
    "not found": answers(404, "404: This page could not be found."),
    "a redirect": answers(302, "", "Location: /elsewhere"),
    "a close": closes(),
    "a reset": resets,
    "silence": says_nothing,
    "an upgrade and silence": sends(),
    "a version_error of tail": sends(frame("tail error: tail: cannot open it\n")),
    "half a line and a reset": breaks_off,
}


@pytest.mark.parametrize("does", REFUSALS.values(), ids=REFUSALS)
async def test_without_the_socket_the_log_is_asked_for_while_it_is_written(
    simulator: Simulator, front: Server, dokploy: Dokploy, monkeypatch: pytest.MonkeyPatch, does: Behaviour
) -> None:
    monkeypatch.setattr(log_stream, "CLOSE_SECONDS", 0.3)
    front.listens = does
    run = new_run(simulator)
    simulator.close_gate("pull")
    async with deploying(run, dokploy) as task:
        await soon(lambda: len(lines(run)) == 3)
        assert not task.done()
        simulator.open_gate("pull")
        await task
    row = Found(simulator, run.spec).builds[0]
    assert logged(run) == {row["deploymentId"]: simulator.log(row).splitlines()}
    assert len(front.heads) == 1, "it is not tried for ever"
    await soon(lambda: front.ended == 1)


async def test_a_socket_that_breaks_in_the_middle_is_made_up_for_without_gap_and_double(
    simulator: Simulator, front: Server, dokploy: Dokploy
) -> None:
    run = new_run(simulator)
    simulator.close_gate("pull")
    simulator.close_gate("stall")
    async with deploying(run, dokploy) as task:
        await soon(lambda: len(lines(run)) == 3)
        front.cut()
        await soon(lambda: front.ended == 1)
        simulator.open_gate("pull")
        await soon(lambda: "✅ Pulling image completed." in lines(run))
        assert not task.done()
        simulator.open_gate("stall")
        await task
    row = Found(simulator, run.spec).builds[0]
    assert logged(run) == {row["deploymentId"]: simulator.log(row).splitlines()}
    assert len(front.heads) == 1


async def test_the_next_worker_follows_from_where_the_last_one_was(
    simulator: Simulator, front: Server, dokploy: Dokploy
) -> None:
    run = new_run(simulator)
    simulator.close_gate("pull")

    def stop(progress: Progress) -> None:
        if progress.kind == "log" and progress.data["lines"][-1] != "Initializing deployment":
            raise Interrupted

    run.watch = stop
    with pytest.raises(Interrupted):
        await run.deploy(dokploy)
    taken = len(run.reports)
    await soon(lambda: front.ended == 1)
    assert len(run.reports) == taken
    run.watch = lambda progress: None
    simulator.open_gate("pull")
    await run.deploy(dokploy)
    row = Found(simulator, run.spec).builds[0]
    assert logged(run) == {row["deploymentId"]: simulator.log(row).splitlines()}
    Found(simulator, run.spec).is_one_of_each()


@pytest.mark.usefixtures("one_look")
async def test_a_secret_is_masked_though_frames_and_colours_tear_it_apart(
    simulator: Simulator, front: Server, dokploy: Dokploy
) -> None:
    rest = asyncio.Event()

    async def does(peer: Peer) -> None:
        await peer.upgrade()
        await peer.say(frame(f"whole {CANARY}\nTOKEN={CANARY[:6]}"))
        await rest.wait()
        await peer.say(frame(f"{CANARY[6:9]}\x1b["), frame(f"31m{CANARY[9:]}"), frame("\x1b[0m!\nend\n"))
        await peer.until_gone()

    front.listens = does
    run = new_run(simulator)
    simulator.close_gate("job")
    async with deploying(run, dokploy, CANARY):
        await soon(lambda: lines(run) == ["whole ***"])
        rest.set()
        await soon(lambda: lines(run) == ["whole ***", "TOKEN=***!", "end"])
    assert CANARY[:6] not in str(run.reports)


async def test_there_are_at_most_four_events_of_log_lines_in_a_second(
    simulator: Simulator, dokploy: Dokploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporter_module, "LOG_SECONDS", 0.25)
    run = new_run(simulator)
    simulator.turn(pull=1.5)
    await run.deploy(dokploy)
    row = Found(simulator, run.spec).builds[0]
    assert logged(run) == {row["deploymentId"]: simulator.log(row).splitlines()}
    at = [when for when, report in zip(run.times, run.reports, strict=True) if report.kind == "log"]
    assert 4 <= len(at) <= 1 + 4 * (at[-1] - at[0])
    assert all(fifth - first >= 1 for first, fifth in zip(at, at[4:], strict=False))
    assert len(at) < len(lines(run)), "many lines in one event"


@pytest.mark.usefixtures("one_look")
async def test_a_log_of_which_enough_was_reported_is_followed_no_further(
    simulator: Simulator, front: Server, dokploy: Dokploy
) -> None:
    enough = [f"line {number}" for number in range(reporter_module.LINES_PER_DEPLOYMENT)]
    more = asyncio.Event()

    async def does(peer: Peer) -> None:
        await peer.upgrade()
        await peer.say(*[frame(f"{line}\n") for line in enough])
        await more.wait()
        await peer.say(frame("one more\n"))
        await peer.until_gone()

    front.listens = does
    run = new_run(simulator)
    simulator.close_gate("job")
    async with deploying(run, dokploy):
        await soon(lambda: lines(run) == [*enough, "… the rest of the log is at Dokploy"])
        more.set()
        await soon(lambda: front.ended == 1)


# -- a log that cannot be read -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("huge", "Dokploy's response is too large."),
        ("redirect", "DOKPLOY_URL leads to a redirect. Set it to the final address."),
    ],
)
@pytest.mark.parametrize("by_socket", [True, False])
async def test_a_log_that_cannot_be_read_fails_no_deploy_that_went_well(
    simulator: Simulator, front: Server, dokploy: Dokploy, fault: str, why: str, by_socket: bool
) -> None:
    if not by_socket:
        front.listens = closes()
    run = new_run(simulator)
    before = calls(simulator)
    simulator.close_gate("pull")
    simulator.fault("deployment.readLogs", fault, times=None)
    async with deploying(run, dokploy) as task:
        if by_socket:
            await soon(lambda: len(lines(run)) == 3)
        else:
            await soon(lambda: (calls(simulator) - before)["deployment.readLogs"] == 1)
            rounds = calls(simulator)
            await soon(lambda: (calls(simulator) - rounds)["deployment.all"] >= 5)
        simulator.open_gate("pull")
        await task
    assert (calls(simulator) - before)["deployment.readLogs"] <= 2, "once while it runs, and once at the end"
    assert run.said("note") == [f"The log cannot be read: {why}"]
    Found(simulator, run.spec).is_one_of_each()
    row = Found(simulator, run.spec).builds[0]
    simulator.switches.delete("faults")
    assert lines(run) == simulator.log(row).splitlines()[: len(lines(run))]


@pytest.mark.parametrize("by_socket", [True, False])
async def test_a_log_that_dokploy_stumbles_over_for_ever_fails_no_deploy_that_went_well(
    simulator: Simulator, front: Server, dokploy: Dokploy, monkeypatch: pytest.MonkeyPatch, by_socket: bool
) -> None:
    monkeypatch.setattr(deploy_log, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(deploy_log, "RETRY_SECONDS", 0.01)
    if not by_socket:
        front.listens = closes()
    run = new_run(simulator)
    simulator.close_gate("pull")
    simulator.fault("deployment.readLogs", "error500", times=None)
    before = calls(simulator)
    async with deploying(run, dokploy) as task:
        await soon(lambda: (calls(simulator) - before)["deployment.all"] >= 5)
        simulator.open_gate("pull")
        await task
    assert run.said("note") == ["The log cannot be read: Dokploy answered 500 to deployment.readLogs."]
    assert any("Waiting for Dokploy" in line for line in run.said()), "an outage would have been waited for"
    Found(simulator, run.spec).is_one_of_each()
    simulator.switches.delete("faults")


async def test_why_a_deploy_failed_is_read_from_what_the_socket_brought_where_the_log_cannot_be_read(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    run = new_run(simulator)
    simulator.turn(pull_error="manifest unknown")
    simulator.fault("deployment.readLogs", "redirect", times=None)
    simulator.close_gate("job")
    failing = asyncio.ensure_future(run.fails(dokploy))
    await soon(lambda: lines(run))
    simulator.close_gate("deployment.all")
    await soon(lambda: simulator.state()["gates"]["deployment.all"])
    simulator.open_gate("job")
    await soon(lambda: "manifest unknown" in lines(run))
    simulator.open_gate("deployment.all")
    failure = await failing
    assert (failure.code, failure.evidence) == ("IMAGE_NOT_FOUND", "manifest unknown")
