"""The health check of a deployment: prove that the new version runs, stays up and answers.

An answer alone proves little. Docker starts the new container before it stops the previous one; a program may answer
and then end; and when it ends within Docker's watch over an update, Docker goes back to the previous version, which
answers at the same address. What cannot be read counts as not proved, and never as a failure.
"""

import asyncio
import contextlib
from dataclasses import dataclass, field

from . import failures
from .dokploy import Container, Dokploy, Service
from .errors import DokployError, Failure
from .probe import ProbeResult, probe_stack
from .reporter import Reporter
from .resources.base import require_id
from .spec import UNKNOWN_UPDATE, Resources, StackSpec

CERTIFICATE_SECONDS = 180.0  # Let's Encrypt may need minutes
UPDATE_SECONDS = 60.0  # Docker watches an update for five seconds, unless the service is configured otherwise
LOOK_SECONDS = 1.0  # between two looks, at most
SHORTEST_PAUSE_SECONDS = 0.1
ANSWERS = 3
CRASHES = 2  # a program may end once, for example because a service that it needs was not ready
LOG_LINES = 40
UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at the stack has seen.

    `containers` is None when Dokploy cannot tell. `service` is None then, and also when nothing is replaced.
    """

    probe: ProbeResult
    containers: list[Container] | None
    service: Service | None
    resources: Resources

    @property
    def replaced(self) -> bool:
        """Whether no container of the previous version runs any more, as far as Dokploy can tell."""
        if self.containers is None:
            return not self.resources.replaces
        return not any(c.state == "running" for c in self.containers if c.name in self.resources.replaces)

    @property
    def new(self) -> list[Container]:
        """The containers of the new version, ended ones included."""
        return [c for c in self.containers or () if c.name not in self.resources.replaces]

    @property
    def running(self) -> Container | None:
        """The running container of the new version."""
        return next((container for container in self.new if container.state == "running"), None)

    @property
    def ended(self) -> list[Container]:
        """The containers of the new version whose program has ended, the latest first."""
        return [container for container in self.new if container.exit_code is not None]

    @property
    def update_state(self) -> str:
        """The state of the update that this deployment has caused.

        Empty on a first deploy, before the update begins, and when Dokploy could not tell the last update before it.
        UNREADABLE when Dokploy cannot tell now.
        """
        before = self.resources.update_before
        if not self.resources.replaces or before == UNKNOWN_UPDATE:
            return ""
        if self.service is None:
            return UNREADABLE
        return "" if self.service.update_started_at == before else self.service.update_state


@dataclass(slots=True)
class Proof:
    """The proof that one container stays up and that its address answers meanwhile."""

    seconds: float
    container: str = ""
    answered_at: list[float] = field(default_factory=list)

    def add(self, look: Look, now: float) -> None:
        """Add one look. Start again after a look without an answer, and when another container runs."""
        running = look.running
        if running is None or not look.probe.answered or not look.replaced:
            self.container, self.answered_at = "", []
        elif running.name != self.container:
            self.container, self.answered_at = running.name, [now]
        else:
            self.answered_at.append(now)

    @property
    def has_begun(self) -> bool:
        """Whether the container runs and has answered."""
        return bool(self.answered_at)

    def pause(self, usual: float) -> float:
        """Return the pause before the next look, in seconds: the answers are spread over the proof."""
        return min(usual, max(self.seconds / ANSWERS, SHORTEST_PAUSE_SECONDS)) if self.has_begun else usual

    @property
    def is_complete(self) -> bool:
        """Whether the container has been up long enough and has answered often enough."""
        times = self.answered_at
        return len(times) >= ANSWERS and times[-1] - times[0] >= self.seconds


async def verify_health(dokploy: Dokploy, spec: StackSpec, resources: Resources, reporter: Reporter) -> Resources:
    """Prove that the new version runs, stays up and answers, and return the resources unchanged.

    The same new container must have been up for `spec.proof_seconds`, have answered ANSWERS times, and Docker's update
    must be completed. Raise Failure when the program ends CRASHES times, when Docker goes back to the previous
    version, when Dokploy reports an error, when the application is removed in Dokploy, and when the new version does
    not answer within `spec.health_timeout` seconds, or CERTIFICATE_SECONDS while only the certificate is missing, if
    that is later. If the address answers at that limit, but Dokploy cannot tell whether the new version runs, report a
    note and return.
    """
    loop = asyncio.get_running_loop()
    started, attempt, proof = loop.time(), 0, Proof(spec.proof_seconds)
    ended: set[str] = set()
    while True:
        attempt += 1
        look = await _look(dokploy, spec, resources)
        proof.add(look, loop.time())
        await reporter.probe_steps(look.probe.steps, attempt)
        await reporter.status(f"Attempt {attempt}: {_summary(look, proof)}", attempt=attempt)
        await _raise_if_failed(dokploy, look, reporter, ended)
        if proof.is_complete and look.update_state in ("", "completed"):
            await _require_application(dokploy, resources)
            return resources
        pause = proof.pause(min(spec.health_interval, LOOK_SECONDS))
        if loop.time() + pause - started > _limit(spec, look, proof):
            is_unreadable = look.containers is None or (proof.is_complete and look.update_state == UNREADABLE)
            if look.probe.answered and is_unreadable:
                await reporter.note("The stack answers, but Dokploy cannot tell whether the new version runs")
                return resources
            raise _no_answer(spec, look, proof, attempt)
        await asyncio.sleep(pause)


def _limit(spec: StackSpec, look: Look, proof: Proof) -> float:
    """Return how long the health check may take, in seconds."""
    if proof.has_begun:
        return spec.health_timeout + spec.proof_seconds + UPDATE_SECONDS
    return max(spec.health_timeout, CERTIFICATE_SECONDS) if look.probe.waits_for_certificate else spec.health_timeout


async def _look(dokploy: Dokploy, spec: StackSpec, resources: Resources) -> Look:
    containers: list[Container] | None = None
    service: Service | None = None
    with contextlib.suppress(DokployError):
        listed = await dokploy.containers(require_id(resources.app_name))
        # Dokploy also lists none while its engine is down, and then they go on running.
        if listed or not await dokploy.engine_error():
            containers = listed
    if resources.replaces:
        with contextlib.suppress(DokployError):
            service = await dokploy.service(require_id(resources.app_name))
    return Look(await probe_stack(spec), containers, service, resources)


def _summary(look: Look, proof: Proof) -> str:
    if look.probe.answered and not look.replaced:
        return f"{look.probe.summary}, {'perhaps ' if look.containers is None else ''}from the previous version"
    if proof.has_begun:
        return f"{look.probe.summary}; making sure it stays up"
    if look.ended and look.running is None:
        return f"the program ended with exit code {look.ended[0].exit_code}, and Docker starts it again"
    return look.probe.summary


async def _raise_if_failed(dokploy: Dokploy, look: Look, reporter: Reporter, ended: set[str]) -> None:
    """Raise Failure when it is certain that the new version does not run. Report the program's last lines first."""
    rolled_back = look.update_state.startswith("rollback")
    known = set(ended)
    ended.update(container.name for container in look.ended)
    if ended > known or rolled_back:
        last_line = await _report_program_log(dokploy, look, reporter)
        evidence = " · ".join(filter(None, [look.ended[0].status if look.ended else "", last_line]))[:300]
        if rolled_back:
            raise failures.failure("ROLLED_BACK", evidence=evidence)
        if len(ended) >= CRASHES:
            raise failures.failure("CONTAINER_CRASHED", evidence=evidence)
    if look.containers == []:
        await _require_application(dokploy, look.resources)
    await _raise_if_dokploy_failed(dokploy, look)


