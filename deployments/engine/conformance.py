"""Does a Dokploy server do what the recipe relies on? Rehearsals with throwaway stacks, each compared with what Dokploy
then says of itself; at the end nothing of them is left there.

The real engine does the work. A difference is written down and the next rehearsal begins.
"""

import asyncio
import contextlib
import secrets
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar
from urllib.parse import urlsplit

from . import containers, orchestrator
from .deploy import drain_deploys
from .dokploy import CALL_SECONDS, Dokploy, DokployDeployment, Project
from .errors import DokployError, Failure, Interrupted, Unavailable
from .probe import probe_stack
from .recipe import PHASES, REMOVAL, Phase
from .reporter import Reporter
from .resources import base
from .spec import Certificate, Progress, Resources, StackSpec
from .validation import dotenv

PATIENCE_SECONDS = 60.0  # an unreachable Dokploy is waited for so long, within one phase
AFTERWARDS_SECONDS = 30.0  # a container ends, and a route goes, a while after Dokploy said so
CLEARING_SECONDS = 300.0
CLEARINGS = 3
FILLERS = 4  # deploys that occupy the queue, so that another one waits

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ground:
    """What throwaway stacks are made of. url: their address, with {name} in its first label; times in seconds."""

    image: str
    second_image: str
    port: int
    url: str
    certificate: Certificate = "none"
    health_path: str = "/"
    health_interval: float = 5.0
    health_timeout: float = 60.0
    router_address: str = ""


class Stage:
    """The server, the stacks that are made on it, and what was found out.

    say: takes a line for the operator. key: the server's, which no line may hold.
    """

    def __init__(self, dokploy: Dokploy, ground: Ground, say: Callable[[str], None], *, key: str) -> None:
        self.dokploy, self.ground, self.key = dokploy, ground, key
        self.say = say
        self.installation = f"conformance-{secrets.token_hex(4)}"
        self.name = f"conf-{secrets.token_hex(3)}"
        self.stacks: dict[str, Stack] = {}
        self.held = 0
        self.differences: list[str] = []
        self.not_seen: list[str] = []
        self.left: list[str] = []
        self._heading = ""

    @property
    def mark(self) -> str:
        """What the marks of all throwaway stacks begin with, and no other's."""
        return f"deployportal/{self.installation}/"

    def stack(self, letter: str) -> "Stack":
        if letter not in self.stacks:
            self.stacks[letter] = Stack(self, letter)
        return self.stacks[letter]

    def begin(self, heading: str) -> None:
        """What is said from now on belongs to this rehearsal."""
        self._heading = heading

    def expect(self, what: str, expected: object, saw: object) -> None:
        if expected == saw:
            self.held += 1
            self.say(f"     held  {what}: {_shown(saw)}")
        else:
            self.differ(what, _shown(expected), _shown(saw))

    def differ(self, what: str, expected: str, saw: str) -> None:
        self.differences.append(f"{self._heading}: {what}: expected {expected}, saw {saw}")
        self.say(f"  differs  {what}: expected {expected}, saw {saw}")

    def miss(self, what: str) -> None:
        """What could not be seen this time, which is no difference."""
        self.not_seen.append(f"{self._heading}: {what}")
        self.say(f" not seen  {what}")


