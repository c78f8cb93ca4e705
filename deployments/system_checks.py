"""Django system checks of the portal's settings. They run before the portal starts and connect to no server."""

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
"""The tag of the checks about Dokploy. Only `manage.py check --tag dokploy` also connects to the server."""
CERTIFICATES = ("letsencrypt", "wildcard", "none")
SHORTEST_SECRET_KEY = 40  # in characters
PORTS = range(1, 65536)


@register(DOKPLOY)
def check_dokploy(**kwargs: Any) -> Iterator[CheckMessage]:
    """Check the address of Dokploy and the API key. The demo has the simulator, whose settings need no check."""
    if settings.DEMO:
        return
    if not settings.DOKPLOY_API_KEY:
        yield Error(
            "DOKPLOY_URL is set, but DOKPLOY_API_KEY is not.",
            hint="Create a key in Dokploy and set DOKPLOY_API_KEY, or set DOKPLOY_API_KEY_FILE to a file with the key.",
            id="deployportal.E001",
        )
    elif not (settings.DOKPLOY_API_KEY.isascii() and settings.DOKPLOY_API_KEY.isprintable()):
        yield Error(
            "DOKPLOY_API_KEY contains characters that a key cannot have.",
            hint="Copy the key again. It is one line of plain letters, digits, hyphens and underscores.",
            id="deployportal.E015",
        )
    url = _parse_address(settings.DOKPLOY_URL)
    if url is None:
        yield Error(
            "DOKPLOY_URL must be scheme://host[:port].",
            hint="Write an address such as https://dokploy.example.org, with no path, no user and no password.",
            id="deployportal.E002",
        )
    elif url.scheme == "http" and not _is_loopback(url.hostname or ""):
        yield Warning(
            "DOKPLOY_URL uses http to another machine: the key, which gives root access there, is sent unencrypted.",
            hint="Use https, or connect to Dokploy through a tunnel on this machine.",
            id="deployportal.W001",
        )


@register()
def check_stacks(**kwargs: Any) -> Iterator[CheckMessage]:
    """Check the settings of the first template and of the stacks' addresses."""
    if not _is_host(settings.STACK_DOMAIN_SUFFIX):
        yield Error(
            f"STACK_DOMAIN_SUFFIX is {settings.STACK_DOMAIN_SUFFIX!r}, which is not a host name.",
            hint="Write it without a dot in front, such as apps.example.org.",
            id="deployportal.E003",
        )
    yield from _check_stack_url()
    try:
        validation.validate_image(settings.STACK_IMAGE, settings.STACK_REGISTRIES)
    except ValueError as error:
        yield Error(
            f"STACK_IMAGE is {settings.STACK_IMAGE!r}, which stacks cannot use.",
            hint=str(error),
            id="deployportal.E006",
        )
    if settings.STACK_PORT not in PORTS:
        yield Error(
            f"STACK_PORT is {settings.STACK_PORT}, which is not a port.",
            hint="Set it to the port that the image listens on, 1 to 65535.",
            id="deployportal.E007",
        )
    if settings.STACK_ROUTER_ADDRESS and not _is_host_and_port(settings.STACK_ROUTER_ADDRESS):
        yield Error(
            f"STACK_ROUTER_ADDRESS is {settings.STACK_ROUTER_ADDRESS!r}, which is not a host and a port.",
            hint="Write host:port, such as 192.0.2.7:443, or remove it to use the address in the DNS.",
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
                f"{name} is NOT SET. Stacks use {value}, the default of the service that this portal replaced.",
                hint=f"Set {name} to your own value.",
                id=f"deployportal.W00{number}",
            )


def _check_stack_url() -> Iterator[CheckMessage]:
    """Check that STACK_URL gives each stack its own address and fits the other settings."""
    certificate = settings.STACK_CERTIFICATE
    if certificate not in CERTIFICATES:
        yield Error(
            f"STACK_CERTIFICATE is {certificate!r}.",
            hint=f"Use one of {', '.join(CERTIFICATES)}.",
            id="deployportal.E005",
        )
    url = _parse_address(settings.STACK_URL.replace("{name}", "name"))
    label = urlsplit(settings.STACK_URL).netloc.split(".")[0] if url else ""
    if url is None or label.count("{name}") != 1 or settings.STACK_URL.count("{name}") != 1:
        yield Error(
            f"STACK_URL is {settings.STACK_URL!r}, which does not give each stack its own address.",
            hint="Write an address such as https://{name}.apps.example.org, with {name} only in the first label.",
            id="deployportal.E004",
        )
        return
    if url.scheme == "https" and certificate == "none":
        yield Warning(
            "STACK_URL is https, but STACK_CERTIFICATE is none: stacks get no certificate and will not answer.",
            hint="Set STACK_CERTIFICATE to letsencrypt or wildcard, or use http in STACK_URL.",
            id="deployportal.W002",
        )
    elif url.scheme == "http" and certificate in CERTIFICATES and certificate != "none":
        yield Warning(
            f"STACK_URL is http, but STACK_CERTIFICATE is {certificate}: the certificate is not used.",
            hint="Use https in STACK_URL, or set STACK_CERTIFICATE to none.",
            id="deployportal.W002",
        )
    if not f".{url.hostname}".endswith(f".{settings.STACK_DOMAIN_SUFFIX.lower()}"):
        yield Warning(
            f"STACK_URL has the host {url.hostname}, which is not under STACK_DOMAIN_SUFFIX.",
            hint="Set STACK_DOMAIN_SUFFIX to the domain of STACK_URL: the portal recognizes stacks by it.",
            id="deployportal.W009",
        )


