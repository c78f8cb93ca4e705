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

from .. import encryption
from ..engine import failures, orchestrator
from ..engine.dokploy import Dokploy, Exchange
from ..engine.errors import Cancelled, Failure, Interrupted
from ..engine.recipe import RECIPES, REMOVAL
from ..engine.reporter import Reporter
from ..engine.spec import Progress, StackSpec
from ..models import DATABASE_AWAY, Deployment, LeaseLost
from ..models.deployment import CRASHES
from ..realtime import pubsub
from . import failpoints, watchdog
from .sweeper import sweep_periodically

HEARTBEAT_SECONDS = 10.0
SELF_STOP_SECONDS = 20.0  # a worker that could not renew for so long stops itself, before others may take over
DRAIN_SECONDS = 9.0  # for the calls in hand, which take 8 at most
RELEASE_SECONDS = 2.0
READS_KEPT = 300

T = TypeVar("T")

log = logging.getLogger(__name__)


class ClaimedDeployment:
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
        self.hit(procedure, failpoints.BEFORE_CALL)

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

    def record_exchange(self, exchange: Exchange) -> None:
        """Every change, and the questions until there are many: polls of a long pull say nothing new."""
        if exchange.method == "POST":
            self.hit(exchange.procedure, failpoints.ANSWERED)
        if exchange.method == "POST" or len(self.requests) < READS_KEPT:
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
        self.hit(what, failpoints.BEFORE_COMMIT, progress.phase)
        self.deployment.record(progress, self.requests)
        self.hit(what, failpoints.AFTER_COMMIT, progress.phase)

    def hit(self, what: str, where: str, phase: str = "") -> None:
        run = self.deployment
        failpoints.hit(run.stack.name, run.pk, phase or run.phase, what, where)


