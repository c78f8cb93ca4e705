"""Probe a stack's address (DNS, TCP, TLS, HTTP) and report the first step that fails.

A stack's name decides where the portal connects, so a probe could be aimed at a private network. Therefore the name is
resolved only once, the connection goes to exactly that address, and an address that is not public is refused. Redirects
and proxies are ignored, and the body is not read.
"""

import asyncio
import functools
import ipaddress
import socket
import ssl
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urldefrag, urljoin, urlsplit

import httpx

from .errors import Failure
from .spec import StackSpec

CONNECT_SECONDS = 5.0
# Not public according to IANA's special-purpose address registries, but public according to Python 3.11.
NOT_PUBLIC = tuple(ipaddress.ip_network(net) for net in ("192.0.0.0/24", "192.88.99.0/24", "3fff::/20", "fec0::/10"))
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052
Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class ProbeStep:
    """One step of a probe, with its result as a short text."""

    name: Literal["DNS", "TCP", "TLS", "HTTP"]
    ok: bool
    text: str


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The result of one probe.

    `summary` completes “Attempt 3: …”. `code` is the failure's code if no other probe follows; it is empty when the
    stack answered. `status` is the HTTP status, or None without a response.
    """

    steps: tuple[ProbeStep, ...]
    answered: bool
    summary: str
    code: str = ""
    status: int | None = None

    @property
    def waits_for_certificate(self) -> bool:
        """Whether only the certificate is missing."""
        return self.code == "HEALTH_NO_CERTIFICATE"


async def probe_stack(spec: StackSpec) -> ProbeResult:
    """Probe the stack's address once, and return the result within three times CONNECT_SECONDS.

    Raise Failure only when the host name resolves to an address that is not public.
    """
    url = urlsplit(spec.url)
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        address, dns = await _resolve(spec.host, port, spec.router_address)
    except OSError:
        summary = f"the name {spec.host} is not in the DNS yet"
        return ProbeResult((ProbeStep("DNS", False, "not found"),), False, summary, "HEALTH_NO_DNS")
    return await _request(spec, url.scheme, port, address, dns)


async def _resolve(host: str, port: int, router_address: str) -> tuple[Address, ProbeStep]:
    """Return the address to connect to. Raise OSError if there is none, and Failure if one is not public.

    A `router_address`, which only the operator can set, replaces the resolved address and may be private.
    """
    if router_address:
        router_host, _, router_port = router_address.rpartition(":")
        return (router_host.strip("[]"), int(router_port)), ProbeStep("DNS", True, f"pinned to {router_address}")
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(CONNECT_SECONDS):
        entries = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]) for entry in entries]
    for address in addresses:  # one that is not public is a sign of an attack: refuse them all
        if not is_public(address):
            raise Failure(
                "ADDRESS_REFUSED",
                f"{host} resolves to {address}, which is not a public address. The portal does not connect to it.",
                retryable=False,
            )
    return (addresses[0], port), ProbeStep("DNS", True, addresses[0])


async def _request(spec: StackSpec, scheme: str, port: int, address: Address, dns: ProbeStep) -> ProbeResult:
    """Send a GET request for the health path to the address, and return the result with all steps."""
    loop = asyncio.get_running_loop()
    steps = [dns]
    step_started = loop.time()
    tls = scheme == "https"

    async def trace(event: str, info: Any) -> None:
        """Record that a step succeeded. httpcore calls this."""
        nonlocal step_started
        took = f"{(loop.time() - step_started) * 1000:.0f} ms"
        if event.endswith("connect_tcp.complete"):
            steps.append(ProbeStep("TCP", True, took))
            step_started = loop.time()
        elif event.endswith("start_tls.complete"):
            steps.append(ProbeStep("TLS", True, took))
            step_started = loop.time()

    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    default_port = 443 if tls else 80
    try:
        async with (
            asyncio.timeout(2 * CONNECT_SECONDS),
            httpx.AsyncClient(verify=_tls_context(), trust_env=False, timeout=CONNECT_SECONDS) as client,
            client.stream(
                "GET",
                f"{scheme}://{host}:{address[1]}{spec.health_path}",
                headers={
                    "host": spec.host if port == default_port else f"{spec.host}:{port}",
                    "user-agent": "deploy-portal health check",
                    "accept-encoding": "identity",
                },
                extensions={"sni_hostname": spec.host, "trace": trace},
            ) as response,
        ):
            status = response.status_code  # the body is not read: it may be endless
            location = response.headers.get("location")
    except (httpx.HTTPError, TimeoutError, ssl.SSLError) as error:
        return _failed_request(steps, tls, error)
    asked = urljoin(spec.url, spec.health_path)
    if 300 <= status < 400 and location and urldefrag(urljoin(asked, location)).url == asked:
        step = ProbeStep("HTTP", False, f"{status}, a redirect to itself")
        summary = f"the stack answers {status} and redirects to the same address"
        return ProbeResult((*steps, step), False, summary, "HEALTH_NO_ANSWER", status)
    return _response_result(steps, status)


def _failed_request(steps: list[ProbeStep], tls: bool, error: Exception) -> ProbeResult:
    """Return the result for an error: the step after the last completed one has failed."""
    last = steps[-1].name
    timed_out = isinstance(error, (TimeoutError, httpx.TimeoutException))
    if last == "DNS":
        step = ProbeStep("TCP", False, "no answer" if timed_out else "refused")
        return ProbeResult((*steps, step), False, "the router cannot be reached", "HEALTH_NO_CONNECTION")
    if last == "TCP" and tls:
        step = ProbeStep("TLS", False, "no valid certificate")
        summary = "the router has no valid certificate for this address yet"
        return ProbeResult((*steps, step), False, summary, "HEALTH_NO_CERTIFICATE")
    text = "no answer in time" if timed_out else "connection lost"
    return ProbeResult((*steps, ProbeStep("HTTP", False, text)), False, f"HTTP: {text}", "HEALTH_NO_ANSWER")


def _response_result(steps: list[ProbeStep], status: int) -> ProbeResult:
    """Return the result for an HTTP status.

    Traefik itself answers 404 without a route and 502 to 504 without a container. Other statuses come from the stack.
    """
    if status == 404:
        summary = "404, the router does not know the address yet, or the stack does not have this page"
    elif status == 421:
        summary = "421, the router does not serve this address yet"
    elif status in (502, 503, 504):
        summary = f"the router answers {status}, the container is starting"
    elif status >= 500:
        summary = f"the stack answers {status}, it is not ready"
    else:
        step = ProbeStep("HTTP", True, str(status))
        return ProbeResult((*steps, step), True, f"the stack answers {status}", status=status)
    step = ProbeStep("HTTP", False, str(status))
    return ProbeResult((*steps, step), False, summary, "HEALTH_NO_ANSWER", status)


def is_public(address: str) -> bool:
    """Return whether an IP address is a public unicast address.

    An IPv6 address that contains IPv4 addresses (IPv4-mapped, 6to4, Teredo, NAT64) is public only if all of them are.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        candidates = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if ip in NAT64:
            candidates.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        embedded = [candidate for candidate in candidates if candidate is not None]
        if embedded:
            return all(is_public(str(ipv4)) for ipv4 in embedded)
    special = ip.is_multicast or ip.is_reserved or ip.is_unspecified or any(ip in network for network in NOT_PUBLIC)
    return ip.is_global and not special


@functools.cache
def _tls_context() -> ssl.SSLContext:
    return ssl.create_default_context()
