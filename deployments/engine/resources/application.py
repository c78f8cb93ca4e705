"""The stack's application at Dokploy: create it, configure it, remove it with its container."""

from dataclasses import replace

from .. import containers
from ..dokploy import Application, Dokploy
from ..errors import Failure, NotFound, OutcomeUnknown
from ..reporter import Reporter
from ..spec import Resources, StackSpec
from ..validation import dotenv
from .base import (
    by_ownership,
    delete,
    find_applications,
    find_or_create,
    mark_changed,
    preferred,
    require_id,
    wait_for_pending,
)


async def create(dokploy: Dokploy, spec: StackSpec, resources: Resources, reporter: Reporter) -> Resources:
    """Create the application in the project's environment, or find it."""
    environment_id = require_id(resources.environment_id)

    async def find() -> Application | None:
        existing = await _find(dokploy, spec, resources, reporter)
        if existing is None:  # the container of a deleted application must not run beside the new one
            await containers.wait_until_ended(dokploy, resources.app_name, reporter)
        return existing

    application = await find_or_create(
        "application",
        spec.mark,
        find,
        lambda: dokploy.create_application(environment_id, spec.name, spec.mark),
        reporter,
    )
    return replace(resources, application_id=application.id, app_name=application.app_name)


async def _find(dokploy: Dokploy, spec: StackSpec, resources: Resources, reporter: Reporter) -> Application | None:
    """Return the owned application of the project, or a recorded one that a user moved to another project.

    Raise Failure when the recorded application lost the mark.
    """
    environments = await dokploy.environments(require_id(resources.project_id))
    owned, changed = by_ownership([a for e in environments for a in e.applications], spec, reporter)
    if not (owned or changed) and "application" in reporter.recorded_ids.values():
        owned, changed = await find_applications(dokploy, spec, reporter)
    if changed:
        raise mark_changed("application", changed[0], spec)
    return preferred(owned, reporter)


async def configure(dokploy: Dokploy, spec: StackSpec, resources: Resources, reporter: Reporter) -> Resources:
    """Save the image, the registry login, the environment variables and the limits. Each save is idempotent."""
    application_id = require_id(resources.application_id)
    # Read first: a retry may begin here, and an outage during a read is waited for without using up an attempt.
    if await _find(dokploy, spec, resources, reporter) is None:
        raise NotFound("The application does not exist any more.")
    await reporter.status(f"Setting the image {spec.image}")
    await dokploy.save_image(application_id, spec.image, spec.registry, spec.registry_username, spec.registry_password)
    await dokploy.save_environment(application_id, dotenv(spec.env))
    await dokploy.save_limits(application_id, spec.memory_bytes, spec.cpus)
    return resources


async def remove(dokploy: Dokploy, spec: StackSpec, resources: Resources, reporter: Reporter) -> Resources:
    """Remove the stack's applications, and confirm that they and their containers are gone.

    Raise Failure while an application is being deployed, for one that lost the mark, and for a container that remains.
    """
    await wait_for_pending("application", lambda: find_applications(dokploy, spec, reporter), reporter)
    owned, changed = await find_applications(dokploy, spec, reporter)
    former_app_name = reporter.resources.app_name  # its row may be gone already, perhaps by an earlier attempt
    if former_app_name not in [application.app_name for application in (*owned, *changed)]:
        await containers.wait_until_ended(dokploy, former_app_name, reporter)
    for application in owned:
        await _delete(dokploy, application, reporter)
    if changed:
        raise mark_changed("application", changed[0], spec)
    await reporter.removed("application")
    await reporter.removed("deploy")
    return replace(resources, application_id=None, app_name=None, dokploy_deployment_id=None)


async def _delete(dokploy: Dokploy, application: Application, reporter: Reporter) -> None:
    if await is_deploying(dokploy, application.id):
        raise still_deploying()
    was_deployed = bool(await dokploy.dokploy_deployments(application.id))
    if was_deployed:  # without the container engine, Dokploy would delete the row and leave the container
        await containers.require_engine(dokploy, reporter)
    reporter.resources = replace(reporter.resources, app_name=application.app_name if was_deployed else None)
    await reporter.removing("application", application.id)
    await delete(dokploy.delete_application, application.id)
    if await dokploy.exists("application", application.id):
        raise OutcomeUnknown("Dokploy still has the application.")
    await containers.wait_until_ended(dokploy, reporter.resources.app_name, reporter)
    await reporter.removed("application", application.id)


async def is_deploying(dokploy: Dokploy, application_id: str) -> bool:
    """Return whether a Dokploy deployment of the application waits or runs, including those of other users."""
    if any(entry.application_id == application_id for entry in await dokploy.queue()):
        return True  # its row appears a moment after its start, so the rows alone are not enough
    return any(row.status == "running" for row in await dokploy.dokploy_deployments(application_id))


def still_deploying() -> Failure:
    """Return the failure for an application that cannot be deleted because it is being deployed."""
    return Failure("TIMEOUT", "Dokploy still reports a running deployment; deleting it now would leave its container.")
