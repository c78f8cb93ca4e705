"""Send a deployment to Dokploy and follow it to its end.

The portal's deployments at Dokploy are known by their titles (`StackSpec.deploy_title`): Dokploy's call to deploy
returns no id.
"""

import asyncio
import contextlib
import re
from dataclasses import dataclass, replace

from . import containers, failures, retry
from .deploy_log import DeployLog
from .dokploy import Dokploy, DokployDeployment, QueueEntry
from .errors import DokployError, Failure, Refused, Unavailable
from .reporter import Reporter
from .resources.base import require_id
from .spec import UNKNOWN_UPDATE, Resources, StackSpec

POLL_SECONDS = 1.0
SENDS_PER_DEPLOYMENT = 3
_PULLED_DIGEST = re.compile(r"^Digest: (sha256:[0-9a-f]{64})$", re.MULTILINE)  # a line of `docker pull`


# -- where a deployment is ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Queued:
    """The deployment waits in Dokploy's queue, or is about to start. `ahead` is the number of deployments before it."""

    is_waiting: bool
    ahead: int


@dataclass(frozen=True, slots=True)
class Running:
    """Dokploy is working on the deployment."""

    row: DokployDeployment


@dataclass(frozen=True, slots=True)
class Ended:
    """The deployment ended, done or with an error."""

    row: DokployDeployment


@dataclass(frozen=True, slots=True)
class Lost:
    """Dokploy does not have the deployment: it was never sent, or a restart of Dokploy cancelled and forgot it."""


Location = Queued | Running | Ended | Lost


async def locate(dokploy: Dokploy, application_id: str, prefix: str) -> Location:
    """Return where the deployment with this prefix of the title is.

    The queue is read first, in one call for all deployments of this process: a deployment that has left the queue
    has a row by then. The application's rows are read only when the deployment does not wait in the queue.
    """
    queue = await dokploy.queue()
    entry = next((entry for entry in queue if entry.title.startswith(prefix)), None)
    if entry is not None and entry.state == "waiting":
        return Queued(True, _count_ahead(entry, queue))
    rows = await dokploy.dokploy_deployments(application_id)
    row = next((row for row in rows if row.title.startswith(prefix) and row.status != "cancelled"), None)
    if row is not None:
        return Ended(row) if row.status in ("done", "error") else Running(row)
    return Lost() if entry is None else Queued(False, 0)


async def _locate_surely(dokploy: Dokploy, application_id: str, prefix: str) -> Location:
    """Return where the deployment is. It counts as lost only if it does not appear for some time."""
    return await retry.look_until_found(
        lambda: locate(dokploy, application_id, prefix),
        lambda location: not isinstance(location, Lost),
        retry.LANDING_SECONDS,
    )


def _count_ahead(own: QueueEntry, queue: list[QueueEntry]) -> int:
    oldest_first = queue[::-1]  # Dokploy lists the newest first; within one millisecond this order decides
    oldest_first.sort(key=lambda entry: entry.timestamp)
    return oldest_first.index(own)


# -- send and follow ---------------------------------------------------------------------------------------------------


async def deploy(dokploy: Dokploy, spec: StackSpec, resources: Resources, reporter: Reporter) -> Resources:
    """Send the deployment unless it was sent already, and follow it to its end.

    `spec.deploy_timeout` (seconds) limits all attempts of this worker together. Raise Failure when it ends with an
    error, exceeds the limit, or is lost SENDS_PER_DEPLOYMENT times.
    """
    started = reporter.started_at.setdefault(spec.deploy_title_prefix, asyncio.get_running_loop().time())
    digest = None
    try:
        async with asyncio.timeout_at(started + spec.deploy_timeout):
            row, digest = await _send_and_follow(dokploy, spec, require_id(resources.application_id), reporter)
    except TimeoutError:
        row = await _require_done(dokploy, spec, require_id(resources.application_id))
    await reporter.created("deploy", row.title, row.id)
    return replace(reporter.resources, dokploy_deployment_id=row.id, image_digest=digest)


async def _send_and_follow(
    dokploy: Dokploy, spec: StackSpec, application_id: str, reporter: Reporter
) -> tuple[DokployDeployment, str | None]:
    """Return the Dokploy deployment that is done, and the digest of the pulled image if the log contains it."""
    done = None
    while done is None:  # None also when Dokploy has lost it
        await _ensure_sent(dokploy, spec, application_id, reporter)
        await reporter.status("Deployment triggered")
        done = await _follow(dokploy, application_id, spec.deploy_title_prefix, reporter)
    row, log = done
    digest = _PULLED_DIGEST.search(log)
    return row, digest[1] if digest else None


async def _ensure_sent(dokploy: Dokploy, spec: StackSpec, application_id: str, reporter: Reporter) -> None:
    """Send the deployment unless Dokploy has it. Raise Failure when it was lost SENDS_PER_DEPLOYMENT times."""
    prefix = spec.deploy_title_prefix
    sent = _count_sent(spec, reporter)
    look = _locate_surely if sent else locate
    if not isinstance(await look(dokploy, application_id, prefix), Lost):
        return
    if sent >= SENDS_PER_DEPLOYMENT:
        raise failures.failure("DEPLOY_LOST")
    if sent:
        await reporter.note("Dokploy was restarted and lost the deployment. Sending it again")
    reporter.update(**await _state_before(dokploy, application_id, prefix, reporter))
    title = spec.deploy_title(sent + 1)
    await reporter.intend("deploy", title)
    try:
        await dokploy.deploy(application_id, title)
    except Unavailable:  # it was not sent, so it does not count as lost: the next attempt uses the same title
        reporter.records.forget("deploy", title)
        raise


