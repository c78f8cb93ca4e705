"""Does the stack itself answer? Climbs DNS, TCP, TLS, HTTP and names the first step that is broken.

The check leaves the portal's network for an address that a name decides, so it resolves once, connects to just that
address, refuses what is not public, follows no redirect, knows no proxy, and reads no body.
"""

import asyncio
import functools
import ipaddress
import socket
import ssl
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx

from .errors import Failure
from .spec import StackSpec

CONNECT_SECONDS = 5.0
# Not public by IANA's registries of special addresses, though Python 3.11 says so.
NOT_PUBLIC = tuple(ipaddress.ip_network(net) for net in ("192.0.0.0/24", "192.88.99.0/24", "3fff::/20", "fec0::/10"))
Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class ProbeStep:
    name: Literal["DNS", "TCP", "TLS", "HTTP"]
    ok: bool
    text: str


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One check. `said` completes “Attempt 3: …”; `code` names the failure that it would be."""

    steps: tuple[ProbeStep, ...]
    answered: bool
    said: str
    code: str = ""
    status: int | None = None

    @property
    def waits_for_certificate(self) -> bool:
        return self.code == "HEALTH_NO_CERTIFICATE"


async def probe_stack(spec: StackSpec) -> ProbeResult:
    """One check of the stack's address, bounded in time and size. Raises Failure only for a refused address."""
    url = urlsplit(spec.url)
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        address, dns = await _resolve(spec.host, port, spec.router_address)
    except OSError:
        said = f"the name {spec.host} is not known in the DNS yet"
        return ProbeResult((ProbeStep("DNS", False, "not found"),), False, said, "HEALTH_NO_DNS")
    return await _ask(spec, url.scheme, port, address, dns)


async def _resolve(host: str, port: int, router_address: str) -> tuple[Address, ProbeStep]:
    if router_address:  # the operator's own exception: one exact address and port
        name, _, number = router_address.rpartition(":")
        return (name.strip("[]"), int(number)), ProbeStep("DNS", True, f"pinned to {router_address}")
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(CONNECT_SECONDS):
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:  # one private address among public ones is a trap, not an alternative
        if not is_public(address):
            raise Failure(
                "ADDRESS_REFUSED",
                f"{host} resolves to {address}, which is no public address. The portal does not connect there.",
                retryable=False,
            )
    return (addresses[0], port), ProbeStep("DNS", True, addresses[0])


async def _ask(spec: StackSpec, scheme: str, port: int, address: Address, dns: ProbeStep) -> ProbeResult:
    loop = asyncio.get_running_loop()
    steps = [dns]
    began = loop.time()
    tls = scheme == "https"

    async def trace(event: str, info: Any) -> None:
        nonlocal began
        took = f"{(loop.time() - began) * 1000:.0f} ms"
        if event.endswith("connect_tcp.complete"):
            steps.append(ProbeStep("TCP", True, took))
            began = loop.time()
        elif event.endswith("start_tls.complete"):
            steps.append(ProbeStep("TLS", True, took))
            began = loop.time()

    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    default = 443 if tls else 80
    try:
        async with (
            asyncio.timeout(2 * CONNECT_SECONDS),
            httpx.AsyncClient(verify=_tls_context(), trust_env=False, timeout=CONNECT_SECONDS) as client,
            client.stream(
                "GET",
                f"{scheme}://{host}:{address[1]}{spec.health_path}",
                headers={
                    "host": spec.host if port == default else f"{spec.host}:{port}",
                    "user-agent": "deploy-portal health check",
                    "accept-encoding": "identity",
                },
                extensions={"sni_hostname": spec.host, "trace": trace},
            ) as response,
        ):
            status = response.status_code  # the body is not waited for: it may be a stream without an end
    except (httpx.HTTPError, TimeoutError, ssl.SSLError) as error:
        return _broken(steps, tls, error)
    return _verdict(steps, status)


def _broken(steps: list[ProbeStep], tls: bool, error: Exception) -> ProbeResult:
    """Which step the error broke: the one after the last that held."""
    held = steps[-1].name
    slow = isinstance(error, (TimeoutError, httpx.TimeoutException))
    if held == "DNS":
        text = "no answer" if slow else "refused"
        said = "the router cannot be reached"
        return ProbeResult((*steps, ProbeStep("TCP", False, text)), False, said, "HEALTH_NO_CONNECTION")
    if held == "TCP" and tls:
        said = "the router has no valid certificate for this address yet"
        return ProbeResult(
            (*steps, ProbeStep("TLS", False, "no valid certificate")), False, said, "HEALTH_NO_CERTIFICATE"
        )
    text = "no answer in time" if slow else "broken off"
    return ProbeResult((*steps, ProbeStep("HTTP", False, text)), False, f"HTTP: {text}", "HEALTH_NO_ANSWER")


def _verdict(steps: list[ProbeStep], status: int) -> ProbeResult:
    """Traefik itself answers 404 without a route and 502 to 504 without a container; the rest is the stack's own."""
    if status == 404:
        said = "404, the router does not know the address yet, or the stack has no such page"
    elif status == 421:
        said = "421, the router does not serve this address yet"
    elif status in (502, 503, 504):
        said = f"the router answers {status}, the container is starting"
    elif status >= 500:
        said = f"the stack answers {status}, it is not ready"
    else:
        return ProbeResult(
            (*steps, ProbeStep("HTTP", True, str(status))), True, f"the stack answers {status}", status=status
        )
    return ProbeResult((*steps, ProbeStep("HTTP", False, str(status))), False, said, "HEALTH_NO_ANSWER", status)


def is_public(address: str) -> bool:
    """Whether an IP address is a public unicast one, also behind IPv4-mapped, 6to4, Teredo and NAT64 notation."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if ip in ipaddress.ip_network("64:ff9b::/96"):
            inner.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        embedded = [v4 for v4 in inner if v4 is not None]
        if embedded:
            return all(is_public(str(v4)) for v4 in embedded)
    special = ip.is_multicast or ip.is_reserved or ip.is_unspecified or any(ip in network for network in NOT_PUBLIC)
    return ip.is_global and not special


@functools.cache
def _tls_context() -> ssl.SSLContext:
    return ssl.create_default_context()
