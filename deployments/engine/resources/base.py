"""Ownership of Dokploy's objects, and how they are found, created and deleted without duplicates.

An object is owned when it carries the stack's mark (`StackSpec.mark`, kept in its description) and either its id is
recorded or it has the stack's name. The mark alone is not enough: a copy that a user makes in Dokploy carries it too.
An object whose id is recorded but whose mark was removed is left alone, and is not treated as deleted.

Dokploy's create calls are not idempotent, its names are not unique, and an error response does not mean that nothing
was created. An unknown outcome is therefore resolved by reading, never by creating again.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from .. import failures
from ..dokploy import Application, Dokploy, Domain, Project
from ..errors import Failure, NotFound, OutcomeUnknown
from ..reporter import Reporter
from ..spec import MarkedObject, Resources, StackSpec, mark_of

RECHECK_SECONDS = 1.5  # a request whose connection or worker is gone may still take effect: read twice before creating

CreatedT = TypeVar("CreatedT", Project, Application, Domain)
MarkedT = TypeVar("MarkedT", Project, Application)
Ownership = tuple[list[MarkedT], list[MarkedT]]
"""The owned objects, and those whose id is recorded but which are not owned any more."""


# -- ownership ---------------------------------------------------------------------------------------------------------


async def find_projects(dokploy: Dokploy, spec: StackSpec, reporter: Reporter) -> Ownership[Project]:
    """Return the stack's owned projects, and its recorded projects that lost the mark.

    Raise NotAllowed or OutcomeUnknown when a recorded project exists but is missing from Dokploy's list.
    """
    projects = await dokploy.projects()
    await confirm_unlisted_gone("project", projects, dokploy, reporter)
    return by_ownership(projects, spec, reporter)


async def find_applications(dokploy: Dokploy, spec: StackSpec, reporter: Reporter) -> Ownership[Application]:
    """Return the stack's owned applications, and its recorded applications that lost the mark.

    Search the projects with the stack's mark, and every project that is recorded or holds a recorded application: a
    user may have moved the application to another project.
    Raise NotAllowed or OutcomeUnknown when a recorded application exists but is missing from Dokploy's lists.
    """
    applications = [
        application
        for project in await dokploy.projects()
        if project.description == spec.mark or reporter.recorded_ids.keys() & {project.id, *project.application_ids}
        for environment in await dokploy.environments(project.id)
        for application in environment.applications
    ]
    await confirm_unlisted_gone("application", applications, dokploy, reporter)
    return by_ownership(applications, spec, reporter)


async def confirm_unlisted_gone(kind: str, listed: list[MarkedT], dokploy: Dokploy, reporter: Reporter) -> None:
    """Confirm that every recorded object of this kind that is not listed does not exist.

    Dokploy's lists silently leave out what the API key may not see. Raise NotAllowed when the key may not see such an
    object, and OutcomeUnknown when it exists and is not listed.
    """
    recorded = {id for id, recorded_kind in reporter.recorded_ids.items() if recorded_kind == kind}
    for id in sorted(recorded.difference(item.id for item in listed)):
        if await dokploy.exists(kind, id):
            raise OutcomeUnknown(f"Dokploy has the {kind} but does not list it.")


def by_ownership(listed: list[MarkedT], spec: StackSpec, reporter: Reporter) -> Ownership[MarkedT]:
    """Return the owned objects of the list, and those that are recorded but not owned any more."""
    marked = [item for item in listed if item.description == spec.mark]
    owned = [item for item in marked if item.id in reporter.recorded_ids or item.name == spec.name]
    return owned, [item for item in listed if item.id in reporter.recorded_ids and item not in owned]


def preferred(owned: list[MarkedT], reporter: Reporter) -> MarkedT | None:
    """Return the object to use when several are owned: the recorded one, else the oldest. None for an empty list."""
    return min(owned, key=lambda item: (item.id not in reporter.recorded_ids, item.created_at), default=None)


def mark_changed(kind: str, item: Project | Application, spec: StackSpec) -> Failure:
    """Return the failure for a recorded object that lost the mark."""
    text = (
        f"The description of the {kind} “{item.name[:60]}” was changed in Dokploy and lacks this portal's mark, so the "
        f"{kind} was not touched. Put “{spec.mark}” into the description again, or remove the {kind} in Dokploy. Then "
        f"try again."
    )
    return Failure("MARK_CHANGED_AT_DOKPLOY", text)


async def list_marked_objects(dokploy: Dokploy, installation: str, recorded_ids: set[str]) -> list[MarkedObject]:
    """Return every project and application that carries this installation's mark.

    The applications of a project are not listed when all their ids are in `recorded_ids`: this saves a call for each
    such project.
    """
    mark = mark_of(installation)
    marked = []
    for project in await dokploy.projects():
        if not project.description.startswith(mark):
            continue
        marked.append(MarkedObject("project", project.id, project.name, project.description))
        if recorded_ids.issuperset(project.application_ids):
            continue
        for environment in await dokploy.environments(project.id):
            marked += [
                MarkedObject("application", application.id, application.name, application.description)
                for application in environment.applications
                if application.description.startswith(mark)
            ]
    return marked


# -- creating ----------------------------------------------------------------------------------------------------------


async def find_or_create(
    kind: str,
    mark: str,
    find: Callable[[], Awaitable[CreatedT | None]],
    create: Callable[[], Awaitable[CreatedT]],
    reporter: Reporter,
) -> CreatedT:
    """Return the stack's object of this kind, created if it does not exist.

    The intent is recorded before the create call and the id right after it. After a call with an unknown outcome the
    object is searched for twice; when it is not found, the error is raised and the phase's next attempt searches again.
    """
    existing = await find()
    if existing is None and (kind, mark) in reporter.pending:  # an earlier request may still take effect
        await pause_before_recheck()
        existing = await find()
    if existing is not None:
        await reporter.status(f"The {kind} already exists")
    else:
        await reporter.intend(kind, mark)
        try:
            existing = await create()
        except OutcomeUnknown:
            existing = await find()
            if existing is None:
                await pause_before_recheck()
                existing = await find()
            if existing is None:
                raise
    await reporter.created(kind, mark, existing.id)
    return existing


async def wait_for_pending(kind: str, find: Callable[[], Awaitable[Ownership[Any]]], reporter: Reporter) -> None:
    """Pause when a create of this kind is pending and its object is not found: the request may still take effect."""
    if any(pending_kind == kind for pending_kind, _ in reporter.pending) and not any(await find()):
        await pause_before_recheck()


async def pause_before_recheck() -> None:
    """Wait RECHECK_SECONDS, so that a request that is still on its way to Dokploy can take effect."""
    await asyncio.sleep(RECHECK_SECONDS)


# -- deleting ----------------------------------------------------------------------------------------------------------


async def delete(call: Callable[[str], Awaitable[None]], id: str) -> None:
    """Send a delete call. Ignore that the object is gone already or that the outcome is unknown: the caller reads."""
    with contextlib.suppress(NotFound, OutcomeUnknown):
        await call(id)


async def remove_duplicates(dokploy: Dokploy, spec: StackSpec, resources: Resources, reporter: Reporter) -> Resources:
    """Delete surplus owned objects: those of a create call that took effect after the object was created again.

    Applications that were deployed and projects that hold a service are kept.
    """
    applications, _ = await find_applications(dokploy, spec, reporter)
    for application in applications:
        if application.id == resources.application_id:
            await _remove_duplicate_domains(dokploy, spec, resources, application)
        elif not await dokploy.dokploy_deployments(application.id):
            await delete(dokploy.delete_application, application.id)
    projects, _ = await find_projects(dokploy, spec, reporter)
    for project in projects:
        surplus = project.id != resources.project_id
        if surplus and not any(environment.services for environment in await dokploy.environments(project.id)):
            await delete(dokploy.remove_project, project.id)
    return resources


async def _remove_duplicate_domains(
    dokploy: Dokploy, spec: StackSpec, resources: Resources, application: Application
) -> None:
    domains = await dokploy.domains(application.id)
    if resources.domain_id not in [domain.id for domain in domains]:  # a user has put another one in its place
        return
    for domain in domains:
        if (domain.host, domain.path) == (spec.host, "/") and domain.id != resources.domain_id:
            await delete(dokploy.delete_domain, domain.id)


# -- shared by all steps -----------------------------------------------------------------------------------------------


def require_id(id: str | None) -> str:
    """Return the id. Raise Failure when an earlier phase did not record it."""
    if id is None:
        raise Failure("DEPLOYMENT_FAILED", "An earlier phase did not record what this phase needs.")
    return id


def failure_of_kind(code: str) -> Failure:
    """Return a failure with the text of its kind in the table of failures."""
    failure_kind = failures.BY_CODE[code]
    return Failure(code, failure_kind.text, retryable=failure_kind.retryable)
