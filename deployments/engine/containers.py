"""List the containers of an application, and wait until those of a deleted application have ended."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from .dokploy import Container, Dokploy
from .errors import DokployError, Failure, Unavailable
from .reporter import Reporter
from .retry import read_patiently

POLL_SECONDS = 1.0
STOP_SECONDS = 30.0  # Docker gives a container ten seconds to stop by itself
QUIET_SECONDS = 10.0  # Docker waits five seconds before it replaces a container that has ended
PARTIAL_OUTAGE_SECONDS = 15.0
ENDED_STATES = {"exited", "dead"}

T = TypeVar("T")


async def names(dokploy: Dokploy, app_name: str, reporter: Reporter) -> tuple[str, ...]:
    """Return the names of the application's containers, ended ones included. Empty when Dokploy cannot list them.

    Raise Unavailable when the container engine does not answer.
    """
    containers = await _list(dokploy, app_name, reporter)
    return tuple(container.name for container in containers)


async def wait_until_ended(dokploy: Dokploy, app_name: str | None, reporter: Reporter) -> None:
    """Wait until the containers of a deleted application have ended. Do nothing when `app_name` is None.

    Dokploy deletes the application's row first, and answers 200 even when it could not remove the Docker service. A
    service that remains replaces each container that ends, so a container counts as ended once no new one has appeared
    for QUIET_SECONDS. Raise Failure when one still runs after STOP_SECONDS.
    """
    if app_name is None:
        return
    loop = asyncio.get_running_loop()
    started = last_change = loop.time()
    known_names: set[str] = set()
    while containers := await _list(dokploy, app_name, reporter):
        now = loop.time()
        if any(c.state not in ENDED_STATES or c.name not in known_names for c in containers):
            last_change = now
        if now - last_change > QUIET_SECONDS:
            return
        if now - started > STOP_SECONDS:
            text = (
                f"Dokploy removed the application, but its container is still running. Run “docker service rm "
                f"{app_name}” on Dokploy's host, then try again."
            )
            raise Failure("CONTAINER_LEFT_AT_DOKPLOY", text)
        known_names |= {container.name for container in containers}
        await reporter.status("Waiting for the container to stop")
        await asyncio.sleep(POLL_SECONDS)


async def require_engine(dokploy: Dokploy, reporter: Reporter) -> None:
    """Raise Unavailable when Dokploy says that its container engine does not answer."""
    if engine_error := await _ask_optional(dokploy.engine_error, dokploy, reporter):
        raise Unavailable("Dokploy's container engine does not answer.", evidence=engine_error)


async def _list(dokploy: Dokploy, app_name: str, reporter: Reporter) -> list[Container]:
    containers = await _ask_optional(lambda: dokploy.containers(app_name), dokploy, reporter)
    if containers == []:  # Dokploy also sends an empty list when its container engine does not answer
        await require_engine(dokploy, reporter)
    return containers or []


async def _ask_optional(ask: Callable[[], Awaitable[T]], dokploy: Dokploy, reporter: Reporter) -> T | None:
    """Return Dokploy's answer to a read that the caller can do without.

    Return None when Dokploy refuses the read, or when the read fails for PARTIAL_OUTAGE_SECONDS while Dokploy's health
    check succeeds. Raise Unavailable when the health check fails too.
    """
    try:
        return await read_patiently(ask, reporter, PARTIAL_OUTAGE_SECONDS)
    except Unavailable:
        if not await dokploy.healthy():
            raise
    except DokployError:
        pass
    return None
