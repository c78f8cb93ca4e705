"""Compare a throwaway stack with what Dokploy reports about it."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from .. import containers
from ..dokploy import CALL_SECONDS, DokployDeployment
from ..errors import Unavailable
from ..probe import probe_stack
from ..spec import Resources
from ..validation import dotenv
from .session import Session, ThrowawayStack

EVENTUALLY_SECONDS = 30.0  # containers and routes disappear some time after Dokploy reports success

T = TypeVar("T")


async def expect_deployed(session: Session, stack: ThrowawayStack) -> None:
    """Expect exactly one of each object, configured as requested, and an address that answers."""
    stack.expect("repeated attempts and notes", [], stack.irregularities)
    await _expect_objects(session, stack)
    await _expect_configuration(session, stack)
    await _expect_deployment(session, stack)
    stack.expect("a container is running", True, await eventually(lambda: _has_running_container(session, stack), True))
    stack.expect("address answers", True, await _answers(stack))


async def _expect_objects(session: Session, stack: ThrowawayStack) -> None:
    spec, resources, dokploy = stack.spec, stack.resources, session.dokploy
    projects = [project for project in await dokploy.projects() if project.description == spec.mark]
    stack.expect("projects", [(resources.project_id, spec.name)], [(p.id, p.name) for p in projects])
    environments = [environment for project in projects for environment in await dokploy.environments(project.id)]
    applications = [application for environment in environments for application in environment.applications]
    stack.expect(
        "applications",
        [(resources.application_id, spec.name, spec.mark)],
        [(application.id, application.name, application.description) for application in applications],
    )
    prefixed = [application.app_name.startswith(f"{spec.name}-") for application in applications]
    stack.expect("service name begins with the requested name", [True], prefixed)


async def _expect_configuration(session: Session, stack: ThrowawayStack) -> None:
    spec, dokploy = stack.spec, session.dokploy
    application_id = stack.resources.application_id or ""
    saved = await dokploy.saved_config(application_id)
    stack.expect("source and image", ("docker", spec.image), (saved.source, saved.image))
    stack.expect("variables are unchanged", True, saved.env == dotenv(spec.env))
    https = spec.certificate != "none"
    certificate_type = "letsencrypt" if spec.certificate == "letsencrypt" else "none"
    stack.expect(
        "domains (host, path, port, https, certificate)",
        [(stack.resources.domain_id, spec.host, "/", spec.port, https, certificate_type)],
        [(d.id, d.host, d.path, d.port, d.https, d.certificate_type) for d in await dokploy.domains(application_id)],
    )


async def _expect_deployment(session: Session, stack: ThrowawayStack) -> None:
    rows = [row for row in await dokploy_deployments(session, stack) if row.title == stack.spec.deploy_title(1)]
    expected = [(stack.resources.dokploy_deployment_id, "done")]
    stack.expect("Dokploy deployments and their status", expected, [(row.id, row.status) for row in rows])
    stack.expect("entries in the queue", [], await _queued_titles(session, stack))
    stack.expect("log lines were reported", True, stack.log_line_count > 0)
    for row in rows:
        log = (await session.dokploy.read_deploy_log(row.id)).strip()
        streamed = (await _first_streamed_text(session, row)).strip()
        stack.expect("log can be read over HTTP", True, bool(log))
        stack.expect("WebSocket sends the same log", True, bool(streamed) and log.startswith(streamed[:80]))


async def expect_removed(session: Session, stack: ThrowawayStack) -> None:
    """Expect that no object of the stack exists, no container runs, and its address does not answer."""
    resources, dokploy = stack.resources, session.dokploy
    stack.expect("repeated attempts and notes", [], stack.irregularities)
    projects = await dokploy.projects()
    stack.expect("projects", [], [project.id for project in projects if project.description == stack.spec.mark])
    if resources.application_id is not None:
        listed = [id for project in projects for id in project.application_ids]
        stack.expect("application is listed", False, resources.application_id in listed)
        stack.expect("application exists", False, await dokploy.exists("application", resources.application_id))
        stack.expect("domains", [], [domain.host for domain in await dokploy.domains(resources.application_id)])
        stack.expect("Dokploy deployments", [], [row.title for row in await dokploy_deployments(session, stack)])
    stack.expect("entries in the queue", [], await _queued_titles(session, stack))
    if resources.app_name is not None:
        stack.expect("containers", [], await eventually(lambda: _container_names(session, stack), []))
    stack.expect("address answers", False, await eventually(lambda: _answers(stack), False))


# -- what Dokploy reports ----------------------------------------------------------------------------------------------


async def dokploy_deployments(session: Session, stack: ThrowawayStack) -> list[DokployDeployment]:
    """Return the stack's Dokploy deployments, the newest first."""
    return await session.dokploy.dokploy_deployments(stack.resources.application_id or "")


def lasting_ids(resources: Resources) -> set[str]:
    """Return the ids of the objects that a redeployment keeps."""
    ids = (resources.project_id, resources.environment_id, resources.application_id, resources.domain_id)
    return {id for id in ids if id}


async def _queued_titles(session: Session, stack: ThrowawayStack) -> list[str]:
    queue = await session.dokploy.queue()
    return [entry.title for entry in queue if entry.title.startswith(f"{stack.spec.mark}/")]


async def _container_names(session: Session, stack: ThrowawayStack) -> list[str]:
    return [container.name for container in await session.dokploy.containers(stack.resources.app_name or "")]


async def _has_running_container(session: Session, stack: ThrowawayStack) -> bool:
    reported = await session.dokploy.containers(stack.resources.app_name or "")
    return any(container.state == "running" for container in reported)


async def _answers(stack: ThrowawayStack) -> bool:
    return (await probe_stack(stack.spec)).answered


async def _first_streamed_text(session: Session, row: DokployDeployment) -> str:
    """Return the first text of a log that the WebSocket sends. Empty when it sends nothing within CALL_SECONDS."""
    with contextlib.suppress(Unavailable, TimeoutError):
        async with (
            asyncio.timeout(CALL_SECONDS),
            contextlib.aclosing(session.dokploy.follow_log(row.log_path)) as pieces,
        ):
            async for text in pieces:
                return text
    return ""


async def eventually(read: Callable[[], Awaitable[T]], expected: T) -> T:
    """Read repeatedly until the value is the expected one. Return the last value after EVENTUALLY_SECONDS."""
    deadline = time.monotonic() + EVENTUALLY_SECONDS
    while True:
        value = await read()
        if value == expected or time.monotonic() > deadline:
            return value
        await asyncio.sleep(containers.POLL_SECONDS)
