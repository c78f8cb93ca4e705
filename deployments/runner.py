"""The bridge between rows and engine: claims runs, keeps their leases, runs the engine, lets go in order.

One runner per process, on its loop. A ring of the bell makes it look for what is due; the sweep looks by itself.
"""

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

from asgiref.sync import sync_to_async
from django.conf import settings
from django.db import close_old_connections

from . import faults, live, vault, watchdog
from .engine import diagnosis, orchestrator
from .engine.dokploy import Dokploy, Exchange
from .engine.errors import Cancelled, Failure, Interrupted
from .engine.journal import Journal
from .engine.recipe import RECIPES, REMOVAL
from .engine.spec import Progress, StackSpec
from .models import DATABASE_AWAY, Deployment, LeaseLost
from .models.deployment import CRASHES
from .sweeper import sweep_for_ever

BEAT_SECONDS = 10.0
SELF_STOP_SECONDS = 20.0  # a worker that could not renew for so long stops itself, before others may take over
DRAIN_SECONDS = 9.0  # for the calls in hand, which take 8 at most
LET_GO_SECONDS = 2.0
QUESTIONS_KEPT = 300

T = TypeVar("T")

log = logging.getLogger(__name__)


class Run:
    """One deployment in the hands of this worker."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.renewed = time.monotonic()
        self.requests: list[str] = []
        self.task: asyncio.Task[None]
        self.breakable = False  # not before it has begun, nor between a call and the report of what it did
        self.draining = False
        self.undoing = bool(deployment.error)

    def stop(self) -> None:
        """Ends it at once, or after the call in hand."""
        self.draining = True
        if self.breakable:
            self.task.cancel()

    def guard(self, procedure: str) -> None:
        """Right before each call that changes something: is the lease surely still ours, and are we to go on?"""
        if self.draining:
            raise Interrupted
        self.check_lease()
        self.breakable = False
        self.reach(procedure, faults.BEFORE_CALL)

    def check_lease(self) -> None:
        if time.monotonic() - self.renewed > SELF_STOP_SECONDS:
            raise LeaseLost

    async def ask(self, question: Callable[..., T], *given: Any) -> T:
        """Of the database, in one thread hop. While it is away the lease bounds the waiting."""
        while True:
            self.check_lease()
            try:
                return await sync_to_async(question)(*given)
            except DATABASE_AWAY as error:
                log.warning("%s waits for the database: %s", self.deployment.pk, str(error).strip())
                await _reconnect()

    def note_request(self, exchange: Exchange) -> None:
        """Every change, and the questions until there are many: polls of a long pull say nothing new."""
        if exchange.method == "POST":
            self.reach(exchange.procedure, faults.ANSWERED)
        if exchange.method == "POST" or len(self.requests) < QUESTIONS_KEPT:
            self.requests.append(str(exchange))

    async def report(self, progress: Progress) -> None:
        """THE progress callback: when it returns, the report is committed. One transaction, one thread hop.

        Raises Interrupted when the run is to stop: with nothing written where the lease is lost, after the commit
        where this worker is being drained or the run was cancelled.
        """
        await self.ask(self._record, progress)
        if "alive" not in progress.data:  # a sign of life says nothing of the call in hand
            self.breakable = True
            if self.draining:
                raise Interrupted
        if self.deployment.cancel_requested_at and not self.undoing:
            raise Cancelled

    def _record(self, progress: Progress) -> None:
        if "alive" in progress.data:  # how often depends on the machine: no point that can be named
            self.deployment.record(progress, self.requests)
            return
        said = (progress.kind, progress.data.get("state"), progress.data.get("kind"), progress.data.get("step"))
        what = ".".join(filter(None, said))
        self.reach(what, faults.BEFORE_COMMIT, progress.phase)
        self.deployment.record(progress, self.requests)
        self.reach(what, faults.AFTER_COMMIT, progress.phase)

    def reach(self, what: str, where: str, phase: str = "") -> None:
        run = self.deployment
        faults.reach(run.stack.name, run.pk, phase or run.phase, what, where)


class Runner:
    """Runs what is due, `limit` at a time. `sweep`: seconds between looks without a bell; 0 looks at bells only."""

    _of_this_process: ClassVar["Runner | None"] = None

    def __init__(self, *, limit: int | None = None, sweep: float | None = None, dokploy: Dokploy | None = None) -> None:
        self.name = f"{socket.gethostname()[:30]}:{os.getpid()}:{secrets.token_hex(4)}"
        self.limit = settings.RUNNER_LIMIT if limit is None else limit
        self.sweep = settings.RUNNER_SWEEP_SECONDS if sweep is None else sweep
        self._dokploy = dokploy or Dokploy(
            settings.DOKPLOY_URL,
            settings.DOKPLOY_API_KEY,
            connections=min(self.limit, 50),
            calls_per_second=settings.DOKPLOY_CALLS_PER_SECOND,
        )
        self._bell = asyncio.Event()
        self._runs: dict[str, Run] = {}
        self._driving: set[asyncio.Task[None]] = set()  # those of the runs, and those that are letting go
        self._draining = False

    @classmethod
    def of_this_process(cls) -> "Runner":
        """The process's runner, started on the running loop when it is first asked for."""
        if cls._of_this_process is None:
            cls._of_this_process = cls()
            cls._of_this_process.start()
        return cls._of_this_process

    def start(self) -> None:
        live.bind()
        self._looking = asyncio.create_task(self._look_for_work())
        self._others = [asyncio.create_task(task) for task in (self._beat(), sweep_for_ever(self._dokploy))]
        for task in (self._looking, *self._others):
            task.add_done_callback(_must_not_fail)

    def ring(self) -> None:
        """Something may be due. Returns at once."""
        self._bell.set()

    async def drain(self) -> None:
        """Claims no more, gives the calls in hand a moment, lets go of every run. Takes 13 seconds at most, whatever is
        away: what cannot be let go in time is left to its lease."""
        self._draining = True
        for task in self._others:
            task.cancel()
        self.ring()  # ends the look for work: not by cancelling it, or what it claims in this moment would be nobody's
        for run in self._runs.values():
            run.stop()
        await self._over(DRAIN_SECONDS)
        self._looking.cancel()
        for run in self._runs.values():
            run.task.cancel()
        await self._over(LET_GO_SECONDS)
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                await self._dokploy.aclose()
        await live.sent()

    async def _over(self, seconds: float) -> None:
        """Until nothing is looked for, and every run is let go."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while working := [task for task in (self._looking, *self._driving) if not task.done()]:
                    await asyncio.wait(working)

    # -- work ----------------------------------------------------------------------------------------------------------

    async def _look_for_work(self) -> None:
        while not self._draining:
            self._bell.clear()
            try:
                while len(self._runs) < self.limit and not self._draining and (found := await self._claim()):
                    self._begin(found)
            except DATABASE_AWAY as error:
                log.warning("Looking for work waits for the database: %s", str(error).strip())
                await _reconnect()
                self.ring()
            except Exception:  # whatever it was: a runner that looks for nothing any more helps nobody
                log.exception("Looking for work failed")
                await asyncio.sleep(1)
            try:
                await asyncio.wait_for(self._bell.wait(), self.sweep or None)
            except TimeoutError:
                continue

    async def _claim(self) -> Deployment | None:
        return await sync_to_async(Deployment.claim)(self.name, excluding=list(self._runs))

    def _begin(self, deployment: Deployment) -> None:
        run = Run(deployment)
        run.draining = self._draining
        run.task = asyncio.create_task(self._drive(run))
        self._runs[deployment.pk] = run
        self._driving.add(run.task)
        run.task.add_done_callback(self._driving.discard)

    async def _drive(self, run: Run) -> None:
        """Runs one deployment until it is over, or until it must be let go."""
        orderly = run.breakable = True
        try:
            if not run.draining:
                await self._deploy(run)
        except (Interrupted, asyncio.CancelledError):
            pass
        except Exception:
            orderly = False  # not let go: its lease lapses, which counts as a crash, so that this cannot go on for ever
            log.exception("%s stopped unexpectedly; it will be taken up again", run.deployment.pk)
        finally:
            del self._runs[run.deployment.pk]
            if orderly:
                await self._let_go(run)
            if not self._draining:
                self.ring()

    async def _let_go(self, run: Run) -> None:
        """While the database is away the drain's limit bounds the waiting, or the lease."""
        while True:
            try:
                await sync_to_async(run.deployment.release)()
                return
            except DATABASE_AWAY:
                if time.monotonic() - run.renewed > SELF_STOP_SECONDS:
                    log.warning("%s could not be let go; its lease will lapse", run.deployment.pk)
                    return
                await _reconnect()

    async def _deploy(self, run: Run) -> None:
        deployment = run.deployment
        run.reach("claim", faults.AFTER_COMMIT)
        journal = await run.ask(_journal, run)
        dokploy = self._dokploy.for_run(run.guard, run.note_request)
        patience = settings.DOKPLOY_PATIENCE_SECONDS
        try:
            spec, former = await run.ask(_specs, deployment)
            journal.secrets = (settings.DOKPLOY_API_KEY, *spec.secrets, *(former.secrets if former else ()))
            if deployment.error:  # taken up again while undoing
                failure = _failure_of(deployment.error)
                if deployment.crashes >= 2 * CRASHES:
                    left = ["what this deployment made (the portal was stopped again and again while removing it)"]
                    await journal.over("failed", "failure", "The undo was given up", error=failure, left=left)
                    return
            elif deployment.crashes >= CRASHES:
                failure = _own_failure("TOO_MANY_CRASHES", deployment.phase)
            elif deployment.cancel_requested_at:
                failure = _own_failure("CANCELLED", deployment.phase)
            else:
                if deployment.phase != "initializing":
                    await journal.note("Taken up again after an interruption")
                try:
                    begin, phases = await run.ask(deployment.begin_with), RECIPES[deployment.kind]
                    await orchestrator.run(dokploy, spec, journal, phases=phases, begin_with=begin, patience=patience)
                    await journal.over("completed", "success", deployment.last_words(), progress=100)
                    return
                except Failure as error:
                    failure = error
                except Cancelled:
                    failure = _own_failure("CANCELLED", deployment.phase)
                    secrets, journal = journal.secrets, await run.ask(_journal, run)
                    journal.secrets = secrets
            run.undoing = True
            if deployment.kind == Deployment.Kind.REMOVE:
                await self._leave(run, journal, failure)
            else:
                await self._undo(deployment, dokploy, spec, former, journal, failure, patience)
        except (Interrupted, *DATABASE_AWAY, MemoryError):
            raise
        except vault.Locked as locked:
            log.error("%s cannot begin: %s", deployment.pk, locked)
            failure = _own_failure("SECRET_UNREADABLE", journal.phase)
            await journal.over("failed", "failure", failure.message, error=failure)
        except Exception:
            log.exception("%s failed in the portal's own code", deployment.pk)
            failure = _own_failure("DEPLOYMENT_FAILED", journal.phase)
            await journal.over("failed", "failure", failure.message, error=failure)

    async def _undo(
        self,
        deployment: Deployment,
        dokploy: Dokploy,
        spec: StackSpec,
        former: StackSpec | None,
        journal: Journal,
        failure: Failure,
        patience: float,
    ) -> None:
        """After a failure: removes what this stack made, or gives a stack that ran before its former settings back."""
        nothing, redeploys = None, deployment.kind == Deployment.Kind.REDEPLOY
        if journal.phase == "rolling_back":
            pass  # taken up again in the middle of it
        elif not journal.intended:
            nothing = "Nothing was made, so there is nothing to undo"
        elif deployment.changed_nothing(failure.phase):
            nothing = "Nothing was changed, so there is nothing to undo"
        if nothing:
            await journal.over("failed", "failure", nothing, error=failure)
            return
        await journal.begin("rolling_back", 95, "Undoing", error=failure)
        if former is not None:
            left = await orchestrator.restore(dokploy, former, journal, patience=patience)
        elif redeploys:
            left = ["the former version (a secret of it cannot be read any more)"]
        else:
            left = await orchestrator.undo(dokploy, spec, journal, patience=patience)
        message = f"Left at Dokploy: {'; '.join(left)}" if left else "Rollback completed"
        await journal.over("rolling_back", "failure", message, error=failure, left=left)

    async def _leave(self, run: Run, journal: Journal, failure: Failure) -> None:
        """After a removal that failed: there is nothing to undo, what it did not come to is named."""
        if not await run.ask(run.deployment.done_something):
            await journal.over("failed", "failure", "Nothing was removed, so nothing has changed", error=failure)
            return
        names = [phase.name for phase in REMOVAL]
        first = names.index(failure.phase) if failure.phase in names else 0
        kinds = [name.removeprefix("removing_") for name in names[first:]]
        for kind in kinds:
            await journal.left(kind, None, failure.message)
        message = f"Left at Dokploy: the {', the '.join(kinds)}"
        await journal.over("failed", "failure", message, error=failure, left=[f"the {kind}" for kind in kinds])

    # -- leases --------------------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        pause = BEAT_SECONDS
        while True:
            await asyncio.sleep(pause)
            pause = BEAT_SECONDS
            runs, asked = dict(self._runs), time.monotonic()  # as they are now: while it is asked more may begin
            if not runs:
                continue
            try:
                held = await sync_to_async(Deployment.beat)(self.name, list(runs))
            except DATABASE_AWAY as error:
                log.warning("The heartbeat waits for the database: %s", str(error).strip())
                await _reconnect()
                pause = 0  # another ten seconds, and every run would stop itself
                continue
            except Exception:
                log.exception("The heartbeat failed")
                continue
            for id, run in runs.items():
                if id in held:
                    run.renewed = asked
                elif self._runs.get(id) is run:  # else it is over, and is being let go
                    run.task.cancel()


