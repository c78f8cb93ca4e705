"""Connects rows to the engine: claims due deployments, renews their leases, runs the engine, releases them.

There is one runner per process, on the process's event loop. A notification makes it claim what is due; so does the
periodic sweep.
"""

import asyncio
import logging
import os
import secrets
import socket
import time
from contextlib import suppress
from dataclasses import replace
from typing import ClassVar

from asgiref.sync import sync_to_async
from django.conf import settings

from .. import encryption
from ..engine import orchestrator
from ..engine.dokploy import Dokploy
from ..engine.errors import Cancelled, Failure, Interrupted
from ..engine.recipe import RECIPES
from ..engine.reporter import Reporter
from ..engine.spec import StackSpec
from ..models import DATABASE_AWAY, Deployment
from ..models.deployment import CRASHES
from ..realtime import pubsub
from . import failpoints, watchdog
from .claimed_deployment import SELF_STOP_SECONDS, ClaimedDeployment, reconnect
from .outcome import fail_removal, portal_failure, stored_failure, undo
from .sweeper import sweep_periodically

HEARTBEAT_SECONDS = 10.0
DRAIN_SECONDS = 9.0  # a call to Dokploy takes at most 8
RELEASE_SECONDS = 2.0
CLOSE_SECONDS = 1.0

log = logging.getLogger(__name__)


