"""The steps of a deployment and of a removal. Every step looks before it acts, so that running it twice is harmless.

What is ours carries our mark (StackSpec.mark, in the description of projects and applications, in the title of a
deploy), and is known by its id or has our name: a copy that somebody made at Dokploy carries the mark too. What has
lost it, and is known by its id, is neither touched nor taken to be gone. Dokploy's creates are not idempotent, its
names are not unique, and an error answer does not mean that nothing was made: an unclear outcome is resolved by
looking, never by making again.
"""

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

from . import failures, versions
from .deploy_log import DeployLog
from .dokploy import Application, Container, Dokploy, DokployDeployment, Domain, Project, QueueEntry
from .errors import DokployError, Failure, NotFound, OutcomeUnknown, Unavailable
from .probe import ProbeResult, probe_stack
from .reporter import Reporter
from .spec import MarkedObject, Resources, StackSpec, mark_of
from .validation import dotenv

RECHECK_SECONDS = 1.5  # a lost request may still be running: look twice before making again
POLL_SECONDS = 1.0
SETTLE_SECONDS = 120.0
STOP_SECONDS = 30.0  # Docker gives a container ten to end by itself
QUIET_SECONDS = 10.0  # and waits five before it makes another of one that has ended
STUMBLE_SECONDS = 15.0
SENDS_PER_DEPLOYMENT = 3
CERTIFICATE_SECONDS = 180.0

ENDED = {"exited", "dead"}  # states of a container that takes no part any more

PULLED = re.compile(r"^Digest: (sha256:[0-9a-f]{64})$", re.MULTILINE)  # what `docker pull` says of what it got

T = TypeVar("T")
M = TypeVar("M", Project, Application, Domain)
D = TypeVar("D", Project, Application)  # what has a date and a mark
Both = tuple[list[D], list[D]]


async def create_project(dokploy: Dokploy, spec: StackSpec, have: Resources, reporter: Reporter) -> Resources:
    if versions.version_error(await dokploy.version()):  # it may be anybody's: nothing is made there
        raise _refused("DOKPLOY_TOO_OLD")

    async def look() -> Project | None:
        projects = await dokploy.projects()
        await _confirm_unlisted_gone("project", projects, dokploy, reporter)
        ours, changed = _ours(projects, spec, reporter)
        if changed:
            raise _mark_changed("project", changed[0], spec)
        if not ours and (named := [project for project in projects if project.name == spec.name]):
            own = all(project.description.startswith(mark_of(spec.installation)) for project in named)
            raise _refused("LEFTOVER_AT_DOKPLOY" if own else "NAME_IN_USE_AT_DOKPLOY")
        found = _first(ours, reporter)
        if found is None or await _has_environment(dokploy, found):
            return found
        await _applications(dokploy, spec, reporter)  # an environment that the key may not see may hold ours
        await _remove_project(dokploy, found, reporter)
        return None

    project = await _find_or_create(
        "project", spec.mark, look, lambda: dokploy.create_project(spec.name, spec.mark), reporter
    )
    return replace(have, project_id=project.id)


async def _has_environment(dokploy: Dokploy, project: Project) -> bool:
    """Dokploy inserts a project and its environment without a transaction, and nothing can be made in half of that."""
    if project.application_ids or await dokploy.environments(project.id):
        return True
    await asyncio.sleep(RECHECK_SECONDS)
    return bool(await dokploy.environments(project.id))


async def get_environment(dokploy: Dokploy, spec: StackSpec, have: Resources, reporter: Reporter) -> Resources:
    environments = await dokploy.environments(_known(have.project_id))
    if not environments:
        raise NotFound("The project is not there any more, or has lost its environment.")
    default = next((environment for environment in environments if environment.is_default), environments[0])
    return replace(have, environment_id=default.id)


async def create_application(dokploy: Dokploy, spec: StackSpec, have: Resources, reporter: Reporter) -> Resources:
    environment_id = _known(have.environment_id)

    async def look() -> Application | None:
        found = await _our_application(dokploy, spec, have, reporter)
        if found is None:  # the one before may be gone, and its container be there: none is made beside it
            await _wait_for_containers_to_end(dokploy, have.app_name, reporter)
        return found

    application = await _find_or_create(
        "application",
        spec.mark,
        look,
        lambda: dokploy.create_application(environment_id, spec.name, spec.mark),
        reporter,
    )
    return replace(have, application_id=application.id, app_name=application.app_name)


