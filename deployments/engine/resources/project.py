"""The stack's project at Dokploy: create it, choose its environment, remove it."""

from dataclasses import replace

from .. import versions
from ..dokploy import Dokploy, Project
from ..errors import Failure, NotFound, OutcomeUnknown
from ..reporter import Reporter
from ..spec import Resources, StackSpec, mark_of
from .base import (
    by_ownership,
    confirm_unlisted_gone,
    delete,
    failure_of_kind,
    find_applications,
    find_or_create,
    find_projects,
    mark_changed,
    pause_before_recheck,
    preferred,
    require_id,
    wait_for_pending,
)


async def create(dokploy: Dokploy, spec: StackSpec, resources: Resources, reporter: Reporter) -> Resources:
    """Create the project, or find it.

    Raise Failure when Dokploy is too old, and when a project with the stack's name is not the stack's own.
    """
    if versions.version_error(await dokploy.version()):  # a version with known vulnerabilities is given nothing
        raise failure_of_kind("DOKPLOY_TOO_OLD")

    async def find() -> Project | None:
        projects = await dokploy.projects()
        await confirm_unlisted_gone("project", projects, dokploy, reporter)
        owned, changed = by_ownership(projects, spec, reporter)
        if changed:
            raise mark_changed("project", changed[0], spec)
        if not owned:
            _refuse_taken_name(projects, spec)
        existing = preferred(owned, reporter)
        if existing is None or await _has_environment(dokploy, existing):
            return existing
        # It may also have an environment that the key may not see: make sure that no recorded application is in it.
        await find_applications(dokploy, spec, reporter)
        await _delete(dokploy, existing, reporter)
        return None

    project = await find_or_create(
        "project", spec.mark, find, lambda: dokploy.create_project(spec.name, spec.mark), reporter
    )
    return replace(resources, project_id=project.id)


def _refuse_taken_name(projects: list[Project], spec: StackSpec) -> None:
    """Raise Failure when a project that is not the stack's own has the stack's name."""
    if namesakes := [project for project in projects if project.name == spec.name]:
        own_leftovers = all(project.description.startswith(mark_of(spec.installation)) for project in namesakes)
        raise failure_of_kind("LEFTOVER_AT_DOKPLOY" if own_leftovers else "NAME_IN_USE_AT_DOKPLOY")


async def _has_environment(dokploy: Dokploy, project: Project) -> bool:
    """Return whether the project has an environment; without one, nothing can be created in it.

    Dokploy inserts a project and its environment without a transaction, so the second may be missing for a moment or
    for good.
    """
    if project.application_ids or await dokploy.environments(project.id):
        return True
    await pause_before_recheck()
    return bool(await dokploy.environments(project.id))


async def get_environment(dokploy: Dokploy, spec: StackSpec, resources: Resources, reporter: Reporter) -> Resources:
    """Choose the project's default environment, or its oldest one. Raise NotFound when it has none."""
    environments = await dokploy.environments(require_id(resources.project_id))
    if not environments:
        raise NotFound("The project does not exist any more, or has no environment.")
    default = next((environment for environment in environments if environment.is_default), environments[0])
    return replace(resources, environment_id=default.id)


async def remove(dokploy: Dokploy, spec: StackSpec, resources: Resources, reporter: Reporter) -> Resources:
    """Remove the stack's projects, and confirm it. Raise Failure for one that holds a service or lost the mark."""
    await wait_for_pending("project", lambda: find_projects(dokploy, spec, reporter), reporter)
    owned, changed = await find_projects(dokploy, spec, reporter)
    if owned:
        # Raises for an application that the key may not see: it would go on running without its row.
        await find_applications(dokploy, spec, reporter)
    for project in owned:
        environments = await dokploy.environments(project.id)
        applications, _ = by_ownership([a for e in environments for a in e.applications], spec, reporter)
        if sum(environment.services for environment in environments) > len(applications):
            text = "It contains a service that this portal did not create, perhaps a copy. Remove it in Dokploy."
            raise Failure("DOKPLOY_REFUSED", text, retryable=False)
        if applications:
            raise Failure("DOKPLOY_REFUSED", "It still contains its application.")
        await _delete(dokploy, project, reporter)
    if changed:
        raise mark_changed("project", changed[0], spec)
    await reporter.removed("project")
    return replace(resources, project_id=None, environment_id=None)


async def _delete(dokploy: Dokploy, project: Project, reporter: Reporter) -> None:
    await reporter.removing("project", project.id)
    await delete(dokploy.remove_project, project.id)
    if await dokploy.exists("project", project.id):
        raise OutcomeUnknown("Dokploy still has the project.")
    await reporter.removed("project", project.id)