class Runner:
    """Runs due deployments, at most `limit` at a time.

    sweep: seconds between looking for due deployments without a notification; 0 waits for notifications only.
    """

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
        self._claimed: dict[str, ClaimedDeployment] = {}
        self._supervisors: set[asyncio.Task[None]] = set()  # running, or releasing
        self._draining = False

    @classmethod
    def current(cls) -> "Runner":
        """Return the process's runner; the first call starts it on the running event loop."""
        if cls._current is None:
            cls._current = cls()
            cls._current.start()
        return cls._current

    def start(self) -> None:
        """Start the tasks that claim, renew leases and sweep."""
        pubsub.bind_loop()
        self._claiming = asyncio.create_task(self._claim_due())
        self._periodic = [asyncio.create_task(task) for task in (self._heartbeat(), sweep_periodically(self._dokploy))]
        for task in (self._claiming, *self._periodic):
            task.add_done_callback(_exit_on_failure)

    def notify(self) -> None:
        """Make the runner look for due deployments. Returns at once."""
        self._wakeup.set()

    async def drain(self) -> None:
        """Claim no more, let calls in progress finish, release every deployment.

        Takes at most 13 seconds, whatever is away: a lease that cannot be released in time lapses.
        """
        self._draining = True
        for task in self._periodic:
            task.cancel()
        self.notify()  # cancelling the claiming task could lose a deployment that it is claiming
        for claimed in self._claimed.values():
            claimed.stop()
        await self._wait_idle(DRAIN_SECONDS)
        self._claiming.cancel()
        for claimed in self._claimed.values():
            claimed.task.cancel()
        await self._wait_idle(RELEASE_SECONDS)
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._dokploy.aclose()
        await pubsub.flush()

    async def _wait_idle(self, seconds: float) -> None:
        """Wait until nothing is being claimed, run or released, at most `seconds`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while busy := [task for task in (self._claiming, *self._supervisors) if not task.done()]:
                    await asyncio.wait(busy)

    # -- claiming and running ------------------------------------------------------------------------------------------

    async def _claim_due(self) -> None:
        while not self._draining:
            self._wakeup.clear()
            try:
                while len(self._claimed) < self.limit and not self._draining and (deployment := await self._claim()):
                    self._begin(deployment)
            except DATABASE_AWAY as error:
                log.warning("Claiming waits for the database: %s", str(error).strip())
                await reconnect()
                self.notify()
            except Exception:  # the runner must go on claiming, whatever failed
                log.exception("Claiming failed; trying again")
                await asyncio.sleep(1)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wakeup.wait(), self.sweep or None)

    async def _claim(self) -> Deployment | None:
        return await sync_to_async(Deployment.claim)(self.name, excluding=list(self._claimed))

    def _begin(self, deployment: Deployment) -> None:
        claimed = ClaimedDeployment(deployment)
        claimed.draining = self._draining
        claimed.task = asyncio.create_task(self._supervise(claimed))
        self._claimed[deployment.pk] = claimed
        self._supervisors.add(claimed.task)
        claimed.task.add_done_callback(self._supervisors.discard)

    async def _supervise(self, claimed: ClaimedDeployment) -> None:
        """Run one deployment until it ends or must be released."""
        release = claimed.interruptible = True
        try:
            if not claimed.draining:
                await self._run(claimed)
        except (Interrupted, asyncio.CancelledError):
            pass
        except Exception:
            release = False  # the lease lapses, which counts as a crash: repeated crashes end the deployment
            log.exception("%s stopped unexpectedly; it resumes when its lease lapses", claimed.deployment.pk)
        finally:
            del self._claimed[claimed.deployment.pk]
            if release:
                await self._release(claimed)
            if not self._draining:
                self.notify()

    async def _release(self, claimed: ClaimedDeployment) -> None:
        """Release the lease. While the database is away, try until the lease lapses."""
        while True:
            try:
                await sync_to_async(claimed.deployment.release)()
                return
            except DATABASE_AWAY:
                if time.monotonic() - claimed.lease_renewed_at > SELF_STOP_SECONDS:
                    log.warning("%s could not be released; its lease will lapse", claimed.deployment.pk)
                    return
                await reconnect()

    async def _run(self, claimed: ClaimedDeployment) -> None:
        deployment = claimed.deployment
        claimed.hit("claim", failpoints.AFTER_COMMIT)
        reporter = await claimed.in_db(_reporter, claimed)
        dokploy = self._dokploy.for_deployment(claimed.before_change, claimed.record_exchange)
        try:
            spec, former = await claimed.in_db(_specs, deployment)
            reporter.secrets = (settings.DOKPLOY_API_KEY, *spec.secrets, *(former.secrets if former else ()))
            if deployment.error:  # resumed while undoing
                failure = stored_failure(deployment.error)
                if deployment.crashes >= 2 * CRASHES:
                    left = ["what this deployment created (the portal was stopped repeatedly while removing it)"]
                    await reporter.finish("failed", "failure", "The undo was given up", error=failure, leftovers=left)
                    return
            elif deployment.crashes >= CRASHES:
                failure = portal_failure("TOO_MANY_CRASHES", deployment.phase)
            elif deployment.cancel_requested_at:
                failure = portal_failure("CANCELLED", deployment.phase)
            else:
                try:
                    await self._deploy(claimed, dokploy, spec, reporter)
                    return
                except Failure as error:
                    failure = error
                except Cancelled:
                    failure = portal_failure("CANCELLED", deployment.phase)
                    secrets, reporter = reporter.secrets, await claimed.in_db(_reporter, claimed)
                    reporter.secrets = secrets
            claimed.undoing = True
            if deployment.kind == Deployment.Kind.REMOVE:
                await fail_removal(claimed, reporter, failure)
            else:
                await undo(deployment, dokploy, spec, former, reporter, failure)
        except (Interrupted, *DATABASE_AWAY, MemoryError):
            raise
        except encryption.DecryptionError as error:
            log.error("%s cannot begin: %s", deployment.pk, error)
            failure = portal_failure("SECRET_UNREADABLE", reporter.phase)
            await reporter.finish("failed", "failure", failure.message, error=failure)
        except Exception:
            log.exception("%s failed because of an error in the portal", deployment.pk)
            failure = portal_failure("DEPLOYMENT_FAILED", reporter.phase)
            await reporter.finish("failed", "failure", failure.message, error=failure)

    async def _deploy(self, claimed: ClaimedDeployment, dokploy: Dokploy, spec: StackSpec, reporter: Reporter) -> None:
        """Run the recipe from its first or interrupted phase to its end."""
        deployment = claimed.deployment
        if deployment.phase != "initializing":
            await reporter.note("Resumed after an interruption")
        await orchestrator.run(
            dokploy,
            spec,
            reporter,
            phases=RECIPES[deployment.kind],
            first_phase=await claimed.in_db(deployment.first_phase),
            patience=settings.DOKPLOY_PATIENCE_SECONDS,
        )
        await reporter.finish("completed", "success", deployment.success_message(), progress=100)

    # -- leases --------------------------------------------------------------------------------------------------------

    async def _heartbeat(self) -> None:
        """Renew the leases of all claimed deployments every HEARTBEAT_SECONDS; stop work on those that are lost."""
        pause = HEARTBEAT_SECONDS
        while True:
            await asyncio.sleep(pause)
            pause = HEARTBEAT_SECONDS
            claimed, asked_at = dict(self._claimed), time.monotonic()  # a copy: more may begin during the query
            if not claimed:
                continue
            try:
                held = await sync_to_async(Deployment.heartbeat)(self.name, list(claimed))
            except DATABASE_AWAY as error:
                log.warning("The heartbeat waits for the database: %s", str(error).strip())
                await reconnect()
                pause = 0  # after another HEARTBEAT_SECONDS every deployment would have stopped itself
                continue
            except Exception:
                log.exception("The heartbeat failed")
                continue
            for id, one in claimed.items():
                if id in held:
                    one.lease_renewed_at = asked_at
                elif self._claimed.get(id) is one:  # otherwise it has ended and is being released
                    one.task.cancel()


def _reporter(claimed: ClaimedDeployment) -> Reporter:
    deployment = claimed.deployment
    reporter = Reporter(
        claimed.report,
        resources=deployment.recorded_resources(),
        pending=deployment.pending_resources(),
        recorded_ids=deployment.recorded_ids(),
        logged=deployment.reported_log_lines(),
    )
    reporter.phase = deployment.phase
    return reporter


def _specs(deployment: Deployment) -> tuple[StackSpec, StackSpec | None]:
    """Return the spec to deploy and, for a redeployment, the spec to restore if its secrets can be decrypted."""
    spec = deployment.stack_spec()
    former = deployment.last_successful() if deployment.kind == Deployment.Kind.REDEPLOY else None
    if former is None or not former.has_readable_secrets():
        return spec, None
    # A name of its own: under the former one its finished Dokploy deployment would be found and nothing sent.
    restored = replace(former.stack_spec(), deployment=f"{spec.deployment}.restore")
    return spec, restored.pinned(former.recorded_resources().image_digest)


def _exit_on_failure(task: asyncio.Task[None]) -> None:
    """End the process if one of the runner's own tasks has failed: it would claim, renew or sweep no more."""
    if not task.cancelled() and task.exception():
        watchdog.end(b"A task of the runner has failed; exiting (70) so the supervisor restarts the process.")