async def _our_application(
    dokploy: Dokploy, spec: StackSpec, have: Resources, reporter: Reporter
) -> Application | None:
    """The project's with our mark, or ours that somebody has moved elsewhere. Failure where the one that we know has
    lost the mark: that is not touched."""
    environments = await dokploy.environments(_known(have.project_id))
    ours, changed = _ours([a for e in environments for a in e.applications], spec, reporter)
    if not (ours or changed) and "application" in reporter.recorded_ids.values():
        ours, changed = await _applications(dokploy, spec, reporter)
    if changed:
        raise _mark_changed("application", changed[0], spec)
    return _first(ours, reporter)


async def configure_application(dokploy: Dokploy, spec: StackSpec, have: Resources, reporter: Reporter) -> Resources:
    application_id = _known(have.application_id)
    # Asked first: a retry may begin here, and an outage that shows now is waited for and costs no attempt.
    if await _our_application(dokploy, spec, have, reporter) is None:
        raise NotFound("The application is not there any more.")
    await reporter.status(f"Setting the image {spec.image}")
    await dokploy.save_image(application_id, spec.image, spec.registry, spec.registry_username, spec.registry_password)
    await dokploy.save_environment(application_id, dotenv(spec.env))
    await dokploy.save_limits(application_id, spec.memory_bytes, spec.cpus)
    return have


async def create_domain(dokploy: Dokploy, spec: StackSpec, have: Resources, reporter: Reporter) -> Resources:
    application_id = _known(have.application_id)
    https = spec.certificate != "none"
    # With a wildcard certificate the router has it already: no resolver is named.
    certificate_type = "letsencrypt" if spec.certificate == "letsencrypt" else "none"

    async def look() -> Domain | None:
        domains = await dokploy.domains(application_id)
        ours = next((domain for domain in domains if domain.host == spec.host and domain.path == "/"), None)
        if ours is None:
            await _refuse_foreign_host(dokploy, spec)
        return ours

    domain = await _find_or_create(
        "domain",
        f"{spec.mark}/{spec.host}",
        look,
        lambda: dokploy.create_domain(
            application_id, spec.host, spec.port, https=https, certificate_type=certificate_type
        ),
        reporter,
    )
    if (domain.port, domain.https, domain.certificate_type) != (spec.port, https, certificate_type):
        await dokploy.update_domain(domain.id, spec.host, spec.port, https=https, certificate_type=certificate_type)
    return replace(have, domain_id=domain.id)


async def _refuse_foreign_host(dokploy: Dokploy, spec: StackSpec) -> None:
    """Dokploy takes one host for two applications without a word. Among our own the portal sees to it itself."""
    if spec.host in await dokploy.hosts_of_others(mark_of(spec.installation)):
        raise _refused("HOST_IN_USE_AT_DOKPLOY")


async def deploy(dokploy: Dokploy, spec: StackSpec, have: Resources, reporter: Reporter) -> Resources:
    """Sends the deploy unless it was sent, and follows it to its end, for `deploy_timeout` seconds at most, all
    attempts of this worker together."""
    since = reporter.started_at.setdefault(spec.deploy_titles, asyncio.get_running_loop().time())
    try:
        async with asyncio.timeout_at(since + spec.deploy_timeout):
            return await _send_and_follow(dokploy, spec, have, reporter)
    except TimeoutError:
        build = await _overdue(dokploy, spec, have)
        await reporter.created("deploy", build.title, build.id)
        return replace(have, replaces=reporter.resources.replaces, dokploy_deployment_id=build.id)


