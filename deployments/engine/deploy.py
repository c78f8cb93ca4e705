"""Send a deployment to Dokploy, follow it to its end, and wait for running ones before a removal.

The portal's deployments at Dokploy are known by their titles (`StackSpec.deploy_title`): Dokploy's call to deploy
returns no id.
"""

import asyncio
import contextlib
import re
from dataclasses import replace

from . import containers, failures
from .deploy_log import DeployLog
from .dokploy import Dokploy, DokployDeployment, QueueEntry
from .errors import DokployError, Failure, Unavailable
from .reporter import Reporter
from .resources import domain
from .resources.application import is_deploying, still_deploying
from .resources.base import find_applications, pause_before_recheck, require_id
from .spec import Resources, StackSpec

POLL_SECONDS = 1.0
SETTLE_SECONDS = 120.0
SENDS_PER_DEPLOYMENT = 3
_PULLED_DIGEST = re.compile(r"^Digest: (sha256:[0-9a-f]{64})$", re.MULTILINE)  # a line of `docker pull`


async def deploy(dokploy: Dokploy, spec: StackSpec, resources: Resources, reporter: Reporter) -> Resources:
    """Send the deployment unless it was sent already, and follow it to its end.

    `spec.deploy_timeout` (seconds) limits all attempts of this worker together.
    """
    started = reporter.started_at.setdefault(spec.deploy_title_prefix, asyncio.get_running_loop().time())
    try:
        async with asyncio.timeout_at(started + spec.deploy_timeout):
            return await _send_and_follow(dokploy, spec, resources, reporter)
    except TimeoutError:
        dokploy_deployment = await _require_done(dokploy, spec, resources)
        await reporter.created("deploy", dokploy_deployment.title, dokploy_deployment.id)
        return replace(resources, replaces=reporter.resources.replaces, dokploy_deployment_id=dokploy_deployment.id)


async def _send_and_follow(dokploy: Dokploy, spec: StackSpec, resources: Resources, reporter: Reporter) -> Resources:
    application_id, prefix = require_id(resources.application_id), spec.deploy_title_prefix
    resources = replace(resources, replaces=reporter.resources.replaces)  # recorded with an earlier attempt's intent
    while True:
        sent = sum(kind == "deploy" and title.startswith(prefix) for kind, title in reporter.pending)
        existing = await _find(dokploy, application_id, prefix)
        if existing is None and sent:
            await pause_before_recheck()
            existing = await _find(dokploy, application_id, prefix)
        if existing is None:
            if sent >= SENDS_PER_DEPLOYMENT:
                raise Failure("DEPLOY_LOST", failures.BY_CODE["DEPLOY_LOST"].text)
            if sent:
                await reporter.note("Dokploy was restarted and lost the deployment. Sending it again")
            replaces = await _running_before(dokploy, resources, prefix, reporter)
            reporter.resources = resources = replace(resources, replaces=replaces)
            await _send(dokploy, application_id, spec.deploy_title(sent + 1), reporter)
        await reporter.status("Deployment triggered")
        ended = await _follow(dokploy, resources, prefix, reporter)
        resources = replace(resources, replaces=reporter.resources.replaces)
        if ended is not None:
            dokploy_deployment, log = ended
            await reporter.created("deploy", dokploy_deployment.title, dokploy_deployment.id)
            digest = _PULLED_DIGEST.search(log)
            return replace(
                resources,
                dokploy_deployment_id=dokploy_deployment.id,
                image_digest=digest[1] if digest else None,
            )


async def _send(dokploy: Dokploy, application_id: str, title: str, reporter: Reporter) -> None:
    await reporter.intend("deploy", title)
    try:
        await dokploy.deploy(application_id, title)
    except Unavailable:  # it was not sent, so it does not count as lost: the next attempt uses the same title
        reporter.pending.discard(("deploy", title))
        raise


async def _require_done(dokploy: Dokploy, spec: StackSpec, resources: Resources) -> DokployDeployment:
    """Return the Dokploy deployment if it is done, and only its log was not read in time.

    Otherwise raise Failure with the state that Dokploy reports.
    """
    state = "Dokploy does not report its state."
    with contextlib.suppress(DokployError):  # the time is over, whether Dokploy answers or not
        existing = await _find(dokploy, require_id(resources.application_id), spec.deploy_title_prefix)
        if isinstance(existing, QueueEntry):
            state = "It is still waiting in Dokploy's queue."
        elif existing is not None and existing.status == "done":
            return existing
        elif existing is not None:
            state = f"Dokploy still reports it as “{existing.status}”."
    raise Failure("TIMEOUT", f"The deployment did not end within {spec.deploy_timeout:g} s. {state}") from None


async def _find(dokploy: Dokploy, application_id: str, prefix: str) -> DokployDeployment | QueueEntry | None:
    """Return the stack's own Dokploy deployment, or its entry in the queue. None when Dokploy has neither."""
    if started := await _find_started(dokploy, application_id, prefix):
        return started
    if entry := _own_entry(await dokploy.queue(), prefix):
        return entry
    return await _find_started(dokploy, application_id, prefix)  # it may have started between the two reads