async def _report_program_log(dokploy: Dokploy, look: Look, reporter: Reporter) -> str:
    """Report what the program wrote last, and return its last line. An undo deletes the log at Dokploy."""
    with contextlib.suppress(DokployError):  # the evidence is optional
        log = await dokploy.read_program_log(require_id(look.resources.application_id), LOG_LINES)
        await reporter.log(f"program {look.resources.app_name}", log, complete=True)
        return log.strip().rpartition("\n")[2]
    return ""


async def _require_application(dokploy: Dokploy, resources: Resources) -> None:
    """Raise Failure when the application was removed in Dokploy: its container may go on running and answering."""
    with contextlib.suppress(DokployError):
        listed = {id for project in await dokploy.projects() for id in project.application_ids}
        if resources.application_id not in listed:
            raise failures.failure("REMOVED_AT_DOKPLOY")


async def _raise_if_dokploy_failed(dokploy: Dokploy, look: Look) -> None:
    """Raise Failure if the status of the Dokploy deployment has changed to error."""
    if look.probe.answered:
        return
    with contextlib.suppress(DokployError):  # whether the stack answers does not depend on Dokploy
        rows = await dokploy.dokploy_deployments(require_id(look.resources.application_id))
        own = next((row for row in rows if row.id == look.resources.dokploy_deployment_id), None)
        if own is not None and own.status == "error":
            raise failures.from_log(await dokploy.read_deploy_log(own.id))


def _no_answer(spec: StackSpec, look: Look, proof: Proof, attempt: int) -> Failure:
    """Return the failure for the last look, with the state of the containers as its evidence."""
    evidence = "; ".join(f"{c.name}: {c.status or c.state}" for c in look.containers or ())
    code, summary = look.probe.code, look.probe.summary
    if proof.has_begun:
        code, summary = "TIMEOUT", "the new version answers, but Docker has not completed the update"
    elif look.probe.answered and look.replaced:
        code, summary = "HEALTH_NO_ANSWER", f"{summary}, but Dokploy lists no running container of the stack"
    elif look.probe.answered:
        code, summary = "NOT_REPLACED", f"{summary}, from the previous version"
    elif look.running is not None and look.probe.status == 502:
        code, summary = "NOTHING_LISTENS", f"the container runs, but nothing in it listens on port {spec.port}"
    text = f"{failures.get(code).text} The last of {attempt} attempts: {summary}."
    return Failure(code, text, evidence=evidence[:300])
