"""System checks that ask the Dokploy server at DOKPLOY_URL whether it is fit for the portal.

They use the network, so only `manage.py check --tag dokploy` runs them (and `manage.py conformance` before it begins).
"""

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import httpx
from django.conf import settings
from django.core.checks import CheckMessage, Error, Info, Warning

from . import system_checks
from .engine import versions
from .engine.dokploy import Dokploy, is_engine_error
from .engine.errors import DokployError, KeyExhausted, KeyRefused, NotDokploy, Refused

CONNECT_SECONDS = 5.0
CALLS = 6  # calls with the key: one more than Dokploy's default rate limit for a key allows in 24 hours
UNLIMITED = "rateLimitEnabled:false"


def check_server(**kwargs: Any) -> list[CheckMessage]:
    """Check the server, unless its settings are wrong: system_checks.check_dokploy reports those."""
    if any(message.is_serious() for message in system_checks.check_dokploy()):
        return []
    return asyncio.run(examine(settings.DOKPLOY_URL, settings.DOKPLOY_API_KEY))


async def examine(url: str, key: str) -> list[CheckMessage]:
    """Return the results of all checks, up to the first error that prevents further ones."""
    if connection_error := await check_connection(url):
        return [connection_error]
    dokploy = Dokploy(url, key, connections=1)
    messages: list[CheckMessage] = []
    try:
        await dokploy.require_dokploy()
        if not await dokploy.healthy():
            return [_database_message()]
        async for message in check_with_key(dokploy):
            messages.append(message)
    except DokployError as error:
        messages.append(error_message(error, key_worked=bool(messages)))
    finally:
        await dokploy.aclose()
    return messages


async def check_connection(url: str) -> Error | None:
    """Open a connection and close it without sending anything. Return the error, or None if it succeeded."""
    parts = urlsplit(url)
    host, tls = parts.hostname or "", parts.scheme == "https"
    port = parts.port or (443 if tls else 80)
    # Trust the same authorities as the client: those of certifi, not those of the system.
    context = httpx.create_ssl_context(trust_env=False) if tls else None
    hint = "Check DOKPLOY_URL, and that Dokploy is running. In the demo, Dokploy is the simulator: make run."
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(host, port, ssl=context)
        writer.transport.abort()
    except socket.gaierror:
        return Error(
            f"The host of DOKPLOY_URL, {host}, cannot be resolved.",
            hint="Check its spelling, its DNS record, and the DNS settings of this machine.",
            id="deployportal.E101",
        )
    except ssl.SSLError as error:
        reason = error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else "the server has no TLS"
        return Error(
            f"A secure connection to DOKPLOY_URL failed: {reason}.",
            hint="Give Dokploy a publicly trusted certificate, and use the certificate's host name in DOKPLOY_URL.",
            id="deployportal.E103",
        )
    except TimeoutError:
        text = f"{host} did not accept a connection on port {port} within {CONNECT_SECONDS:.0f} s."
        return Error(text, hint=f"{hint} A firewall may block the port.", id="deployportal.E102")
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else "refused"
        text = f"The connection to {host}, port {port}, failed ({reason})."
        return Error(text, hint=hint, id="deployportal.E102")
    return None


async def check_with_key(dokploy: Dokploy) -> AsyncIterator[CheckMessage]:
    """Yield the results of all checks that need the key.

    CALLS calls are made with the key, so that a rate limit is reached here and not during a deployment.
    """
    version_message = _version_message(await dokploy.version())
    yield version_message
    if version_message.is_serious():
        return
    roles = await dokploy.roles()
    yield _concurrency_message(await dokploy.builds_concurrency())
    try:
        errors = await dokploy.infrastructure_errors()
    except (KeyExhausted, Refused):
        await dokploy.version()  # raises if the rate limit was the reason; otherwise the key is not an admin's
        yield _role_message(roles, acts_as_admin=False)
    else:
        yield _role_message(roles, acts_as_admin=True)
        yield _engine_message(errors["traefik"])
    for _ in range(CALLS - 4):
        await dokploy.version()