class Stack:
    """One throwaway stack, and what the engine reported of it.

    have: the ids of what was ever there; log_lines, worked_around: of the last run.
    """

    def __init__(self, stage: Stage, letter: str) -> None:
        name, ground = f"{stage.name}-{letter}", stage.ground
        url = ground.url.replace("{name}", name)
        self.spec = StackSpec(
            installation=stage.installation,
            stack=f"stk_{name}",
            deployment="",
            name=name,
            image=ground.image,
            port=ground.port,
            host=urlsplit(url).hostname or "",
            url=url,
            certificate=ground.certificate,
            health_path=ground.health_path,
            health_interval=ground.health_interval,
            health_timeout=ground.health_timeout,
            router_address=ground.router_address,
        )
        self.have = Resources()
        self.works = False
        self.log_lines = 0
        self.worked_around: list[str] = []
        self._stage, self._dokploy = stage, stage.dokploy
        self._letter = letter
        self._intended: set[tuple[str, str]] = set()
        self._runs = 0
        self._stops: Callable[[Progress], bool] = lambda progress: False

    async def deploy(
        self,
        *,
        image: str | None = None,
        phases: Sequence[Phase] = PHASES,
        first_phase: str | None = None,
        stops: Callable[[Progress], bool] = lambda progress: False,
    ) -> None:
        """A run of its own, unless it goes on with `first_phase`. Raises Failure, and Interrupted where `stops` says so
        of a report."""
        self.log_lines, self._stops = 0, stops
        if first_phase is None:
            self._runs += 1
            value = f"it's throwaway # {secrets.token_hex(8)}"
            self.spec = replace(
                self.spec,
                deployment=f"dep_{self._runs}",
                image=image or self.spec.image,
                env=(("CONFORMANCE", value),),
                secrets=(value,),
            )
        reporter = self._reporter(Resources() if first_phase is None else self.have)
        try:
            await orchestrator.run(
                self._dokploy, self.spec, reporter, phases=phases, first_phase=first_phase, patience=PATIENCE_SECONDS
            )
        finally:
            self._stops = lambda progress: False
        self.works = phases is PHASES

    async def undo(self) -> list[str]:
        return await orchestrator.undo(self._dokploy, self.spec, self._reporter(self.have), patience=PATIENCE_SECONDS)

    async def remove(self, phases: Sequence[Phase] = REMOVAL) -> None:
        reporter = self._reporter(self.have)
        await orchestrator.run(self._dokploy, self.spec, reporter, phases=phases, patience=PATIENCE_SECONDS)

    def expect(self, what: str, expected: object, saw: object) -> None:
        self._stage.expect(f"{self._letter}  {what}", expected, saw)

    def _reporter(self, resources: Resources) -> Reporter:
        self.works, self.worked_around = False, []
        reporter = Reporter(self._report, resources=resources, pending=self._intended)
        reporter.secrets = (self._stage.key, *self.spec.secrets)
        return reporter

    async def _report(self, progress: Progress) -> None:
        data = progress.data
        if progress.resources is not None:  # what is gone stays known, to be looked for
            self.have = replace(self.have, **{id: value for id, value in asdict(progress.resources).items() if value})
        if progress.kind == "receipt" and data["state"] == "intended":
            self._intended.add((data["kind"], data["mark"]))
        if progress.kind == "log":
            self.log_lines += len(data["lines"])
        tried_again = "attempt" in data and progress.kind == "phase" and progress.phase != PHASES[-1].name
        if tried_again or progress.kind == "note":
            self.worked_around.append(progress.message)
        says = progress.kind == "phase" and not data.get("alive") and data.get("step") != "ends"
        if says or progress.kind == "note" or data.get("state") == "left":
            self._stage.say(f"           {self._letter}  {progress.message}")
        if self._stops(progress):
            raise Interrupted


# -- the rehearsals ----------------------------------------------------------------------------------------------------


async def deploy(stage: Stage) -> None:
    stack = stage.stack("a")
    before = await probe_stack(stack.spec)
    stack.expect("its address answers before it is there", False, before.answered)
    await stack.deploy()
    await _is_there(stage, stack)


async def redeploy(stage: Stage) -> None:
    stack = stage.stack("a")
    if not stack.works:
        stage.miss("there is no stack that could be deployed again")
        return
    before, rows = stack.have, await _rows(stage, stack)
    await stack.deploy(image=stage.ground.second_image)
    stack.expect("its objects are those of before", True, _objects(before) == _objects(stack.have))
    stack.expect("deploys of it", len(rows) + 1, len(await _rows(stage, stack)))
    await _is_there(stage, stack)


async def refused_image(stage: Stage) -> None:
    stack = stage.stack("b")
    image = f"{stage.name}.invalid/does-not/exist:1"  # RFC 2606: no such host is ever in the DNS
    try:
        await stack.deploy(image=image)
    except Failure as failure:
        said = f"{failure.code}: {failure.message} {failure.evidence!r}"
        stage.say(f"           b  {said}")
        stack.expect("the phase that fails", _DEPLOYING.name, failure.phase)
        stack.expect("how its deploy ended", ["error"], [row.status for row in await _rows(stage, stack)])
        stack.expect("its log says why", True, failure.code != "DEPLOY_FAILED" or bool(failure.evidence))
        if failure.code == "DEPLOY_FAILED":
            stage.miss("a reason that the portal knows by its text")
    else:
        stage.differ("an image that cannot exist", "a failure", "a stack that works")
    stack.expect("what the undo leaves", [], await stack.undo())
    await _is_gone(stage, stack)


async def undo(stage: Stage) -> None:
    stack = stage.stack("c")
    await stack.deploy()
    stack.expect("what the undo leaves", [], await stack.undo())
    await _is_gone(stage, stack)