async def _send_and_follow(dokploy: Dokploy, spec: StackSpec, have: Resources, reporter: Reporter) -> Resources:
    application_id, prefix = _known(have.application_id), spec.deploy_titles
    have = replace(have, replaces=reporter.resources.replaces)  # written down with the intent of an earlier attempt
    while True:
        sent = sum(kind == "deploy" and title.startswith(prefix) for kind, title in reporter.pending)
        found = await _find_deploy(dokploy, application_id, prefix)
        if found is None and sent:
            await asyncio.sleep(RECHECK_SECONDS)
            found = await _find_deploy(dokploy, application_id, prefix)
        if found is None:
            if sent >= SENDS_PER_DEPLOYMENT:
                raise Failure("DEPLOY_LOST", failures.BY_CODE["DEPLOY_LOST"].what)
            if sent:
                await reporter.note("Dokploy lost the deployment (it was restarted): sending it again")
            title = spec.deploy_title(sent + 1)
            reporter.resources = have = replace(have, replaces=await _running(dokploy, have, prefix, reporter))
            await reporter.intend("deploy", title)
            try:
                await dokploy.deploy(application_id, title)
            except Unavailable:  # not sent, so not lost either: the next try is this one again
                reporter.pending.discard(("deploy", title))
                raise
        await reporter.status("Deployment triggered")
        ended = await _follow(dokploy, have, prefix, reporter)
        have = replace(have, replaces=reporter.resources.replaces)
        if ended is not None:
            build, log = ended
            await reporter.created("deploy", build.title, build.id)
            digest = PULLED.search(log)
            return replace(have, dokploy_deployment_id=build.id, image_digest=digest[1] if digest else None)


async def _overdue(dokploy: Dokploy, spec: StackSpec, have: Resources) -> DokployDeployment:
    """Our deploy, if it went well and only its log is missing. Else Failure, with what Dokploy says of it now."""
    found, said = None, "Dokploy does not say what became of it"
    with contextlib.suppress(DokployError):  # that it took too long does not depend on it
        found = await _find_deploy(dokploy, _known(have.application_id), spec.deploy_titles)
    if isinstance(found, DokployDeployment) and found.status == "done":
        return found
    if isinstance(found, DokployDeployment):
        said = f"Dokploy still says “{found.status}” of it"
    elif found:
        said = "it still waits in Dokploy's queue"
    raise Failure("TIMEOUT", f"After {spec.deploy_timeout:g} s {said}.") from None


async def _find_deploy(dokploy: Dokploy, application_id: str, prefix: str) -> DokployDeployment | str | None:
    """Our deploy: its row, or "queued". The rows are read again after the queue: a job may begin between two looks."""
    for look_at_queue in (True, False):
        if build := await _build(dokploy, application_id, prefix):
            return build
        if look_at_queue and any(job.title.startswith(prefix) for job in await dokploy.queue()):
            return "queued"
    return None


async def _follow(
    dokploy: Dokploy, have: Resources, prefix: str, reporter: Reporter
) -> tuple[DokployDeployment, str] | None:
    """Follows our deploy until it is done: its row and its log. None when Dokploy has lost it; Failure when it failed.

    While it waits only the queue is asked, which is one question for all runs that wait; then only its own row.
    """
    application_id = _known(have.application_id)
    ours: QueueEntry | None = None
    looks_at_queue = has_looked = False
    async with DeployLog(dokploy, reporter) as log:
        while True:
            if looks_at_queue:
                jobs = await dokploy.queue()
                ours = next((job for job in jobs if job.title.startswith(prefix)), None)
                if ours is not None and ours.state == "waiting":
                    await reporter.status(_place(ours, jobs))
                    await asyncio.sleep(POLL_SECONDS)
                    continue
            build = await log.during(_build(dokploy, application_id, prefix))
            if build is None and not looks_at_queue:
                looks_at_queue = True
                continue
            looks_at_queue = build is None and ours is None
            if looks_at_queue:
                await asyncio.sleep(RECHECK_SECONDS)
                if await _find_deploy(dokploy, application_id, prefix) is None:
                    return None
            elif build is not None and build.status == "running":
                await reporter.status("Dokploy pulls the image and starts the container")
                await log.look(build)
                if not has_looked:
                    has_looked = True
                    await log.during(_look_at_what_it_replaces(dokploy, have, prefix, reporter))
            elif build is not None:
                text = await log.whole(build)
                if build.status == "done":
                    return build, text
                if build.status == "error":
                    raise failures.from_log(text)
            await log.during(asyncio.sleep(POLL_SECONDS))


async def _look_at_what_it_replaces(dokploy: Dokploy, have: Resources, prefix: str, reporter: Reporter) -> None:
    """Also what another's deploy in front of ours has started since ours was sent. What runs was there before ours if
    that goes on afterwards: its end is when Docker is told."""
    with contextlib.suppress(DokployError):  # what was noted when it was sent has to do
        replaces = await _running(dokploy, have, prefix, reporter)
        build = await _build(dokploy, _known(have.application_id), prefix)
        if build is not None and build.status == "running":
            reporter.resources = replace(reporter.resources, replaces=replaces)