async def _find_started(dokploy: Dokploy, application_id: str, prefix: str) -> DokployDeployment | None:
    """Return the stack's own newest Dokploy deployment. None when it has not started.

    A cancelled one does not count: Dokploy cancels its running deployments when it is restarted.
    """
    rows = await dokploy.dokploy_deployments(application_id)
    return next((row for row in rows if row.title.startswith(prefix) and row.status != "cancelled"), None)


def _own_entry(queue: list[QueueEntry], prefix: str) -> QueueEntry | None:
    return next((entry for entry in queue if entry.title.startswith(prefix)), None)


async def _follow(
    dokploy: Dokploy, resources: Resources, prefix: str, reporter: Reporter
) -> tuple[DokployDeployment, str] | None:
    """Follow the Dokploy deployment until it is done. Return it with its log, or None when Dokploy has lost it.

    While it waits, only the queue is read, which is one call for all deployments of this process; once it has started,
    only the rows of its application are read. Raise Failure when it ends with an error.
    """
    application_id = require_id(resources.application_id)
    replaced_is_known = False
    async with DeployLog(dokploy, reporter) as log:
        while True:
            row = await log.while_following(_find_started(dokploy, application_id, prefix))
            if row is None:
                entry = await _wait_in_queue(dokploy, prefix, reporter)
                row = await log.while_following(_find_started(dokploy, application_id, prefix))
                if row is None and entry is None:
                    await pause_before_recheck()
                    if await _find(dokploy, application_id, prefix) is None:
                        return None
            if row is not None and row.status == "running":
                await reporter.status("Pulling the image and starting the container")
                await log.poll(row)
                if not replaced_is_known:
                    replaced_is_known = True
                    await log.while_following(_update_replaced(dokploy, resources, prefix, reporter))
            elif row is not None:
                text = await log.read_complete(row)
                if row.status == "done":
                    return row, text
                if row.status == "error":
                    raise failures.from_log(text)
            await log.while_following(asyncio.sleep(POLL_SECONDS))


async def _wait_in_queue(dokploy: Dokploy, prefix: str, reporter: Reporter) -> QueueEntry | None:
    """Wait while the deployment waits in Dokploy's queue. Return its entry once it is active, None when it has none."""
    while True:
        queue = await dokploy.queue()
        entry = _own_entry(queue, prefix)
        if entry is None or entry.state != "waiting":
            return entry
        await reporter.status(_queue_status(entry, queue))
        await asyncio.sleep(POLL_SECONDS)


def _queue_status(own: QueueEntry, queue: list[QueueEntry]) -> str:
    """Return how many deployments are ahead. Only the number is shown: the titles belong to other users."""
    oldest_first = queue[::-1]  # Dokploy lists the newest first; within one millisecond this order decides
    oldest_first.sort(key=lambda entry: entry.timestamp)
    ahead = oldest_first.index(own)
    return f"Waiting in Dokploy's queue, {ahead} ahead" if ahead else "Dokploy is starting the deployment"


async def _update_replaced(dokploy: Dokploy, resources: Resources, prefix: str, reporter: Reporter) -> None:
    """Record again which containers the deployment replaces, now that it runs.

    Another deployment, ahead of it in the queue, may have started new ones since it was sent. The containers are those
    of the former version only if the deployment is still running after they were read: Docker starts the new container
    at its end.
    """
    with contextlib.suppress(DokployError):  # the containers recorded when it was sent are kept
        replaces = await _running_before(dokploy, resources, prefix, reporter)
        row = await _find_started(dokploy, require_id(resources.application_id), prefix)
        if row is not None and row.status == "running":
            reporter.resources = replace(reporter.resources, replaces=replaces)


async def _running_before(dokploy: Dokploy, resources: Resources, prefix: str, reporter: Reporter) -> tuple[str, ...]:
    """Return the names of the application's running containers. Empty before its first Dokploy deployment."""
    rows = await dokploy.dokploy_deployments(require_id(resources.application_id))
    if all(row.title.startswith(prefix) for row in rows):
        return ()
    return await containers.running_names(dokploy, require_id(resources.app_name), reporter)


# -- before a removal --------------------------------------------------------------------------------------------------


async def drain_deploys(dokploy: Dokploy, spec: StackSpec, resources: Resources, reporter: Reporter) -> Resources:
    """Drop the stack's waiting Dokploy deployments and wait for the running one.

    Deleting an application during a deployment would leave its container. Raise Failure after SETTLE_SECONDS.
    """
    owned, _ = await find_applications(dokploy, spec, reporter)
    for application in owned:
        await dokploy.clean_queue(application.id)
        try:
            async with asyncio.timeout(SETTLE_SECONDS):
                while await is_deploying(dokploy, application.id):
                    await reporter.status("Waiting for Dokploy to finish the running deployment")
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            raise still_deploying() from None
    return resources


async def begin_removal(dokploy: Dokploy, spec: StackSpec, resources: Resources, reporter: Reporter) -> Resources:
    """Begin a removal: end the stack's Dokploy deployments, then remove its domain, so that nothing routes to it."""
    resources = await drain_deploys(dokploy, spec, resources, reporter)
    return await domain.remove(dokploy, spec, resources, reporter)
