"""What is to be known of the Dokploy server at DOKPLOY_URL before people rely on it, as system checks that ask it.

They touch the network, so that nothing but `manage.py check --tag dokploy` runs them.
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
CALLS = 6  # a key with Dokploy's default limit is good for five in 24 hours
ADMINS = {"owner", "admin"}
UNLIMITED = "rateLimitEnabled:false"


def check_server(**kwargs: Any) -> list[CheckMessage]:
    if any(message.is_serious() for message in system_checks.check_dokploy()):
        return []  # that message says what to do first
    return asyncio.run(examine(settings.DOKPLOY_URL, settings.DOKPLOY_API_KEY))


async def examine(url: str, key: str) -> list[CheckMessage]:
    """What is found, good and bad, up to the first thing without which the rest cannot be asked."""
    unreachable = await connect(url)
    if unreachable:
        return [unreachable]
    dokploy = Dokploy(url, key, connections=1)
    found: list[CheckMessage] = []
    try:
        await dokploy.require_dokploy()
        if not await dokploy.healthy():
            return [_no_database()]
        async for message in ask(dokploy):
            found.append(message)
    except DokployError as error:
        found.append(explain(error, worked=bool(found)))
    finally:
        await dokploy.aclose()
    return found


async def connect(url: str) -> Error | None:
    """Why no connection can be made: the name, the port, or the certificate. Nothing is sent."""
    parts = urlsplit(url)
    host, tls = parts.hostname or "", parts.scheme == "https"
    port = parts.port or (443 if tls else 80)
    # The same roots as the client's, which knows nothing of the system's.
    context = httpx.create_ssl_context(trust_env=False) if tls else None
    hint = "Check DOKPLOY_URL, and that Dokploy runs. In the demo that is the simulator: make run."
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(host, port, ssl=context)
        writer.transport.abort()
    except socket.gaierror:
        return Error(
            f"The host of DOKPLOY_URL, {host}, is not known in the DNS.",
            hint="Check its spelling, and that this machine can resolve it.",
            id="deployportal.E101",
        )
    except ssl.SSLError as error:
        reason = error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else "no TLS is spoken there"
        return Error(
            f"No safe connection to DOKPLOY_URL can be made: {reason}.",
            hint="Give Dokploy a certificate that browsers trust, and name it in DOKPLOY_URL as the certificate does.",
            id="deployportal.E103",
        )
    except TimeoutError:
        text = f"{host} does not accept a connection on port {port} within {CONNECT_SECONDS:.0f} s."
        return Error(text, hint=f"{hint} A firewall may be in between.", id="deployportal.E102")
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else "refused"
        text = f"No connection to {host}, port {port}, can be made ({reason})."
        return Error(text, hint=hint, id="deployportal.E102")
    return None


async def ask(dokploy: Dokploy) -> AsyncIterator[CheckMessage]:
    """The questions that need the key. There are so many that a limited key runs out of calls here, and not later."""
    yield _of_version(await dokploy.version())
    roles = await dokploy.roles()
    yield _of_concurrency(await dokploy.builds_concurrency())
    try:
        parts = await dokploy.infrastructure_errors()
    except NotDokploy:
        yield _of_role(roles, acts_as_admin=roles <= ADMINS)
        yield Warning(
            "This Dokploy cannot say whether its container engine answers.",
            hint="Dokploy can from version 0.29 on.",
            id="deployportal.W103",
        )
    except (KeyExhausted, Refused):
        await dokploy.version()  # raises where the key is spent; else the question was one for admins only
        yield _of_role(roles, acts_as_admin=False)
    else:
        yield _of_role(roles, acts_as_admin=True)
        yield _of_engine(parts["traefik"])
    for _ in range(CALLS - 4):
        await dokploy.version()


def explain(error: DokployError, *, worked: bool) -> Error:
    """What an error means here. worked: the key was good for a question before."""
    if isinstance(error, NotDokploy):
        hint = "Set DOKPLOY_URL to the address at which Dokploy's own pages open, with the right scheme and port."
        return Error(str(error), hint=hint, id="deployportal.E104")
    if isinstance(error, KeyExhausted) or (isinstance(error, KeyRefused) and worked):
        return Error(
            "The key in DOKPLOY_API_KEY is rate-limited, and used up now. Deployments would stop halfway.",
            hint=f"Make a new key with {UNLIMITED}.",
            id="deployportal.E108",
        )
    if isinstance(error, KeyRefused):
        return Error(
            "Dokploy refuses the key in DOKPLOY_API_KEY: it is wrong or revoked, or its rate limit is used up.",
            hint=f"Make a new key at Dokploy, as an owner or admin, with {UNLIMITED}.",
            id="deployportal.E107",
        )
    if isinstance(error, Refused):
        hint = f"Make a key as an owner or admin, with {UNLIMITED}."
        return Error(str(error), hint=hint, id="deployportal.E109")
    return Error(
        f"Dokploy does not answer as it should: {error}",
        hint="Something answers at DOKPLOY_URL. See whether Dokploy behind it runs, or is just being started.",
        id="deployportal.E105",
    )


def _no_database() -> Error:
    return Error(
        "Dokploy runs, but its database does not answer.",
        hint="Look at the service dokploy-postgres on Dokploy's host.",
        id="deployportal.E106",
    )


def _of_version(text: str) -> CheckMessage:
    version, version_error = versions.parse(text), versions.version_error(text)
    if version is None:
        return Warning(
            f"Dokploy says that its version is {text[:40]!r}, which tells nothing about its age.",
            hint=f"The portal wants {versions.shown(versions.OLDEST)} or later: older ones have known advisories.",
            id="deployportal.W101",
        )
    if version_error:
        lets = "; ".join(hole.what for hole in versions.advisories(text))
        return Error(version_error, hint=f"They let {lets}.", id="deployportal.E110")
    tried = versions.shown(versions.TESTED)
    if version == versions.TESTED:
        text = f"Dokploy is {tried}, the version that the portal was made for."
    elif versions.is_untested(text):
        text = f"Dokploy is {versions.shown(version)}; the portal was made for {tried} and may not know what is new."
    else:
        text = f"Dokploy is {versions.shown(version)}; the portal was made for {tried}."
    return Info(text, id="deployportal.I101")


def _of_role(roles: frozenset[str], *, acts_as_admin: bool) -> CheckMessage:
    names = ", ".join(sorted(roles))[:100] or "nothing"
    if acts_as_admin:
        return Info(f"The key acts as an owner or admin (its user is: {names}).", id="deployportal.I102")
    return Error(
        f"The key does not act as an owner or admin (its user is: {names}). A member loses access to what it makes.",
        hint=f"Make a key as an owner or admin of the organization, with {UNLIMITED}.",
        id="deployportal.E109",
    )


def _of_concurrency(count: int | None) -> CheckMessage:
    if count is None:
        text = "Dokploy does not say how many deployments it runs at a time; it is probably one."
    elif count == 1:
        text = "Dokploy runs one deployment at a time: they wait for each other, and for everybody else's."
    else:
        text = f"Dokploy runs {count} deployments at a time; more than that wait."
    return Info(text, hint="It is the builds concurrency in Dokploy's settings.", id="deployportal.I103")


def _of_engine(router: str) -> CheckMessage:
    """From what the engine said when Dokploy asked it for its router: "" when that runs."""
    if not router:
        return Info("The container engine answers, and Dokploy's router runs.", id="deployportal.I104")
    if is_engine_error(router):
        return Error(
            f"Dokploy's container engine does not do its work: {router}",
            hint="See to Docker on Dokploy's host: nothing can be deployed without it.",
            id="deployportal.E111",
        )
    return Warning(
        f"The container engine answers, but Dokploy's router does not run: {router}",
        hint="Stacks are not reachable without it. See to dokploy-traefik on Dokploy's host.",
        id="deployportal.W102",
    )