async def _build(dokploy: Dokploy, application_id: str, prefix: str) -> DokployDeployment | None:
    """Our deploy's newest row. One that is cancelled does not count: Dokploy was restarted under it."""
    rows = await dokploy.dokploy_deployments(application_id)
    return next((row for row in rows if row.title.startswith(prefix) and row.status != "cancelled"), None)


def _place(ours: QueueEntry, jobs: list[QueueEntry]) -> str:
    """How many are in front: a count, for the others' titles are not ours to show."""
    oldest_first = jobs[::-1]  # Dokploy lists the newest first; of two in one millisecond that order decides
    oldest_first.sort(key=lambda job: job.timestamp)
    ahead = oldest_first.index(ours)
    return f"Waiting in Dokploy's queue, {ahead} ahead" if ahead else "Dokploy begins with it"


async def verify_health(dokploy: Dokploy, spec: StackSpec, have: Resources, reporter: Reporter) -> Resources:
    """Climbs until the stack itself answers, at first often, then every `health_interval`, for `health_timeout` in all.

    Docker starts the new container before it stops the one before, which goes on answering, for ever where the new one
    does not start: an answer counts where that one had ended before. While only the certificate is missing the limit
    is CERTIFICATE_SECONDS: Let's Encrypt takes its time.
    """
    loop = asyncio.get_running_loop()
    began, attempt = loop.time(), 0
    while True:
        attempt += 1
        replaced = await _is_replaced(dokploy, have)
        seen = await probe_stack(spec)
        if seen.answered and not replaced:
            said = f"{seen.said}, {'perhaps ' if replaced is None else ''}from the version before"
            seen = replace(seen, answered=False, said=said, code="NOT_REPLACED")
        await reporter.probe_steps(seen.steps, attempt)
        await reporter.status(f"Attempt {attempt}: {seen.said}", attempt=attempt)
        if seen.answered:
            return have
        await _raise_if_dokploy_failed(dokploy, have)
        limit = max(spec.health_timeout, CERTIFICATE_SECONDS) if seen.waits_for_certificate else spec.health_timeout
        pause = min(spec.health_interval, 2.0 ** min(attempt - 1, 10))
        if loop.time() + pause - began > limit:
            if replaced is None and seen.code == "NOT_REPLACED":
                return have  # it answers, and that Dokploy cannot be asked is no reason to undo it
            raise await _no_answer(dokploy, have, seen, attempt)
        await asyncio.sleep(pause)


async def _raise_if_dokploy_failed(dokploy: Dokploy, have: Resources) -> None:
    with contextlib.suppress(DokployError):  # whether the stack answers does not depend on Dokploy
        builds = await dokploy.dokploy_deployments(_known(have.application_id))
        ours = next((build for build in builds if build.id == have.dokploy_deployment_id), None)
        if ours is not None and ours.status == "error":
            raise failures.from_log(await dokploy.read_deploy_log(ours.id))


async def _running(dokploy: Dokploy, have: Resources, prefix: str, reporter: Reporter) -> tuple[str, ...]:
    """The names of the application's containers that run, as far as Dokploy says. None before its first deploy."""
    if all(row.title.startswith(prefix) for row in await dokploy.dokploy_deployments(_known(have.application_id))):
        return ()
    containers = await _containers(dokploy, _known(have.app_name), reporter)
    return tuple(container.name for container in containers if container.state == "running")


async def _is_replaced(dokploy: Dokploy, have: Resources) -> bool | None:
    """Whether none of the containers that ran before runs any more. None while Dokploy cannot be asked."""
    if not have.replaces:
        return True
    try:
        containers = await dokploy.containers(_known(have.app_name))
        if not containers and await dokploy.engine_error():  # which goes on without its engine
            return None
    except Unavailable:
        return None
    except DokployError:  # it will never say
        return True
    return not any(container.name in have.replaces and container.state == "running" for container in containers)


async def _no_answer(dokploy: Dokploy, have: Resources, seen: ProbeResult, attempt: int) -> Failure:
    containers = []
    with contextlib.suppress(DokployError):  # they are only evidence
        containers = await dokploy.containers(_known(have.app_name))
    evidence = "; ".join(f"{container.name}: {container.status or container.state}" for container in containers)
    entry = failures.get_failure(seen.code)
    return Failure(seen.code, f"{entry.what} Attempt {attempt}, the last: {seen.said}.", evidence=evidence[:300])


# -- undo and removal: of what carries our mark and only that, each verified by reading again -------------------------