def error_message(error: DokployError, *, key_worked: bool) -> Error:
    """Return the check message for an error of the client. key_worked: an earlier call with the key succeeded."""
    if isinstance(error, NotDokploy):
        hint = "Set DOKPLOY_URL to the address at which Dokploy's own pages open, with the right scheme and port."
        return Error(str(error), hint=hint, id="deployportal.E104")
    if isinstance(error, KeyExhausted) or (isinstance(error, KeyRefused) and key_worked):
        return Error(
            "The key in DOKPLOY_API_KEY has a rate limit, which is now reached. Deployments would stop halfway.",
            hint=f"Create a key with {UNLIMITED}.",
            id="deployportal.E108",
        )
    if isinstance(error, KeyRefused):
        return Error(
            "Dokploy refuses the key in DOKPLOY_API_KEY: it is wrong or revoked, or its rate limit is reached.",
            hint=f"Create a key in Dokploy, as an owner or admin, with {UNLIMITED}.",
            id="deployportal.E107",
        )
    if isinstance(error, Refused):
        hint = f"Create a key as an owner or admin, with {UNLIMITED}."
        return Error(str(error), hint=hint, id="deployportal.E109")
    return Error(
        f"Dokploy does not answer as expected: {error}",
        hint="A server answers at DOKPLOY_URL. Check whether Dokploy behind it is running or still starting.",
        id="deployportal.E105",
    )


def _database_message() -> Error:
    return Error(
        "Dokploy is running, but its database does not answer.",
        hint="Check the service dokploy-postgres on Dokploy's host.",
        id="deployportal.E106",
    )


def _version_message(text: str) -> CheckMessage:
    version, version_error = versions.parse(text), versions.version_error(text)
    if version is None:
        oldest = versions.format_version(versions.OLDEST)
        return Warning(
            f"Dokploy reports the version {text[:40]!r}, which the portal cannot read.",
            hint=f"The portal requires {oldest} or later: older versions have known vulnerabilities.",
            id="deployportal.W101",
        )
    if version_error:
        hint = "The key in DOKPLOY_API_KEY gives root access to Dokploy's host, so the portal refuses such a version."
        return Error(version_error, hint=hint, id="deployportal.E110")
    tested = versions.format_version(versions.TESTED)
    if version == versions.TESTED:
        text = f"Dokploy is {tested}, the version that the portal was made for."
    elif versions.is_untested(text):
        text = f"Dokploy is {versions.format_version(version)}, newer than {tested}, for which the portal was made."
    else:
        text = f"Dokploy is {versions.format_version(version)}; the portal was made for {tested}."
    return Info(text, id="deployportal.I101")


def _role_message(roles: frozenset[str], *, acts_as_admin: bool) -> CheckMessage:
    names = ", ".join(sorted(roles))[:100] or "none"
    if acts_as_admin:
        return Info(f"The key acts as an owner or admin (roles of its user: {names}).", id="deployportal.I102")
    return Error(
        f"The key does not act as an owner or admin (roles of its user: {names}). "
        "Dokploy hides objects from other keys, so the portal could neither find nor remove its own.",
        hint=f"Create a key as an owner or admin of the organization, with {UNLIMITED}.",
        id="deployportal.E109",
    )


def _concurrency_message(count: int | None) -> CheckMessage:
    if count is None:
        text = "Dokploy does not report how many deployments it runs at a time. The default is one."
    elif count == 1:
        text = "Dokploy runs one deployment at a time. All others wait, including those of other users of Dokploy."
    else:
        text = f"Dokploy runs {count} deployments at a time. All others wait."
    return Info(text, hint="This is “builds concurrency” in Dokploy's settings.", id="deployportal.I103")


def _engine_message(router_error: str) -> CheckMessage:
    """Return the state of the container engine. router_error: its error when Dokploy asked it for its router, or ""."""
    if not router_error:
        return Info("The container engine answers, and Dokploy's router is running.", id="deployportal.I104")
    if is_engine_error(router_error):
        return Error(
            f"Dokploy's container engine does not work: {router_error}",
            hint="Check Docker on Dokploy's host. Nothing can be deployed without it.",
            id="deployportal.E111",
        )
    return Warning(
        f"The container engine answers, but Dokploy's router is not running: {router_error}",
        hint="Check dokploy-traefik on Dokploy's host. Stacks cannot be reached without it.",
        id="deployportal.W102",
    )