class Runner:
    """Runs what is due, `limit` at a time. `sweep`: seconds between looks without a bell; 0 looks at bells only."""

    _current: ClassVar["Runner | None"] = None

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
        self._wakeup = asyncio.Event()
        self._runs: dict[str, ClaimedDeployment] = {}
        self._driving: set[asyncio.Task[None]] = set()  # those of the runs, and those that are letting go
        self._draining = False

    @classmethod
    def current(cls) -> "Runner":
        """The process's runner, started on the running loop when it is first asked for."""
        if cls._current is None:
            cls._current = cls()
            cls._current.start()
        return cls._current

    def start(self) -> None:
        pubsub.bind_loop()
        self._looking = asyncio.create_task(self._claim_due())
        self._others = [asyncio.create_task(task) for task in (self._beat(), sweep_periodically(self._dokploy))]
        for task in (self._looking, *self._others):
            task.add_done_callback(_exit_on_failure)

    def notify(self) -> None:
        """Something may be due. Returns at once."""
        self._wakeup.set()

    async def drain(self) -> None:
        """Claims no more, gives the calls in hand a moment, lets go of every run. Takes 13 seconds at most, whatever is
        away: what cannot be let go in time is left to its lease."""
        self._draining = True
        for task in self._others:
            task.cancel()
        self.notify()  # not by cancelling the task: a claim in progress would be lost
        for run in self._runs.values():
            run.stop()
        await self._wait_idle(DRAIN_SECONDS)
        self._looking.cancel()
        for run in self._runs.values():
            run.task.cancel()
        await self._wait_idle(RELEASE_SECONDS)
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                await self._dokploy.aclose()
        await pubsub.flush()

    async def _wait_idle(self, seconds: float) -> None:
        """Until nothing is looked for, and every run is let go."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while working := [task for task in (self._looking, *self._driving) if not task.done()]:
                    await asyncio.wait(working)

    # -- work ----------------------------------------------------------------------------------------------------------

    async def _claim_due(self) -> None:
        while not self._draining:
            self._wakeup.clear()
            try:
                while len(self._runs) < self.limit and not self._draining and (found := await self._claim()):
                    self._begin(found)
            except DATABASE_AWAY as error:
                log.warning("Looking for work waits for the database: %s", str(error).strip())
                await _reconnect()
                self.notify()
            except Exception:  # whatever it was: a runner that looks for nothing any more helps nobody
                log.exception("Looking for work failed")
                await asyncio.sleep(1)
            try:
                await asyncio.wait_for(self._wakeup.wait(), self.sweep or None)
            except TimeoutError:
                continue

    async def _claim(self) -> Deployment | None:
        return await sync_to_async(Deployment.claim)(self.name, excluding=list(self._runs))

    def _begin(self, deployment: Deployment) -> None:
        run = ClaimedDeployment(deployment)
        run.draining = self._draining
        run.task = asyncio.create_task(self._drive(run))
        self._runs[deployment.pk] = run
        self._driving.add(run.task)
        run.task.add_done_callback(self._driving.discard)

    async def _drive(self, run: ClaimedDeployment) -> None:
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
                await self._release(run)
            if not self._draining:
                self.notify()

    async def _release(self, run: ClaimedDeployment) -> None:
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

    async def _deploy(self, run: ClaimedDeployment) -> None:
        deployment = run.deployment
        run.hit("claim", failpoints.AFTER_COMMIT)
        reporter = await run.ask(_reporter, run)
        dokploy = self._dokploy.for_run(run.guard, run.record_exchange)
        patience = settings.DOKPLOY_PATIENCE_SECONDS
        try:
            spec, former = await run.ask(_specs, deployment)
            reporter.secrets = (settings.DOKPLOY_API_KEY, *spec.secrets, *(former.secrets if former else ()))
            if deployment.error:  # taken up again while undoing
                failure = _failure_of(deployment.error)
                if deployment.crashes >= 2 * CRASHES:
                    left = ["what this deployment made (the portal was stopped again and again while removing it)"]
                    await reporter.finish("failed", "failure", "The undo was given up", error=failure, left=left)
                    return
            elif deployment.crashes >= CRASHES:
                failure = _portal_failure("TOO_MANY_CRASHES", deployment.phase)
            elif deployment.cancel_requested_at:
                failure = _portal_failure("CANCELLED", deployment.phase)
            else:
                if deployment.phase != "initializing":
                    await reporter.note("Taken up again after an interruption")
                try:
                    begin, phases = await run.ask(deployment.first_phase), RECIPES[deployment.kind]
                    await orchestrator.run(dokploy, spec, reporter, phases=phases, first_phase=begin, patience=patience)
                    await reporter.finish("completed", "success", deployment.success_message(), progress=100)
                    return
                except Failure as error:
                    failure = error
                except Cancelled:
                    failure = _portal_failure("CANCELLED", deployment.phase)
                    secrets, reporter = reporter.secrets, await run.ask(_reporter, run)
                    reporter.secrets = secrets
            run.undoing = True
            if deployment.kind == Deployment.Kind.REMOVE:
                await self._fail_removal(run, reporter, failure)
            else:
                await self._undo(deployment, dokploy, spec, former, reporter, failure, patience)
        except (Interrupted, *DATABASE_AWAY, MemoryError):
            raise
        except encryption.DecryptionError as locked:
            log.error("%s cannot begin: %s", deployment.pk, locked)
            failure = _portal_failure("SECRET_UNREADABLE", reporter.phase)
            await reporter.finish("failed", "failure", failure.message, error=failure)
        except Exception:
            log.exception("%s failed in the portal's own code", deployment.pk)
            failure = _portal_failure("DEPLOYMENT_FAILED", reporter.phase)
            await reporter.finish("failed", "failure", failure.message, error=failure)

    async def _undo(
        self,
        deployment: Deployment,
        dokploy: Dokploy,
        spec: StackSpec,
        former: StackSpec | None,
        reporter: Reporter,
        failure: Failure,
        patience: float,
    ) -> None:
        """After a failure: removes what this stack made, or gives a stack that ran before its former settings back."""
        nothing, redeploys = None, deployment.kind == Deployment.Kind.REDEPLOY
        if reporter.phase == "rolling_back":
            pass  # taken up again in the middle of it
        elif not reporter.pending:
            nothing = "Nothing was made, so there is nothing to undo"
        elif deployment.changed_nothing(failure.phase):
            nothing = "Nothing was changed, so there is nothing to undo"
        if nothing:
            await reporter.finish("failed", "failure", nothing, error=failure)
            return
        await reporter.begin("rolling_back", 95, "Undoing", error=failure)
        if former is not None:
            left = await orchestrator.restore(dokploy, former, reporter, patience=patience)
        elif redeploys:
            left = ["the former version (a secret of it cannot be read any more)"]
        else:
            left = await orchestrator.undo(dokploy, spec, reporter, patience=patience)
        message = f"Left at Dokploy: {'; '.join(left)}" if left else "Rollback completed"
        await reporter.finish("rolling_back", "failure", message, error=failure, left=left)

    async def _fail_removal(self, run: ClaimedDeployment, reporter: Reporter, failure: Failure) -> None:
        """After a removal that failed: there is nothing to undo, what it did not come to is named."""
        if not await run.ask(run.deployment.changed_anything):
            await reporter.finish("failed", "failure", "Nothing was removed, so nothing has changed", error=failure)
            return
        names = [phase.name for phase in REMOVAL]
        first = names.index(failure.phase) if failure.phase in names else 0
        kinds = [name.removeprefix("removing_") for name in names[first:]]
        for kind in kinds:
            await reporter.left_behind(kind, None, failure.message)
        message = f"Left at Dokploy: the {', the '.join(kinds)}"
        await reporter.finish("failed", "failure", message, error=failure, left=[f"the {kind}" for kind in kinds])

    # -- leases --------------------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        pause = HEARTBEAT_SECONDS
        while True:
            await asyncio.sleep(pause)
            pause = HEARTBEAT_SECONDS
            runs, asked = dict(self._runs), time.monotonic()  # as they are now: while it is asked more may begin
            if not runs:
                continue
            try:
                held = await sync_to_async(Deployment.heartbeat)(self.name, list(runs))
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


def _reporter(run: ClaimedDeployment) -> Reporter:
    deployment = run.deployment
    reporter = Reporter(
        run.report,
        resources=deployment.recorded_resources(),
        pending=deployment.pending_resources(),
        recorded_ids=deployment.recorded_ids(),
        logged=deployment.reported_log_lines(),
    )
    reporter.phase = deployment.phase
    return reporter


def _specs(deployment: Deployment) -> tuple[StackSpec, StackSpec | None]:
    """What is asked for, and, for a redeploy, what ran before, as far as its secrets can be read."""
    spec = deployment.stack_spec()
    former = deployment.last_successful() if deployment.kind == Deployment.Kind.REDEPLOY else None
    if former is None or not former.has_readable_secrets():
        return spec, None
    # A run of its own at Dokploy: the former run's deploy is there already, and done.
    again = replace(former.stack_spec(), deployment=f"{spec.deployment}.restore")
    return spec, again.pinned(former.recorded_resources().image_digest)


def _exit_on_failure(task: asyncio.Task[None]) -> None:
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


def _portal_failure(code: str, phase: str) -> Failure:
    entry = failures.BY_CODE[code]
    failure = Failure(code, entry.what, retryable=entry.retryable)
    failure.phase = phase
    return failure
