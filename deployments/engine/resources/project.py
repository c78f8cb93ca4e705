"""The stack's project at Dokploy: create it, choose its environment, remove it."""

from dataclasses import replace

from .. import failures, retry, versions
from ..dokploy import Dokploy, Project
from ..errors import Failure, NotFound
from ..reporter import Reporter
from ..spec import Resources, StackSpec, mark_of
from .base import Resource, delete_and_confirm, ensure, ensure_absent, require_id
from .ownership import Found, by_ownership

HALF_CREATED_SECONDS = 1.5  # how long to wait for a new project's environment, which Dokploy inserts separately


class ProjectResource(Resource[Project]):
    """A project with the stack's name and mark."""

    type = "project"

    async def find(self, dokploy: Dokploy, spec: StackSpec, resources: Resources, reporter: Reporter) -> Found[Project]:
        return by_ownership(await dokploy.projects(), spec, reporter.records)

    async def is_usable(self, item: Project, dokploy: Dokploy) -> bool:
        """Return whether the project has an environment, without which it can hold no application."""
        return bool(item.application_ids) or bool(
            await retry.look_until_found(lambda: dokploy.environments(item.id), bool, HALF_CREATED_SECONDS)
        )

    async def is_empty(self, item: Project, dokploy: Dokploy) -> bool:
        """Return whether the project contains no service."""
        return not any(environment.services for environment in await dokploy.environments(item.id))

    async def before_create(self, dokploy: Dokploy, spec: StackSpec, resources: Resources, reporter: Reporter) -> None:
        """Raise Failure when a project that is not the stack's own has the stack's name."""
        if namesakes := [project for project in await dokploy.projects() if project.name == spec.name]:
            own_leftovers = all(project.description.startswith(mark_of(spec.installation)) for project in namesakes)
            raise failures.failure("LEFTOVER_AT_DOKPLOY" if own_leftovers else "NAME_IN_USE_AT_DOKPLOY")

    async def create(self, dokploy: Dokploy, spec: StackSpec, resources: Resources) -> Project:
        """Create the project, and with it Dokploy's first environment."""
        return await dokploy.create_project(spec.name, spec.mark)

    async def delete(self, item: Project, dokploy: Dokploy, spec: StackSpec, reporter: Reporter) -> None:
        """Delete the project. Raise Failure when it contains a service, whose container would stay."""
        environments = await dokploy.environments(item.id)
        applications = [application for environment in environments for application in environment.applications]
        own = by_ownership(applications, spec, reporter.records).owned
        if sum(environment.services for environment in environments) > len(own):
            text = (
                "The project contains a service that this portal did not create, perhaps a copy. "
                "Remove the service in Dokploy."
            )
            raise Failure("DOKPLOY_REFUSED", text, retryable=False)
        if own:
            raise Failure("DOKPLOY_REFUSED", "The project still contains the stack's application.")
        await delete_and_confirm(
            self.type, item.id, dokploy.remove_project, lambda id: dokploy.exists(self.type, id), reporter
        )
        await reporter.removed(self.type, item.id)


PROJECT = ProjectResource()


async def create(dokploy: Dokploy, spec: StackSpec, resources: Resources, reporter: Reporter) -> Resources:
    """Create the project, or find it. Raise Failure when Dokploy is too old."""
    if versions.version_error(await dokploy.version()):  # send no data to a version with known vulnerabilities
        raise failures.failure("DOKPLOY_TOO_OLD")
    project = await ensure(PROJECT, dokploy, spec, resources, reporter)
    return replace(resources, project_id=project.id)


async def get_environment(dokploy: Dokploy, spec: StackSpec, resources: Resources, reporter: Reporter) -> Resources:
    """Choose the project's default environment, or its oldest one. Raise NotFound when it has none."""
    environments = await dokploy.environments(require_id(resources.project_id))
    if not environments:
        raise NotFound("The project does not exist any more, or has no environment.")
    default = next((environment for environment in environments if environment.is_default), environments[0])
    return replace(resources, environment_id=default.id)


async def remove(dokploy: Dokploy, spec: StackSpec, resources: Resources, reporter: Reporter) -> Resources:
    """Remove the stack's project. Raise Failure when it contains a service or lost the mark."""
    await ensure_absent(PROJECT, dokploy, spec, resources, reporter)
    return replace(resources, project_id=None, environment_id=None)