async def cancel(stage: Stage) -> None:
    """Of two deploys of one application the second waits, whatever else Dokploy runs at a time. Where that is one at a
    time, the deploys of another stack fill the queue as well, and must stay in it."""
    dokploy, stack, other = stage.dokploy, stage.stack("d"), stage.stack("a")
    one_at_a_time = await dokploy.builds_concurrency() in (1, None)
    await stack.deploy(phases=PHASES[: PHASES.index(_DEPLOYING)])
    filling = other if other.works and one_at_a_time else stack
    fillers = [f"{filling.spec.mark}/filler/{number}" for number in range(FILLERS)]
    for title in fillers:
        await dokploy.deploy(filling.have.application_id or "", title)
    waited = False
    try:
        await stack.deploy(first_phase=_DEPLOYING.name, stops=_says_that_it_waits)
    except Interrupted:
        jobs = [job.state for job in await dokploy.queue() if job.title == stack.spec.deploy_title(1)]
        waited = jobs == ["waiting"]
    if waited:
        stack.expect("its deploy waits in Dokploy's queue when it is stopped", True, waited)
    else:
        stage.miss("a deploy that waits in Dokploy's queue: it began too soon")
    stack.expect("what the undo leaves", [], await stack.undo())
    if filling is other:
        queued = {job.title for job in await dokploy.queue()}  # before the rows: a job may begin between two looks
        kept = queued | {row.title for row in await _rows(stage, other)}
        other.expect("deploys of it that are queued still, or began", len(fillers), len(kept & set(fillers)))
        await other.remove(SETTLING)
    await _is_gone(stage, stack)


async def two_at_once(stage: Stage) -> None:
    pair = stage.stack("e"), stage.stack("f")
    await _together(stack.deploy() for stack in pair)
    for stack in pair:
        await _is_there(stage, stack)
    shared = _objects(pair[0].have) & _objects(pair[1].have)
    stage.expect("objects that both have", [], sorted(shared))
    await _together(stack.remove() for stack in pair)
    for stack in pair:
        await _is_gone(stage, stack)


async def remove(stage: Stage) -> None:
    stack = stage.stack("a")
    if stack.have.application_id is None:
        stage.miss("there is no stack that could be removed")
        return
    await stack.remove()
    await _is_gone(stage, stack)


@dataclass(frozen=True, slots=True)
class Rehearsal:
    name: str
    sentence: str
    act: Callable[[Stage], Awaitable[None]]


REHEARSALS = (
    Rehearsal("deploy", "A stack is deployed, and is as it was asked for", deploy),
    Rehearsal("redeploy", "It is deployed again: what is there is found, and changed", redeploy),
    Rehearsal("refused image", "An image that cannot exist is refused, explained and undone", refused_image),
    Rehearsal("undo", "A stack that works is undone", undo),
    Rehearsal("cancel", "A deploy that waits in Dokploy's queue is stopped and undone", cancel),
    Rehearsal("two at once", "Two stacks are deployed at once, and removed at once", two_at_once),
    Rehearsal("remove", "The first stack is removed", remove),
)
SETTLING = (Phase("settling", "Waiting for its deploys to end", 0, drain_deploys, timeout=REMOVAL[0].timeout),)
_DEPLOYING = next(phase for phase in PHASES if phase.name == "deploying")


