"""The probe against local servers: where it connects, what it reads, and which step it reports as failed."""

import asyncio
import contextlib
import errno
import ipaddress
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from deployments.engine import probe
from deployments.engine.errors import Failure
from deployments.engine.probe import ProbeResult, is_public, probe_stack
from deployments.engine.spec import StackSpec

from ..conftest import need

HOST = "shop.apps.test"
Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

# -- public addresses --------------------------------------------------------------------------------------------------

NOT_PUBLIC = {
    "this network": "0.0.0.0 0.1.2.3 ::",
    "loopback": "127.0.0.1 127.1.2.3 127.255.255.254 ::1",
    "private": "10.0.0.1 10.255.255.255 172.16.0.1 172.31.255.255 192.168.0.1 192.168.255.255 fc00::1 fd12:3456::1",
    "link-local": "169.254.0.1 169.254.169.254 fe80::1 fe80::1%eth0 febf::1",
    "site-local": "fec0::1 feff::1",
    "shared (CGNAT)": "100.64.0.1 100.100.100.200 100.127.255.255",
    "multicast": "224.0.0.1 239.255.255.250 ff02::1 ff0e::1",
    "reserved": "240.0.0.1 255.255.255.255 192.0.0.1 192.0.0.8 192.0.0.170 192.88.99.1 5f00::1 4000::1 e000::1",
    "documentation": "192.0.2.1 198.51.100.1 203.0.113.1 2001:db8::1 3fff::1",
    "benchmarks": "198.18.0.1 198.19.255.255 2001:2::1",
    "discard": "100::1",
    "mapped": "::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:a9fe:a9fe ::ffff:100.64.0.1 ::ffff:0.0.0.0 ::ffff:192.0.2.1",
    "compatible": "::127.0.0.1 ::10.0.0.1 ::8.8.8.8",
    "translated": "::ffff:0:127.0.0.1 ::ffff:0:10.0.0.1",
    "6to4": "2002:7f00:1:: 2002:a00:1::1 2002:c0a8:101:: 2002:a9fe:a9fe:: 2002:6440:1:: 2002:e000:1::",
    "NAT64": "64:ff9b::127.0.0.1 64:ff9b::10.0.0.1 64:ff9b::169.254.169.254 64:ff9b::100.64.0.1 64:ff9b::0.0.0.0",
    "local NAT64": "64:ff9b:1::127.0.0.1 64:ff9b:1::8.8.8.8",
    # Teredo contains its server's address as it is, and its client's address inverted.
    "Teredo": "2001:0:7f00:1::f7f7:f7f7 2001:0:808:808::80ff:fffe 2001:0:808:808::f5ff:fffe 2001:0:a00:1::f7f7:f7f7",
}
PUBLIC = "1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.1 100.63.255.255 100.128.0.1 172.15.255.255 172.32.0.1 192.167.255.255"
PUBLIC += " 192.169.0.1 223.255.255.254 2606:4700:4700::1111 2a00:1450:4001::1 ::ffff:8.8.8.8 2002:808:808::1"
PUBLIC += " 64:ff9b::8.8.8.8"


@pytest.mark.parametrize(
    ("block", "address"), [(block, address) for block, addresses in NOT_PUBLIC.items() for address in addresses.split()]
)
def test_an_address_that_is_not_public_is_recognized_in_every_notation(block: str, address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC.split())
def test_a_public_address_is_recognized(address: str) -> None:
    assert is_public(address)


def test_an_ipv6_address_with_an_ipv4_address_is_public_only_if_that_one_is() -> None:
    for number in range(256):
        ipv4 = ipaddress.IPv4Address((number << 24) + 1)
        sixtofour = ipaddress.IPv6Address((0x2002 << 112) + (int(ipv4) << 80))
        for address in (f"::ffff:{ipv4}", f"64:ff9b::{ipv4}", str(sixtofour)):
            assert is_public(address) is is_public(str(ipv4))


# -- servers -----------------------------------------------------------------------------------------------------------


