"""What is wrong with the settings, as sentences, before anything starts."""

import ipaddress
import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import SplitResult, urlsplit

from cryptography.fernet import Fernet
from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register

from .engine import validation
from .worker import failpoints

DOKPLOY = "dokploy"
"""The tag of what is checked about Dokploy. The server itself is asked only by `manage.py check --tag dokploy`."""
CERTIFICATES = ("letsencrypt", "wildcard", "none")
SHORTEST_SECRET_KEY = 40
PORTS = range(1, 65536)
STACK_URL_EXAMPLE = "Write an address such as https://{name}.apps.example.org."


@register(DOKPLOY)
def check_dokploy(**kwargs: Any) -> Iterator[CheckMessage]:
    """Where Dokploy is. In the demo that is our own simulator, and nothing can be wrong with it."""
    if settings.DEMO:
        return
    if not settings.DOKPLOY_API_KEY:
        yield Error(
            "DOKPLOY_URL is set, but DOKPLOY_API_KEY is not.",
            hint="Make a key at Dokploy and set DOKPLOY_API_KEY, or DOKPLOY_API_KEY_FILE to the file that holds it.",
            id="deployportal.E001",
        )
    elif not (settings.DOKPLOY_API_KEY.isascii() and settings.DOKPLOY_API_KEY.isprintable()):
        yield Error(
            "DOKPLOY_API_KEY holds characters that no key has.",
            hint="Copy the key again: it is one line of plain letters, digits, hyphens and underscores.",
            id="deployportal.E015",
        )
    url = _address(settings.DOKPLOY_URL)
    if url is None:
        yield Error(
            "DOKPLOY_URL is no plain address of a server.",
            hint="Write scheme, host and port, such as https://dokploy.example.org: no path, no user, no password.",
            id="deployportal.E002",
        )
    elif url.scheme == "http" and not _is_loopback(url.hostname or ""):
        yield Warning(
            "DOKPLOY_URL is plain http to another machine: the key, which is root there, can be read on the way.",
            hint="Use https, or reach Dokploy through this machine.",
            id="deployportal.W001",
        )


@register()
def check_stacks(**kwargs: Any) -> Iterator[CheckMessage]:
    """What stacks are made of, and where."""
    if not _is_host(settings.STACK_DOMAIN_SUFFIX):
        yield Error(
            f"STACK_DOMAIN_SUFFIX is {settings.STACK_DOMAIN_SUFFIX!r}, which is no host name.",
            hint="Write it without a dot in front, such as apps.example.org.",
            id="deployportal.E003",
        )
    yield from _check_stack_url()
    try:
        validation.validate_image(settings.STACK_IMAGE, settings.STACK_REGISTRIES)
    except ValueError as error:
        yield Error(
            f"STACK_IMAGE is {settings.STACK_IMAGE!r}, which stacks cannot be made of.",
            hint=str(error),
            id="deployportal.E006",
        )
    if settings.STACK_PORT not in PORTS:
        yield Error(
            f"STACK_PORT is {settings.STACK_PORT}, which is no port.",
            hint="Write the port that the image listens on, 1 to 65535.",
            id="deployportal.E007",
        )
    if settings.STACK_ROUTER_ADDRESS and not _is_host_and_port(settings.STACK_ROUTER_ADDRESS):
        yield Error(
            f"STACK_ROUTER_ADDRESS is {settings.STACK_ROUTER_ADDRESS!r}, which is no host and port.",
            hint="Write host:port, such as 192.0.2.7:443, or leave it out to connect to where each name leads.",
            id="deployportal.E008",
        )
    if settings.DEMO:
        return
    for number, name, value in (
        (3, "STACK_IMAGE", settings.STACK_IMAGE),
        (4, "STACK_DOMAIN_SUFFIX", settings.STACK_DOMAIN_SUFFIX),
    ):
        if name not in os.environ and f"{name}_FILE" not in os.environ:
            yield Warning(
                f"{name} is NOT SET: stacks are made with {value}, the default of the service that was here before.",
                hint=f"Set {name} to your own.",
                id=f"deployportal.W00{number}",
            )


def _check_stack_url() -> Iterator[CheckMessage]:
    certificate = settings.STACK_CERTIFICATE
    if certificate not in CERTIFICATES:
        yield Error(
            f"STACK_CERTIFICATE is {certificate!r}.",
            hint=f"Use one of {', '.join(CERTIFICATES)}.",
            id="deployportal.E005",
        )
    url = _address(settings.STACK_URL.replace("{name}", "name"))
    label = urlsplit(settings.STACK_URL).netloc.split(".")[0] if url else ""
    if url is None or label.count("{name}") != 1 or settings.STACK_URL.count("{name}") != 1:
        yield Error(
            f"STACK_URL is {settings.STACK_URL!r}, which gives stacks no address of their own.",
            hint=f"{STACK_URL_EXAMPLE} The name stands in the first label, and nowhere else.",
            id="deployportal.E004",
        )
        return
    if url.scheme == "https" and certificate == "none":
        yield Warning(
            "STACK_URL is https, but STACK_CERTIFICATE is none: no stack gets a certificate, and none will answer.",
            hint="Set STACK_CERTIFICATE to letsencrypt or wildcard, or make STACK_URL http.",
            id="deployportal.W002",
        )
    elif url.scheme == "http" and certificate in CERTIFICATES and certificate != "none":
        yield Warning(
            f"STACK_URL is http, but STACK_CERTIFICATE is {certificate}: the certificate is of no use.",
            hint="Make STACK_URL https, or set STACK_CERTIFICATE to none.",
            id="deployportal.W002",
        )
    if not f".{url.hostname}".endswith(f".{settings.STACK_DOMAIN_SUFFIX.lower()}"):
        yield Warning(
            f"STACK_URL leads to {url.hostname}, which is not under STACK_DOMAIN_SUFFIX.",
            hint="Set STACK_DOMAIN_SUFFIX to the domain of STACK_URL: it is what the portal knows stacks by.",
            id="deployportal.W009",
        )