@register()
def check_portal(**kwargs: Any) -> Iterator[CheckMessage]:
    """Check the settings of the portal itself: keys, port, proxies and databases."""
    if not settings.DEMO:
        yield from _check_production()
    if settings.FAULT and not failpoints.is_fault_test():
        yield Error(
            "FAULT is set, but users may depend on this portal: a fault test kills its processes.",
            hint="Remove FAULT. Fault tests need Dokploy on this machine, and STACK_DOMAIN_SUFFIX under .test.",
            id="deployportal.E016",
        )
    if len(settings.SECRET_KEY) < SHORTEST_SECRET_KEY:
        yield Error(
            f"SECRET_KEY has fewer than {SHORTEST_SECRET_KEY} characters: sessions could be forged.",
            hint="Set a long random value, or remove it: the portal then creates its own in the data directory.",
            id="deployportal.E010",
        )
    try:
        keys = [Fernet(key.strip()) for key in settings.ENCRYPTION_KEYS]
    except ValueError:
        keys = []
    if not keys:
        yield Error(
            "ENCRYPTION_KEYS contains an invalid key; secrets cannot be encrypted or decrypted.",
            hint="Separate keys by commas. Each is 32 bytes in URL-safe base64; Fernet.generate_key() creates one.",
            id="deployportal.E013",
        )
    further_ports = 2 if settings.DEMO else 0  # the simulator and its router use the next two
    highest = PORTS[-1] - further_ports
    if not PORTS[0] <= settings.PORT <= highest:
        yield Error(
            f"PORT is {settings.PORT}, and the portal cannot listen on it.",
            hint=f"Use 1 to {highest}.",
            id="deployportal.E012",
        )
    if settings.TRUSTED_PROXIES < 0:
        yield Error(
            f"TRUSTED_PROXIES is {settings.TRUSTED_PROXIES}: clients could forge their address.",
            hint="Set it to the number of proxies in front of the portal, 0 if there are none.",
            id="deployportal.E014",
        )
    if settings.DATABASE_URL and not settings.REDIS_URL:
        yield Warning(
            "DATABASE_URL is set, but REDIS_URL is not: processes cannot notify each other, and pages lag by seconds.",
            hint="Set REDIS_URL, or run a single process.",
            id="deployportal.W007",
        )
    if settings.DATABASE_URL and urlsplit(settings.DATABASE_URL).scheme not in ("postgres", "postgresql"):
        yield Warning(
            "DATABASE_URL is for a database that the portal was not tested with.",
            hint="Use postgres://…, or remove it to use SQLite in the data directory.",
            id="deployportal.W008",
        )


def _check_production() -> Iterator[CheckMessage]:
    """Check for settings that are safe only in the demo."""
    if settings.SIMULATOR_SWITCH_KEY:
        yield Error(
            "SIMULATOR_SWITCH_KEY is set, but a real Dokploy is in use: fault switches are for the demo only.",
            hint="Remove SIMULATOR_SWITCH_KEY from the environment.",
            id="deployportal.E011",
        )
    if any(host == "*" or host.startswith(".") for host in settings.ALLOWED_HOSTS):
        yield Error(
            "ALLOWED_HOSTS contains a wildcard: a stack could impersonate the portal.",
            hint="List each host name of the portal, without wildcards.",
            id="deployportal.E009",
        )
    if settings.PORTAL_OPEN:
        yield Warning(
            "PORTAL_OPEN is on: anyone who can connect to the portal can deploy to a real server without signing in.",
            hint="Remove PORTAL_OPEN unless only people that you trust can connect to the portal.",
            id="deployportal.W005",
        )
    suffix = settings.STACK_DOMAIN_SUFFIX.lower()
    shared = [host for host in settings.ALLOWED_HOSTS if f".{host.lower()}".endswith(f".{suffix}")]
    if shared:
        yield Warning(
            f"The portal ({', '.join(shared)}) and the stacks (*.{suffix}) share a site: "
            "other people's code runs on a sibling domain of the portal.",
            hint="Give the stacks a domain of their own.",
            id="deployportal.W006",
        )


def _parse_address(text: str) -> SplitResult | None:
    """Return the parts of http(s)://host[:port][/]; None for any other text."""
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        return None
    is_bare_http = url.scheme in ("http", "https") and url.path in ("", "/") and not (url.query or url.fragment)
    has_only_host = "@" not in url.netloc and _is_host(url.hostname or "")
    return url if is_bare_http and has_only_host and (port is None or port in PORTS) else None


def _is_host(text: str) -> bool:
    """Return whether the text is a host name or an IP address."""
    try:
        return bool(ipaddress.ip_address(text))
    except ValueError:
        pass
    try:
        return bool(validation.validate_host(text))
    except ValueError:
        return False


def _is_host_and_port(text: str) -> bool:
    """Return whether the text is host:port, with an IPv6 address in brackets."""
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