def _count_sent(spec: StackSpec, reporter: Reporter) -> int:
    """Return how often the deployment was sent, as far as it is recorded."""
    return sum(title.startswith(spec.deploy_title_prefix) for title in reporter.records.marks("deploy"))


async def _follow(
    dokploy: Dokploy, application_id: str, prefix: str, reporter: Reporter
) -> tuple[DokployDeployment, str] | None:
    """Follow the Dokploy deployment until it is done. Return it with its log, or None when Dokploy has lost it.

    Raise Failure when it ends with an error.
    """
    location: Location = Lost()
    async with DeployLog(dokploy, reporter) as log:
        while True:
            before, location = location, await log.while_following(_locate_surely(dokploy, application_id, prefix))
            match location:
                case Queued(is_waiting=True, ahead=ahead):  # the titles ahead belong to other users: show the number
                    text = (
                        f"Waiting in Dokploy's queue, {ahead} ahead" if ahead else "Dokploy is starting the deployment"
                    )
                    await reporter.status(text)
                case Running(row):
                    await reporter.status("Pulling the image and starting the container")
                    await log.poll(row)
                    if not isinstance(before, Running):
                        await log.while_following(_update_replaced(dokploy, application_id, prefix, reporter))
                case Ended(row):
                    text = await log.read_complete(row)
                    if row.status == "error":
                        raise failures.from_log(text)
                    return row, text
                case Lost():
                    return None
            await log.while_following(asyncio.sleep(POLL_SECONDS))


async def _require_done(dokploy: Dokploy, spec: StackSpec, application_id: str) -> DokployDeployment:
    """After the time limit, return the Dokploy deployment if it is done: only its log was not read in time.

    Otherwise raise Failure with the state that Dokploy reports.
    """
    state = "Dokploy does not report its state."
    with contextlib.suppress(DokployError):  # the time is over, whether Dokploy answers or not
        match await locate(dokploy, application_id, spec.deploy_title_prefix):
            case Queued():
                state = "It is still waiting in Dokploy's queue."
            case Ended(row) if row.status == "done":
                return row
            case Running(row) | Ended(row):
                state = f"Dokploy still reports it as “{row.status}”."
    raise Failure("TIMEOUT", f"The deployment did not end within {spec.deploy_timeout:g} s. {state}") from None


async def image_of_previous_version(dokploy: Dokploy, spec: StackSpec, reporter: Reporter) -> str | None:
    """Return the image that Docker runs if it is the previous version, which then need not be deployed again.

    Docker runs it because the service was not touched, for example after a failed pull, or because Docker has gone back
    to it. Record the ended containers as replaced, for the health check. Return None when another version runs, and
    when Dokploy cannot tell.
    """
    resources = reporter.resources
    if not (resources.app_name and resources.application_id):
        return None
    try:
        location = await locate(dokploy, resources.application_id, spec.deploy_title_prefix)
        service = await dokploy.service(resources.app_name)
        listed = await dokploy.containers(resources.app_name)
    except DokployError:
        return None
    if isinstance(location, Queued | Running):  # it may still replace the version that runs now
        return None
    was_sent = _count_sent(spec, reporter) > 0
    if service is None or (was_sent and resources.update_before == UNKNOWN_UPDATE):
        return None
    is_untouched = not was_sent or service.update_started_at == resources.update_before
    if is_untouched or service.update_state.startswith("rollback"):
        ended = tuple(container.name for container in listed if container.state != "running")
        reporter.update(replaces=ended, update_before=UNKNOWN_UPDATE)
        return service.image
    return None


# -- what it replaces --------------------------------------------------------------------------------------------------


async def _update_replaced(dokploy: Dokploy, application_id: str, prefix: str, reporter: Reporter) -> None:
    """Record again what the deployment replaces, now that Dokploy works on it.

    While the deployment waited in the queue, one ahead of it may have replaced the containers. Record the state only if
    the deployment is still running after the read: Dokploy updates the service at the end of a deployment.
    """
    with contextlib.suppress(DokployError):  # what was recorded when it was sent is kept
        before = await _state_before(dokploy, application_id, prefix, reporter)
        if isinstance(await locate(dokploy, application_id, prefix), Running):
            reporter.update(**before)


async def _state_before(
    dokploy: Dokploy, application_id: str, prefix: str, reporter: Reporter
) -> dict[str, str | tuple[str, ...]]:
    """Return the containers of the application and its last update. Both are empty before its first deployment."""
    rows = await dokploy.dokploy_deployments(application_id)
    if all(row.title.startswith(prefix) for row in rows):
        return {"replaces": (), "update_before": ""}
    app_name = require_id(reporter.resources.app_name)
    names = await containers.names(dokploy, app_name, reporter)
    update = UNKNOWN_UPDATE
    with contextlib.suppress(Refused):
        service = await dokploy.service(app_name)
        update = service.update_started_at if service else UNKNOWN_UPDATE if names else ""
    return {"replaces": names, "update_before": update}