@register()
def check_doors(**kwargs: Any) -> Iterator[CheckMessage]:
    """Who gets in, and how."""
    if not settings.DEMO:
        yield from _check_strictness()
    if settings.FAULT and not failpoints.is_fault_test():
        yield Error(
            "FAULT is set, but somebody's work may depend on this portal: dying on purpose is for rehearsals.",
            hint="Remove FAULT from the environment. Rehearse on one machine, with STACK_DOMAIN_SUFFIX under .test.",
            id="deployportal.E016",
        )
    if len(settings.SECRET_KEY) < SHORTEST_SECRET_KEY:
        yield Error(
            f"SECRET_KEY has fewer than {SHORTEST_SECRET_KEY} characters: sign-ins could be forged.",
            hint="Set a long random one, or none: then the portal makes its own in the data directory.",
            id="deployportal.E010",
        )
    try:
        keys = [Fernet(key.strip()) for key in settings.ENCRYPTION_KEYS]
    except ValueError:
        keys = []
    if not keys:
        yield Error(
            "ENCRYPTION_KEYS holds something that is no key: secrets could neither be kept nor read.",
            hint="Each key is 32 bytes in URL-safe base64, with commas between: Fernet.generate_key() makes one.",
            id="deployportal.E013",
        )
    last = 2 if settings.DEMO else 0  # the simulator and its router have the next two
    if not PORTS[0] <= settings.PORT <= PORTS[-1] - last:
        yield Error(
            f"PORT is {settings.PORT}, which is no port to listen on.",
            hint=f"Use 1 to {PORTS[-1] - last}.",
            id="deployportal.E012",
        )
    if settings.TRUSTED_PROXIES < 0:
        yield Error(
            f"TRUSTED_PROXIES is {settings.TRUSTED_PROXIES}: addresses that anybody can write would be believed.",
            hint="Set it to how many proxies stand in front of the portal; 0 where there is none.",
            id="deployportal.E014",
        )
    if settings.DATABASE_URL and not settings.REDIS_URL:
        yield Warning(
            "DATABASE_URL is set, but REDIS_URL is not: processes cannot wake each other, and pages lag by seconds.",
            hint="Set REDIS_URL, or run a single process.",
            id="deployportal.W007",
        )
    if settings.DATABASE_URL and urlsplit(settings.DATABASE_URL).scheme not in ("postgres", "postgresql"):
        yield Warning(
            "DATABASE_URL names a database that the portal was never tried on.",
            hint="Use postgres://…, or leave it out for SQLite in the data directory.",
            id="deployportal.W008",
        )


def _check_strictness() -> Iterator[CheckMessage]:
    """What is only for the demo."""
    if settings.SIMULATOR_SWITCH_KEY:
        yield Error(
            "SIMULATOR_SWITCH_KEY is set, but a real Dokploy is in use: fault switches are for the demo only.",
            hint="Remove SIMULATOR_SWITCH_KEY from the environment.",
            id="deployportal.E011",
        )
    if any(host == "*" or host.startswith(".") for host in settings.ALLOWED_HOSTS):
        yield Error(
            "ALLOWED_HOSTS lets in any host, or any below a domain: a stack could pass for the portal.",
            hint="Name each host by which people reach the portal, without wildcards.",
            id="deployportal.E009",
        )
    if settings.PORTAL_OPEN:
        yield Warning(
            "PORTAL_OPEN is on: whoever reaches the portal may deploy to a real server without signing in.",
            hint="Remove PORTAL_OPEN, unless only people whom you trust can reach the portal.",
            id="deployportal.W005",
        )
    suffix = settings.STACK_DOMAIN_SUFFIX.lower()
    shared = [host for host in settings.ALLOWED_HOSTS if f".{host.lower()}".endswith(f".{suffix}")]
    if shared:
        yield Warning(
            f"The portal ({', '.join(shared)}) and the stacks (*.{suffix}) share a site: "
            "code of strangers runs on a sibling domain of the portal.",
            hint="Give the stacks a domain of their own.",
            id="deployportal.W006",
        )


def _address(text: str) -> SplitResult | None:
    """The parts of http(s)://host[:port][/], or None for anything else."""
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        return None
    plain = url.scheme in ("http", "https") and url.path in ("", "/") and not (url.query or url.fragment)
    named = "@" not in url.netloc and _is_host(url.hostname or "")
    return url if plain and named and (port is None or port in PORTS) else None


def _is_host(text: str) -> bool:
    """A host name or an IP address."""
    try:
        return bool(ipaddress.ip_address(text))
    except ValueError:
        pass
    try:
        return bool(validation.validate_host(text))
    except ValueError:
        return False


def _is_host_and_port(text: str) -> bool:
    host, _, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    return (
        port.isascii()
        and port.isdecimal()
        and int(port) in PORTS
        and (":" not in host or bare != host)
        and _is_host(bare)
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