async def drain_deploys(dokploy: Dokploy, spec: StackSpec, have: Resources, reporter: Reporter) -> Resources:
    """Nothing of ours waits or runs at Dokploy any more. Deleting under a running deploy would leave its container."""
    ours, _ = await _applications(dokploy, spec, reporter)
    for application in ours:
        await dokploy.clean_queue(application.id)
        try:
            async with asyncio.timeout(SETTLE_SECONDS):
                while await _is_deploying(dokploy, application.id):
                    await reporter.status("Waiting for Dokploy to end the running deployment")
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            raise _still_running() from None
    return have


async def begin_removal(dokploy: Dokploy, spec: StackSpec, have: Resources, reporter: Reporter) -> Resources:
    """The beginning of a removal: nothing of it is being deployed any more, and nobody is led to it."""
    have = await drain_deploys(dokploy, spec, have, reporter)
    return await remove_domain(dokploy, spec, have, reporter)


async def _is_deploying(dokploy: Dokploy, application_id: str) -> bool:
    """Its row appears a moment after the job has begun: the queue is asked too."""
    if any(job.application_id == application_id for job in await dokploy.queue()):
        return True
    return any(build.status == "running" for build in await dokploy.dokploy_deployments(application_id))


def _still_running() -> Failure:
    return Failure("TIMEOUT", "Dokploy still says “running” of it; deleting it now would leave a container.")


async def remove_domain(dokploy: Dokploy, spec: StackSpec, have: Resources, reporter: Reporter) -> Resources:
    ours, changed = await _applications(dokploy, spec, reporter)
    for application in ours:
        for domain in await dokploy.domains(application.id):
            await reporter.removing("domain", domain.id)
            await _delete(dokploy.delete_domain, domain.id)
            if any(other.id == domain.id for other in await dokploy.domains(application.id)):
                raise OutcomeUnknown("Dokploy still lists the domain.")
            await reporter.removed("domain", domain.id)
    for application in changed:
        if any(domain.id in reporter.recorded_ids for domain in await dokploy.domains(application.id)):
            raise _mark_changed("application", application, spec)
    await reporter.removed("domain")
    return replace(have, domain_id=None)


async def remove_application(dokploy: Dokploy, spec: StackSpec, have: Resources, reporter: Reporter) -> Resources:
    await _wait_for_pending("application", lambda: _applications(dokploy, spec, reporter), reporter)
    ours, changed = await _applications(dokploy, spec, reporter)
    former = reporter.resources.app_name  # of one whose row is gone already, perhaps by an earlier try
    if former not in [application.app_name for application in (*ours, *changed)]:
        await _wait_for_containers_to_end(dokploy, former, reporter)
    for application in ours:
        if await _is_deploying(dokploy, application.id):
            raise _still_running()
        ran = bool(await dokploy.dokploy_deployments(application.id))
        if ran:
            await _need_engine(dokploy, reporter)
        reporter.resources = replace(reporter.resources, app_name=application.app_name if ran else None)
        await reporter.removing("application", application.id)
        await _delete(dokploy.delete_application, application.id)
        if await dokploy.is_there("application", application.id):
            raise OutcomeUnknown("Dokploy still has the application.")
        await _wait_for_containers_to_end(dokploy, reporter.resources.app_name, reporter)
        await reporter.removed("application", application.id)
    if changed:
        raise _mark_changed("application", changed[0], spec)
    await reporter.removed("application")
    await reporter.removed("deploy")
    return replace(have, application_id=None, app_name=None, dokploy_deployment_id=None)


async def _wait_for_containers_to_end(dokploy: Dokploy, app_name: str | None, reporter: Reporter) -> None:
    """Dokploy removes an application's row first, and answers well also where its service could not be removed.

    A service that is there makes new containers of what has ended. What has ended for good may lie about.
    """
    if app_name is None:
        return
    loop = asyncio.get_running_loop()
    began = quiet = loop.time()
    seen: set[str] = set()
    while there := await _containers(dokploy, app_name, reporter):
        now = loop.time()
        if any(container.state not in ENDED or container.name not in seen for container in there):
            quiet = now
        if now - quiet > QUIET_SECONDS:
            return
        if now - began > STOP_SECONDS:
            text = (
                f"Dokploy has removed the application, and its container still runs. On Dokploy's host, "
                f"“docker service rm {app_name}” ends it. Then try again."
            )
            raise Failure("CONTAINER_LEFT_AT_DOKPLOY", text)
        seen |= {container.name for container in there}
        await reporter.status("Waiting for its container to end")
        await asyncio.sleep(POLL_SECONDS)


