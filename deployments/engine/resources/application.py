"""The stack's application at Dokploy: create it, configure it, remove it with its container."""

import asyncio
from dataclasses import replace

from .. import containers
from ..dokploy import Application, Dokploy
from ..errors import Failure, NotFound
from ..reporter import Reporter
from ..spec import Resources, StackSpec
from ..validation import dotenv
from .base import Resource, delete_and_confirm, ensure, ensure_absent, require_id
from .ownership import Found, by_ownership, mark_changed

POLL_SECONDS = 1.0
SETTLE_SECONDS = 120.0


class ApplicationResource(Resource[Application]):
    """An application with the stack's mark, in whichever project it is."""

    type = "application"

    async def find(
        self, dokploy: Dokploy, spec: StackSpec, resources: Resources, reporter: Reporter
    ) -> Found[Application]:
        """Return the stack's applications.

        Search the projects with the stack's mark, and every project that is recorded or holds a recorded application: a
        user may have moved the application to another project.
        """
        applications = [
            application
            for project in await dokploy.projects()
            if project.description == spec.mark or reporter.records.has_any((project.id, *project.application_ids))
            for environment in await dokploy.environments(project.id)
            for application in environment.applications
        ]
        return by_ownership(applications, spec, reporter.records)

    async def is_empty(self, item: Application, dokploy: Dokploy) -> bool:
        """Return whether the application was never deployed."""
        return not await dokploy.dokploy_deployments(item.id)

    async def before_create(self, dokploy: Dokploy, spec: StackSpec, resources: Resources, reporter: Reporter) -> None:
        """Wait until the container of a deleted application has ended: it must not run beside the new one."""
        await containers.wait_until_ended(dokploy, resources.app_name, reporter)

    async def create(self, dokploy: Dokploy, spec: StackSpec, resources: Resources) -> Application:
        """Create the application in the project's environment."""
        return await dokploy.create_application(require_id(resources.environment_id), spec.name, spec.mark)

    async def delete(self, item: Application, dokploy: Dokploy, spec: StackSpec, reporter: Reporter) -> None:
        """Delete the application, and wait until its container has ended."""
        await end_dokploy_deployments(dokploy, item.id, reporter)
        was_deployed = not await self.is_empty(item, dokploy)
        if was_deployed:  # without the container engine, Dokploy would delete the application and leave the container
            await containers.require_engine(dokploy, reporter)
        resources = reporter.update(app_name=item.app_name if was_deployed else None)
        await delete_and_confirm(
            self.type, item.id, dokploy.delete_application, lambda id: dokploy.exists(self.type, id), reporter
        )
        await containers.wait_until_ended(dokploy, resources.app_name, reporter)
        await reporter.removed(self.type, item.id)

    async def confirm_gone(
        self, deleted: list[Application], dokploy: Dokploy, resources: Resources, reporter: Reporter
    ) -> None:
        """Wait until the container of an application that was deleted earlier has ended."""
        if resources.app_name not in [application.app_name for application in deleted]:
            await containers.wait_until_ended(dokploy, resources.app_name, reporter)


APPLICATION = ApplicationResource()


async def create(dokploy: Dokploy, spec: StackSpec, resources: Resources, reporter: Reporter) -> Resources:
    """Create the application in the project's environment, or find it."""
    application = await ensure(APPLICATION, dokploy, spec, resources, reporter)
    return replace(resources, application_id=application.id, app_name=application.app_name)


async def configure(dokploy: Dokploy, spec: StackSpec, resources: Resources, reporter: Reporter) -> Resources:
    """Save the image, the registry login, the environment variables and the limits. Each save is idempotent."""
    application_id = require_id(resources.application_id)
    # Read first, because a retry may begin here: unlike a failed change, a read during an outage uses up no attempt.
    found = await APPLICATION.find(dokploy, spec, resources, reporter)
    if found.changed:
        raise mark_changed(found.changed[0], spec)
    if not found.owned:
        raise NotFound("The application does not exist any more.")
    await reporter.status(f"Setting the image {spec.image}")
    await dokploy.save_image(application_id, spec.image, spec.registry, spec.registry_username, spec.registry_password)
    await dokploy.save_environment(application_id, dotenv(spec.env))
    await dokploy.save_limits(application_id, spec.memory_bytes, spec.cpus)
    return resources


async def remove(dokploy: Dokploy, spec: StackSpec, resources: Resources, reporter: Reporter) -> Resources:
    """Remove the stack's application with its container and its Dokploy deployments.

    Raise Failure when a Dokploy deployment does not end, an application lost the mark, or a container remains.
    """
    await ensure_absent(APPLICATION, dokploy, spec, resources, reporter)
    await reporter.removed("deploy")
    return replace(resources, application_id=None, app_name=None, dokploy_deployment_id=None)


async def end_dokploy_deployments(dokploy: Dokploy, application_id: str, reporter: Reporter) -> None:
    """Drop the application's waiting Dokploy deployments and wait until the running one has ended.

    Deleting an application during a deployment would leave its container. Raise Failure after SETTLE_SECONDS.
    """
    await dokploy.clean_queue(application_id)
    try:
        async with asyncio.timeout(SETTLE_SECONDS):
            while await _is_deploying(dokploy, application_id):
                await reporter.status("Waiting for Dokploy to finish the running deployment")
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        text = "Dokploy still reports a running deployment. Deleting the application now would leave its container."
        raise Failure("TIMEOUT", text) from None


async def _is_deploying(dokploy: Dokploy, application_id: str) -> bool:
    """Return whether a Dokploy deployment of the application is queued or running, even if a user started it."""
    if any(entry.application_id == application_id for entry in await dokploy.queue()):
        return True  # its row appears only after its start, so the rows alone are not enough
    return any(row.status == "running" for row in await dokploy.dokploy_deployments(application_id))