def _journal(run: Run) -> Journal:
    deployment = run.deployment
    journal = Journal(
        run.report,
        resources=deployment.known_resources(),
        intended=deployment.intended(),
        known=deployment.known_ids(),
        logged=deployment.logged_lines(),
    )
    journal.phase = deployment.phase
    return journal


def _specs(deployment: Deployment) -> tuple[StackSpec, StackSpec | None]:
    """What is asked for, and, for a redeploy, what ran before, as far as its secrets can be read."""
    spec = deployment.stack_spec()
    former = deployment.former() if deployment.kind == Deployment.Kind.REDEPLOY else None
    if former is None or not former.is_readable():
        return spec, None
    # A run of its own at Dokploy: the former run's deploy is there already, and done.
    again = replace(former.stack_spec(), run=f"{spec.run}.restore")
    return spec, again.pinned(former.known_resources().image_digest)


def _must_not_fail(task: asyncio.Task[None]) -> None:
    """Without it nothing would be begun, kept or removed any more, and nobody would see why."""
    if not task.cancelled() and task.exception():
        watchdog.end(b"A part of the runner has failed for good. The portal ends, to be started anew.")


async def _reconnect() -> None:
    await asyncio.sleep(0.5)
    await sync_to_async(close_old_connections)()


def _failure_of(error: dict[str, Any]) -> Failure:
    failure = Failure(error["code"], error["message"], evidence=error.get("evidence", ""), retryable=error["retryable"])
    failure.phase = error["phase"]
    return failure


def _own_failure(code: str, phase: str) -> Failure:
    entry = diagnosis.BY_CODE[code]
    failure = Failure(code, entry.what, retryable=entry.retryable)
    failure.phase = phase
    return failure