async def _containers(dokploy: Dokploy, app_name: str, reporter: Reporter) -> list[Container]:
    containers = await _as_far_as_it_says(lambda: dokploy.containers(app_name), dokploy, reporter)
    if containers == []:  # Dokploy says so also where the engine could not be asked
        await _need_engine(dokploy, reporter)
    return containers or []


async def _need_engine(dokploy: Dokploy, reporter: Reporter) -> None:
    if version_error := await _as_far_as_it_says(dokploy.engine_error, dokploy, reporter):
        raise Unavailable("Dokploy's container engine does not answer.", evidence=version_error)


async def _as_far_as_it_says(ask: Callable[[], Awaitable[T]], dokploy: Dokploy, reporter: Reporter) -> T | None:
    """The answer to what Dokploy need not be able to say. None where it never will, and where it stumbles over that for
    STUMBLE_SECONDS and is well otherwise."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while True:
        try:
            return await ask()
        except Unavailable as error:
            if not await dokploy.healthy():
                raise
            if loop.time() - began > STUMBLE_SECONDS:
                return None
            await reporter.status(f"Waiting for Dokploy: {error}")
        except DokployError:
            return None
        await asyncio.sleep(POLL_SECONDS)


async def remove_project(dokploy: Dokploy, spec: StackSpec, have: Resources, reporter: Reporter) -> Resources:
    await _wait_for_pending("project", lambda: _projects(dokploy, spec, reporter), reporter)
    ours, changed = await _projects(dokploy, spec, reporter)
    if ours:
        await _applications(dokploy, spec, reporter)  # one that the key may not see would go on running without its row
    for project in ours:
        environments = await dokploy.environments(project.id)
        applications, _ = _ours([a for e in environments for a in e.applications], spec, reporter)
        if sum(environment.services for environment in environments) > len(applications):
            text = "It holds a service that this portal did not make, perhaps a copy. Remove that at Dokploy."
            raise Failure("DOKPLOY_REFUSED", text, retryable=False)
        if applications:
            raise Failure("DOKPLOY_REFUSED", "Its application is still there.")
        await _remove_project(dokploy, project, reporter)
    if changed:
        raise _mark_changed("project", changed[0], spec)
    await reporter.removed("project")
    return replace(have, project_id=None, environment_id=None)


async def _remove_project(dokploy: Dokploy, project: Project, reporter: Reporter) -> None:
    await reporter.removing("project", project.id)
    await _delete(dokploy.remove_project, project.id)
    if await dokploy.is_there("project", project.id):
        raise OutcomeUnknown("Dokploy still has the project.")
    await reporter.removed("project", project.id)


async def remove_duplicates(dokploy: Dokploy, spec: StackSpec, have: Resources, reporter: Reporter) -> None:
    """The last act of a run: surplus empty objects with our mark go (a create that seemed lost and was not)."""
    applications, _ = await _applications(dokploy, spec, reporter)
    for application in applications:
        if application.id not in (have.application_id, None) and not await dokploy.dokploy_deployments(application.id):
            await _delete(dokploy.delete_application, application.id)
        elif application.id == have.application_id:
            domains = await dokploy.domains(application.id)
            if have.domain_id not in [domain.id for domain in domains]:  # somebody has put another in its place
                continue
            for domain in domains:
                if (domain.host, domain.path) == (spec.host, "/") and domain.id != have.domain_id:
                    await _delete(dokploy.delete_domain, domain.id)
    projects, _ = await _projects(dokploy, spec, reporter)
    for project in projects:
        surplus = project.id != have.project_id
        if surplus and not any(environment.services for environment in await dokploy.environments(project.id)):
            await _delete(dokploy.remove_project, project.id)


async def list_owned(dokploy: Dokploy, installation: str, known: set[str]) -> list[MarkedObject]:
    """Every project and application with this installation's mark. known: ids that need not be looked into."""
    ours = mark_of(installation)
    found = []
    for project in await dokploy.projects():
        if not project.description.startswith(ours):
            continue
        found.append(MarkedObject("project", project.id, project.name, project.description))
        if known.issuperset(project.application_ids):
            continue
        for environment in await dokploy.environments(project.id):
            found += [
                MarkedObject("application", application.id, application.name, application.description)
                for application in environment.applications
                if application.description.startswith(ours)
            ]
    return found