async def run(stage: Stage, stop: asyncio.Event, *, limit: float) -> bool:
    """All rehearsals in order, within `limit` seconds; then, however they ended, what they made is taken away.

    stop: to end them early. Returns whether all went as expected and nothing is left.
    """
    rehearsing, stopping = asyncio.ensure_future(_rehearse(stage)), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({rehearsing, stopping}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        if not rehearsing.done():
            saw = "a signal to stop" if stop.is_set() else f"none within the {limit:.0f} s for all"
            stage.differ("it goes through", "its end", saw)
    finally:
        for task in (rehearsing, stopping):
            task.cancel()
        await asyncio.gather(rehearsing, stopping, return_exceptions=True)
        stage.say("\nwhat is left")
        await _clear(stage)
    if not rehearsing.cancelled():
        rehearsing.result()  # raises what nobody foresaw
    return not stage.differences and not stage.left


async def _rehearse(stage: Stage) -> None:
    for number, rehearsal in enumerate(REHEARSALS, 1):
        stage.begin(rehearsal.name)
        stage.say(f"\n{number} of {len(REHEARSALS)}  {rehearsal.name}: {rehearsal.sentence}")
        began = time.monotonic()
        try:
            await rehearsal.act(stage)
        except Failure as failure:
            said = f"{failure.code} in {failure.phase or 'no phase'}: {failure.message} {failure.evidence!r}"
            stage.differ("it goes through", "no failure", said)
        except DokployError as error:
            stage.differ("Dokploy answers", "what was asked for", f"{error.code}: {error} {error.evidence!r}")
        except asyncio.CancelledError:
            stage.not_seen += [f"{later.name}: not begun" for later in REHEARSALS[number:]]
            raise
        except Exception as error:  # its text may hold anything
            place = traceback.extract_tb(error.__traceback__)[-1]
            stage.differ("it goes through", "no error", f"{type(error).__name__} in {place.name}, line {place.lineno}")
        stage.say(f"           {time.monotonic() - began:.1f} s")


# -- compared with what Dokploy says -----------------------------------------------------------------------------------


async def _is_there(stage: Stage, stack: Stack) -> None:
    """Exactly one of everything, ours, and as it was asked for."""
    spec, have, dokploy = stack.spec, stack.have, stage.dokploy
    stack.expect("what had to be tried again or was out of order", [], stack.worked_around)
    projects = await _projects(stage, stack)
    stack.expect("projects with its mark", [(have.project_id, spec.name)], [(p.id, p.name) for p in projects])
    environments = [environment for p in projects for environment in await dokploy.environments(p.id)]
    found = [(a.id, a.name, a.description) for environment in environments for a in environment.applications]
    stack.expect("applications in it", [(have.application_id, spec.name, spec.mark)], found)
    names = [a.app_name.startswith(f"{spec.name}-") for environment in environments for a in environment.applications]
    stack.expect("its service's name begins with what was sent", [True], names)

    application_id = have.application_id or ""
    saved = await dokploy.saved_config(application_id)
    stack.expect("its source and image", ("docker", spec.image), (saved.source, saved.image))
    stack.expect("its variables are as they were sent", True, saved.env == dotenv(spec.env))
    https, letsencrypt = spec.certificate != "none", spec.certificate == "letsencrypt"
    stack.expect(
        "its domains, with host, path, port, https and certificate",
        [(have.domain_id, spec.host, "/", spec.port, https, "letsencrypt" if letsencrypt else "none")],
        [(d.id, d.host, d.path, d.port, d.https, d.certificate_type) for d in await dokploy.domains(application_id)],
    )

    rows = [row for row in await _rows(stage, stack) if row.title == spec.deploy_title(1)]
    ended = [(row.id, row.status) for row in rows]
    stack.expect("deploys with its title, and how they ended", [(have.dokploy_deployment_id, "done")], ended)
    stack.expect("deploys of it in the queue", [], await _jobs(stage, stack))
    stack.expect("lines of its log were reported", True, stack.log_lines > 0)
    for row in rows:
        log, followed = (await dokploy.read_deploy_log(row.id)).strip(), (await _followed(stage, row)).strip()
        stack.expect("its log can be read over HTTP", True, bool(log))
        stack.expect("the socket sends the same log", True, bool(followed) and log.startswith(followed[:80]))
    stack.expect("a container of it runs", True, await _afterwards(lambda: _runs(stage, stack), True))
    stack.expect("its address answers", True, await _answers(spec))


async def _is_gone(stage: Stage, stack: Stack) -> None:
    """Nothing of it is listed, runs, or answers any more."""
    spec, have, dokploy = stack.spec, stack.have, stage.dokploy
    stack.expect("what had to be tried again or was out of order", [], stack.worked_around)
    stack.expect("projects with its mark", [], [project.id for project in await _projects(stage, stack)])
    if have.application_id is not None:
        listed = [id for project in await dokploy.projects() for id in project.application_ids]
        stack.expect("its application is listed", False, have.application_id in listed)
        by_id = await dokploy.exists("application", have.application_id)
        stack.expect("its application is there, asked by its id", False, by_id)
        stack.expect("its domains", [], [domain.host for domain in await dokploy.domains(have.application_id)])
        stack.expect("its deploys", [], [row.title for row in await _rows(stage, stack)])
    stack.expect("deploys of it in the queue", [], await _jobs(stage, stack))
    if have.app_name is not None:
        stack.expect("containers of it", [], await _afterwards(lambda: _containers(stage, stack), []))
    stack.expect("its address answers", False, await _afterwards(lambda: _answers(spec), False))


async def _projects(stage: Stage, stack: Stack) -> list[Project]:
    return [project for project in await stage.dokploy.projects() if project.description == stack.spec.mark]


async def _rows(stage: Stage, stack: Stack) -> list[DokployDeployment]:
    return await stage.dokploy.dokploy_deployments(stack.have.application_id or "")


async def _jobs(stage: Stage, stack: Stack) -> list[str]:
    return [job.title for job in await stage.dokploy.queue() if job.title.startswith(f"{stack.spec.mark}/")]


async def _containers(stage: Stage, stack: Stack) -> list[str]:
    return [container.name for container in await stage.dokploy.containers(stack.have.app_name or "")]


async def _runs(stage: Stage, stack: Stack) -> bool:
    return any(container.state == "running" for container in await stage.dokploy.containers(stack.have.app_name or ""))


async def _answers(spec: StackSpec) -> bool:
    return (await probe_stack(spec)).answered


async def _followed(stage: Stage, row: DokployDeployment) -> str:
    """What the socket sends first of a deploy's log; empty where it sends nothing."""
    with contextlib.suppress(Unavailable, TimeoutError):
        async with (
            asyncio.timeout(CALL_SECONDS),
            contextlib.aclosing(stage.dokploy.follow_log(row.log_path)) as pieces,
        ):
            async for text in pieces:
                return text
    return ""


async def _afterwards(read: Callable[[], Awaitable[T]], wanted: T) -> T:
    """What is read, as soon as it is what is wanted, or after a while."""
    deadline = time.monotonic() + AFTERWARDS_SECONDS
    while True:
        seen = await read()
        if seen == wanted or time.monotonic() > deadline:
            return seen
        await asyncio.sleep(containers.POLL_SECONDS)


def _objects(have: Resources) -> set[str]:
    """The ids of what lasts from one deploy to the next."""
    return {id for id in (have.project_id, have.environment_id, have.application_id, have.domain_id) if id}


async def _together(acts: Iterator[Awaitable[Any]]) -> None:
    """Until all are over; then raises what the first of them raised that failed."""
    for ended in await asyncio.gather(*acts, return_exceptions=True):
        if isinstance(ended, BaseException):
            raise ended


def _says_that_it_waits(progress: Progress) -> bool:
    return progress.phase == _DEPLOYING.name and "queue" in progress.message


def _shown(value: object) -> str:
    """For the operator, on one line; foreign text without what does not print."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return (", " if isinstance(value, list) else " ").join(map(_shown, value)) or "none"
    return value if isinstance(value, str) and value.isprintable() else repr(value)


# -- at the end --------------------------------------------------------------------------------------------------------


async def _clear(stage: Stage) -> None:
    """Takes away whatever has our mark. Looks twice: a call that was broken off may still have made something."""
    removals, clean_looks = 0, 0
    try:
        async with asyncio.timeout(CLEARING_SECONDS):
            while clean_looks < 2:
                try:
                    left = await _left(stage)
                except DokployError as error:
                    stage.left = [f"what has the mark {stage.mark}…; it could not be looked for ({error})"]
                    if error.permanent:
                        break
                else:
                    stage.left = [what for what, _ in left]
                    clean_looks = 0 if left else clean_looks + 1
                    if left and removals == CLEARINGS:
                        break
                    if left:
                        removals += 1
                        marks = {mark for _, mark in left}
                        stacks = [stack for stack in stage.stacks.values() if stack.spec.mark in marks]
                        await asyncio.gather(*(_take_away(stage, stack) for stack in stacks))
                await asyncio.sleep(base.RECHECK_SECONDS)
    except TimeoutError:
        stage.say(f"           not all could be taken away within {CLEARING_SECONDS:.0f} s")


async def _take_away(stage: Stage, stack: Stack) -> None:
    try:
        await stack.remove()
    except Failure as failure:
        stage.say(f"           {stack.spec.name} could not be removed: {failure.message}")


async def _left(stage: Stage) -> list[tuple[str, str]]:
    """Everything at Dokploy that has a mark of ours: what it is, and its stack's mark."""
    found = []
    for project in await stage.dokploy.projects():
        if project.description.startswith(stage.mark):
            found.append((f"project {project.name} ({project.id})", project.description))
            for environment in await stage.dokploy.environments(project.id):
                found += [(f"application {a.name} ({a.id})", a.description) for a in environment.applications]
    for job in await stage.dokploy.queue():
        if job.title.startswith(stage.mark):
            found.append((f"a deploy in the queue ({job.title})", "/".join(job.title.split("/")[:3])))
    return found