class Server:
    def __init__(self, behaviour: Behaviour, address: str, tls: ssl.SSLContext | None) -> None:
        self.behaviour = behaviour
        self.address = address
        self.tls = tls
        self.connections = 0
        self.received = b""
        self.sent = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> "Server":
        self._server = await asyncio.start_server(self._connected, self.address, 0, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            self.received += await reader.readuntil(b"\r\n\r\n")
            await self.behaviour(reader, writer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort() if task.cancelling() else writer.close()

    async def stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


Serve = Callable[..., Awaitable[Server]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    running: list[Server] = []

    async def start(behaviour: Behaviour, *, address: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> Server:
        running.append(await Server(behaviour, address, tls).start())
        return running[-1]

    yield start
    for server in running:
        await server.stop()


def responds(status: int, *headers: str, body: bytes = b"ok") -> Behaviour:
    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", "Connection: close", *headers, "", ""]
        writer.write("\r\n".join(lines).encode() + body)

    return behave


async def closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def stays_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


def spec(
    port: int = 80, *, scheme: str = "http", pinned: bool = True, address: str = "127.0.0.1", **more: Any
) -> StackSpec:
    fields: dict[str, Any] = {
        "installation": "inst",
        "stack": "stk",
        "deployment": "dep",
        "name": "shop",
        "image": "web:1",
        "port": 8080,
        "host": HOST,
        "url": f"{scheme}://{HOST}:{port}",
        "router_address": f"{address}:{port}" if pinned else "",
    }
    return StackSpec(**{**fields, **more})


def steps_of(result: ProbeResult) -> list[tuple[str, bool]]:
    return [(step.name, step.ok) for step in result.steps]


def resolves_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    """Let the system's resolver return these addresses. Return the list of the names that it resolves."""
    resolved: list[str] = []

    async def getaddrinfo(host: str, port: int, **more: Any) -> list[Any]:
        resolved.append(host)
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in addresses
        ]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    return resolved


# -- connections -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "addresses",
    [
        *("127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "fd00::1", "::ffff:127.0.0.1"),
        *("8.8.8.8 127.0.0.1", "127.0.0.1 8.8.8.8", "2606:4700:4700::1111 10.0.0.1"),
    ],
)
async def test_a_name_with_a_private_address_is_refused_without_connecting(
    monkeypatch: pytest.MonkeyPatch, serve: Serve, addresses: str
) -> None:
    server = await serve(responds(200))
    resolves_to(monkeypatch, *addresses.split())
    with pytest.raises(Failure) as caught:
        await probe_stack(spec(server.port, pinned=False))
    assert (caught.value.code, caught.value.retryable) == ("ADDRESS_REFUSED", False)
    assert server.connections == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_private_address_of_the_real_resolver_is_refused(serve: Serve, host: str) -> None:
    server = await serve(responds(200))
    with pytest.raises(Failure) as caught:
        await probe_stack(spec(server.port, pinned=False, host=host, url=f"http://{host}:{server.port}"))
    assert caught.value.code == "ADDRESS_REFUSED"
    assert server.connections == 0


async def test_the_name_is_resolved_only_once(monkeypatch: pytest.MonkeyPatch, serve: Serve) -> None:
    """Prevent DNS rebinding: an address that is public when it is validated and private when it is connected to."""
    server = await serve(responds(200))
    resolved = resolves_to(monkeypatch, "192.0.2.1")
    monkeypatch.setattr(probe, "is_public", lambda address: address == "192.0.2.1")
    monkeypatch.setattr(probe, "CONNECT_SECONDS", 0.2)
    result = await probe_stack(spec(server.port, pinned=False))
    assert resolved == [HOST]
    assert steps_of(result)[0] == ("DNS", True)
    assert result.steps[0].text == "192.0.2.1"
    assert not result.answered
    assert server.connections == 0


async def test_the_operators_router_is_used_without_resolving_the_name(
    monkeypatch: pytest.MonkeyPatch, serve: Serve
) -> None:
    resolved = resolves_to(monkeypatch)
    server = await serve(responds(200))
    result = await probe_stack(spec(server.port, url=f"http://{HOST}"))
    assert result.answered
    assert resolved == []
    assert f"\r\nhost: {HOST}\r\n" in server.received.decode().lower(), "the Host header contains the default port"


async def test_the_host_header_contains_a_port_that_is_not_the_default(serve: Serve) -> None:
    server = await serve(responds(200))
    await probe_stack(spec(server.port, health_path="/healthz?deep=1"))
    assert server.received.startswith(b"GET /healthz?deep=1 HTTP/1.1\r\n")
    assert f"\r\nhost: {HOST}:{server.port}\r\n" in server.received.decode().lower()


def need_ipv6() -> None:
    with socket.socket(socket.AF_INET6) as probe:
        need(probe.connect_ex(("::1", 9)) == errno.ECONNREFUSED, "this machine has no IPv6")


async def test_a_router_with_an_ipv6_address_is_probed(serve: Serve) -> None:
    need_ipv6()
    server = await serve(responds(200), address="::1")
    result = await probe_stack(spec(server.port, address="[::1]"))
    assert result.answered
    assert server.connections == 1


async def test_an_ipv6_address_of_the_resolver_is_probed(monkeypatch: pytest.MonkeyPatch, serve: Serve) -> None:
    need_ipv6()
    server = await serve(responds(200), address="::1")
    resolves_to(monkeypatch, "::1")
    monkeypatch.setattr(probe, "is_public", lambda address: True)
    assert (await probe_stack(spec(server.port, pinned=False))).answered


async def test_a_redirect_is_not_followed(serve: Serve) -> None:
    elsewhere = await serve(responds(200))
    server = await serve(responds(302, f"Location: http://127.0.0.1:{elsewhere.port}/"))
    result = await probe_stack(spec(server.port))
    assert (result.answered, result.status) == (True, 302)
    assert (server.connections, elsewhere.connections) == (1, 0)


@pytest.mark.parametrize("location", ["/", "", "http://{host}/", "http://{host}/#top"])
async def test_a_redirect_to_the_same_address_is_no_answer(serve: Serve, location: str) -> None:
    server = await serve(responds(302))
    stack = spec(server.port)
    server.behaviour = responds(302, f"Location: {location.replace('{host}', f'{HOST}:{server.port}')}")
    result = await probe_stack(stack)
    is_circle = bool(location)
    assert (result.answered, result.code) == (not is_circle, "HEALTH_NO_ANSWER" if is_circle else "")


async def test_proxies_in_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch, serve: Serve) -> None:
    proxy, server = await serve(responds(200)), await serve(responds(200))
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
    assert (await probe_stack(spec(server.port))).answered
    assert (server.connections, proxy.connections) == (1, 0)


# -- reading the response ----------------------------------------------------------------------------------------------


async def test_an_endless_body_is_not_read(serve: Serve) -> None:
    sent = 0

    async def floods(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()
            sent += 65536

    server = await serve(floods)
    started = time.monotonic()
    assert (await probe_stack(spec(server.port))).answered
    assert time.monotonic() - started < 20
    assert sent < 16 * 1024 * 1024, "the probe read more than the kernel's buffers hold"


async def test_an_endless_stream_counts_as_an_answer(serve: Serve) -> None:
    async def streams(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n: hello\n\n")
        await reader.read()

    result = await probe_stack(spec((await serve(streams)).port))
    assert (result.answered, result.status) == (True, 200)


async def test_an_endless_head_is_an_error(serve: Serve) -> None:
    sent = 0

    async def floods(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"X-More: " + b"x" * 8000 + b"\r\n")
            await writer.drain()
            sent += 8010

    result = await probe_stack(spec((await serve(floods)).port))
    assert not result.answered
    assert steps_of(result)[-1] == ("HTTP", False)
    assert sent < 16 * 1024 * 1024


async def test_a_head_that_arrives_byte_by_byte_is_an_error_in_time(
    monkeypatch: pytest.MonkeyPatch, serve: Serve
) -> None:
    monkeypatch.setattr(probe, "CONNECT_SECONDS", 1.0)

    async def trickles(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for byte in b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 1000:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.05)

    started = time.monotonic()
    result = await probe_stack(spec((await serve(trickles)).port))
    assert time.monotonic() - started < 20
    assert (steps_of(result)[-1], result.steps[-1].text) == (("HTTP", False), "no answer in time")


# -- statuses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 204, 301, 302, 307, 400, 401, 403, 405, 429])
async def test_a_status_of_the_stack_is_an_answer(serve: Serve, status: int) -> None:
    result = await probe_stack(spec((await serve(responds(status, body=b""))).port))
    assert (result.answered, result.status, result.code) == (True, status, "")
    assert result.summary == f"the stack answers {status}"
    assert steps_of(result) == [("DNS", True), ("TCP", True), ("HTTP", True)]


@pytest.mark.parametrize(
    ("status", "summary"),
    [
        (404, "404, the router does not know the address yet, or the stack does not have this page"),
        (421, "421, the router does not serve this address yet"),
        (500, "the stack answers 500, it is not ready"),
        (502, "the router answers 502, the container is starting"),
        (503, "the router answers 503, the container is starting"),
        (504, "the router answers 504, the container is starting"),
        (599, "the stack answers 599, it is not ready"),
    ],
)
async def test_a_status_of_the_router_or_a_server_error_is_not_an_answer(
    serve: Serve, status: int, summary: str
) -> None:
    result = await probe_stack(spec((await serve(responds(status))).port))
    assert (result.answered, result.status, result.summary, result.code) == (False, status, summary, "HEALTH_NO_ANSWER")
    assert steps_of(result) == [("DNS", True), ("TCP", True), ("HTTP", False)]


# -- failed steps ------------------------------------------------------------------------------------------------------


async def test_an_unknown_name_fails_at_dns(monkeypatch: pytest.MonkeyPatch) -> None:
    resolves_to(monkeypatch)
    result = await probe_stack(spec(pinned=False))
    assert (steps_of(result), result.code) == ([("DNS", False)], "HEALTH_NO_DNS")
    assert HOST in result.summary


async def test_a_resolver_that_hangs_fails_at_dns_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hangs(*args: Any, **more: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", hangs)
    monkeypatch.setattr(probe, "CONNECT_SECONDS", 0.1)
    assert (await probe_stack(spec(pinned=False))).code == "HEALTH_NO_DNS"


async def test_a_closed_port_fails_at_tcp(serve: Serve) -> None:
    server = await serve(responds(200))
    await server.stop()
    result = await probe_stack(spec(server.port))
    assert (steps_of(result), result.code) == ([("DNS", True), ("TCP", False)], "HEALTH_NO_CONNECTION")
    assert result.steps[-1].text == "refused"


async def test_a_host_that_drops_connections_fails_at_tcp_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probe, "CONNECT_SECONDS", 0.2)
    with socket.socket() as listener, contextlib.ExitStack() as fillers:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):  # Linux drops further connections when the listener's queue is full
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        result = await probe_stack(spec(listener.getsockname()[1]))
    assert (steps_of(result), result.code) == ([("DNS", True), ("TCP", False)], "HEALTH_NO_CONNECTION")
    assert result.steps[-1].text == "no answer"


@pytest.mark.parametrize(("behaviour", "text"), [(closes, "connection lost"), (stays_silent, "no answer in time")])
async def test_a_router_that_does_not_respond_fails_at_http(
    monkeypatch: pytest.MonkeyPatch, serve: Serve, behaviour: Behaviour, text: str
) -> None:
    if behaviour is stays_silent:
        monkeypatch.setattr(probe, "CONNECT_SECONDS", 1.0)
    result = await probe_stack(spec((await serve(behaviour)).port))
    assert steps_of(result) == [("DNS", True), ("TCP", True), ("HTTP", False)]
    assert (result.steps[-1].text, result.code) == (text, "HEALTH_NO_ANSWER")


async def test_a_response_that_is_not_http_fails_at_http(serve: Serve) -> None:
    async def sends_ssh(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")

    result = await probe_stack(spec((await serve(sends_ssh)).port))
    assert (steps_of(result)[-1], result.answered) == (("HTTP", False), False)


# -- TLS ---------------------------------------------------------------------------------------------------------------


def certificate(directory: Path, *names: str, days: int = 1) -> tuple[ssl.SSLContext, Path]:
    """Create a self-signed certificate for these names. Return the server's context and the file to trust it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "TRAEFIK DEFAULT CERT")])
    not_before = datetime.now(UTC) - timedelta(days=5)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(datetime.now(UTC) + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    trusted, whole = directory / "trusted.pem", directory / "whole.pem"
    trusted.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    whole.write_bytes(private + trusted.read_bytes())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(whole)
    return context, trusted


def trust(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    """Let the probe trust this certificate, as if the system's list of authorities contained it."""
    context = ssl.create_default_context(cafile=str(file))
    monkeypatch.setattr(probe, "_tls_context", lambda: context)


async def test_a_valid_certificate_is_accepted(monkeypatch: pytest.MonkeyPatch, serve: Serve, tmp_path: Path) -> None:
    tls, trusted = certificate(tmp_path, HOST)
    trust(monkeypatch, trusted)
    server = await serve(responds(200), tls=tls)
    result = await probe_stack(spec(server.port, scheme="https"))
    assert result.answered
    assert steps_of(result) == [("DNS", True), ("TCP", True), ("TLS", True), ("HTTP", True)]


@pytest.mark.parametrize("defect", ["self-signed", "another name", "expired"])
async def test_an_invalid_certificate_fails_at_tls_before_http_is_sent(
    monkeypatch: pytest.MonkeyPatch, serve: Serve, tmp_path: Path, defect: str
) -> None:
    name = "other.apps.test" if defect == "another name" else HOST
    tls, trusted = certificate(tmp_path, name, days=-1 if defect == "expired" else 1)
    if defect != "self-signed":
        trust(monkeypatch, trusted)
    server = await serve(responds(200), tls=tls)
    result = await probe_stack(spec(server.port, scheme="https"))
    assert steps_of(result) == [("DNS", True), ("TCP", True), ("TLS", False)]
    assert (result.answered, result.code, result.waits_for_certificate) == (False, "HEALTH_NO_CERTIFICATE", True)
    assert server.received == b""


async def test_a_router_without_tls_fails_at_tls(serve: Serve) -> None:
    async def responds_without_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(responds_without_tls, "127.0.0.1", 0) as server:
        result = await probe_stack(spec(server.sockets[0].getsockname()[1], scheme="https"))
    assert steps_of(result) == [("DNS", True), ("TCP", True), ("TLS", False)]


async def test_the_handshake_requests_the_name_and_not_the_address(
    monkeypatch: pytest.MonkeyPatch, serve: Serve, tmp_path: Path
) -> None:
    tls, trusted = certificate(tmp_path, HOST)
    trust(monkeypatch, trusted)
    requested: list[str | None] = []
    tls.sni_callback = lambda connection, name, context: requested.append(name)
    server = await serve(responds(200), tls=tls)
    assert (await probe_stack(spec(server.port, scheme="https"))).answered
    assert requested == [HOST]