# -- shared ------------------------------------------------------------------------------------------------------------


async def _find_or_create(
    kind: str, mark: str, look: Callable[[], Awaitable[M | None]], make: Callable[[], Awaitable[M]], reporter: Reporter
) -> M:
    """Finds ours or makes it. Intent is written before the call, the id right after it.

    An answer that is not a clean one is looked into twice; if nothing is there, the phase's next attempt looks again.
    """
    found = await look()
    if found is None and (kind, mark) in reporter.pending:  # an earlier request may still be on its way
        await asyncio.sleep(RECHECK_SECONDS)
        found = await look()
    if found is None:
        await reporter.intend(kind, mark)
        try:
            found = await make()
        except OutcomeUnknown:
            found = await look()
            if found is None:
                await asyncio.sleep(RECHECK_SECONDS)
                found = await look()
            if found is None:
                raise
    else:
        await reporter.status(f"Found the {kind}, it is there already")
    await reporter.created(kind, mark, found.id)
    return found


async def _wait_for_pending(kind: str, look: Callable[[], Awaitable[Both[Any]]], reporter: Reporter) -> None:
    """Where something was about to be made and is not there: its request may still be on its way, so a pause."""
    if any(intended == kind for intended, _ in reporter.pending) and not any(await look()):
        await asyncio.sleep(RECHECK_SECONDS)


async def _delete(call: Callable[[str], Awaitable[None]], id: str) -> None:
    """Deletes; what is gone already is fine, and what an unclear answer did the caller finds out by reading."""
    with contextlib.suppress(NotFound, OutcomeUnknown):
        await call(id)


async def _projects(dokploy: Dokploy, spec: StackSpec, reporter: Reporter) -> Both[Project]:
    found = await dokploy.projects()
    await _confirm_unlisted_gone("project", found, dokploy, reporter)
    return _ours(found, spec, reporter)


async def _applications(dokploy: Dokploy, spec: StackSpec, reporter: Reporter) -> Both[Application]:
    """In projects of ours, and wherever else what we know by its id is by now."""
    found = [
        application
        for project in await dokploy.projects()
        if project.description == spec.mark or reporter.recorded_ids.keys() & {project.id, *project.application_ids}
        for environment in await dokploy.environments(project.id)
        for application in environment.applications
    ]
    await _confirm_unlisted_gone("application", found, dokploy, reporter)
    return _ours(found, spec, reporter)


async def _confirm_unlisted_gone(kind: str, listed: list[D], dokploy: Dokploy, reporter: Reporter) -> None:
    """Sees to it that what we know by its id and no list shows is gone: NotAllowed where the key may not see it."""
    known = {id for id, its in reporter.recorded_ids.items() if its == kind}
    for id in sorted(known.difference(one.id for one in listed)):
        if await dokploy.is_there(kind, id):
            raise OutcomeUnknown(f"Dokploy has the {kind}, and does not list it.")


def _ours(found: list[D], spec: StackSpec, reporter: Reporter) -> Both[D]:
    """What carries our mark and is no copy; and what we know by its id and what does not carry the mark any more."""
    marked = [one for one in found if one.description == spec.mark]
    ours = [one for one in marked if one.id in reporter.recorded_ids or one.name == spec.name]
    return ours, [one for one in found if one.id in reporter.recorded_ids and one not in ours]


def _mark_changed(kind: str, one: Project | Application, spec: StackSpec) -> Failure:
    text = (
        f"The {kind} “{one.name[:60]}” is at Dokploy, and its description was changed by hand: it lacks this portal's "
        f"mark, so it was not touched. Put “{spec.mark}” back there, or remove it at Dokploy. Then try again."
    )
    return Failure("MARK_CHANGED_AT_DOKPLOY", text)


def _first(found: list[D], reporter: Reporter) -> D | None:
    """The one that we know by its id, else the oldest."""
    return min(found, key=lambda one: (one.id not in reporter.recorded_ids, one.created_at), default=None)


def _known(id: str | None) -> str:
    if id is None:
        raise Failure("DEPLOYMENT_FAILED", "A phase before this one did not leave what this one needs.")
    return id


def _refused(code: str) -> Failure:
    entry = failures.BY_CODE[code]
    return Failure(code, entry.what, retryable=entry.retryable)
