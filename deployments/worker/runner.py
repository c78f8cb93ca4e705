"""Claims due deployments, renews their leases, runs the engine for them, and releases them.

There is one runner per process, on the process's event loop. It looks for due deployments after each
notification, and periodically.
"""

import asyncio
import logging
import os
import secrets
import socket
import time
from contextlib import suppress
from functools import partial
from typing import ClassVar

from django.conf import settings

from ..background import in_database, repeat
from ..engine.dokploy import Dokploy
from ..engine.errors import Interrupted
from ..engine.tasks import uninterrupted
from ..models import Deployment, LeaseLost
from ..realtime import pubsub
from . import watchdog
from .claimed_deployment import ClaimedDeployment
from .execution import execute
from .sweeper import sweep_periodically

HEARTBEAT_SECONDS = 10.0
CLAIM_SECONDS = 1.0
DRAIN_SECONDS = 9.0  # longer than a call to Dokploy can take (CALL_SECONDS)
RELEASE_SECONDS = 2.0
CLOSE_SECONDS = 1.0

log = logging.getLogger(__name__)


class Runner:
    """Runs due deployments, at most `limit` at a time.

    sweep: the longest time between two searches for due deployments, in seconds; 0: search only when notified.
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
        self._supervisors: set[asyncio.Task[None]] = set()  # of deployments that run or are being released

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
        heartbeat = repeat(self._renew_leases, HEARTBEAT_SECONDS, "The heartbeat")
        self._periodic = [asyncio.create_task(task) for task in (heartbeat, sweep_periodically(self._dokploy))]
        for task in (self._claiming, *self._periodic):
            task.add_done_callback(_exit_on_failure)

    def notify(self) -> None:
        """Make the runner look for due deployments. Returns at once."""
        self._wakeup.set()

    async def drain(self) -> None:
        """Claim no more, let the change in progress of each deployment end, release every deployment.

        Takes at most 13 seconds, even if a service is unavailable: a lease that cannot be released in time lapses.
        """
        for task in (self._claiming, *self._periodic):
            task.cancel()
        await asyncio.wait({self._claiming}, timeout=CLAIM_SECONDS)  # release what it has just claimed, too
        for seconds in (DRAIN_SECONDS, RELEASE_SECONDS):  # the second time, a change in progress is abandoned
            for claimed in self._claimed.values():
                claimed.work.cancel()
            await self._wait_idle(seconds)
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._dokploy.aclose()
        await pubsub.flush()

    async def _wait_idle(self, seconds: float) -> None:
        """Wait until no deployment runs or is being released, at most `seconds`."""
        if self._supervisors:
            await asyncio.wait(self._supervisors, timeout=seconds)

    # -- claiming and running ------------------------------------------------------------------------------------------

    async def _claim_due(self) -> None:
        while True:
            self._wakeup.clear()
            try:
                while len(self._claimed) < self.limit and await uninterrupted(self._claim_one()):
                    pass
            except Exception:  # the runner must go on claiming, whatever failed
                log.exception("Claiming failed; trying again")
                await asyncio.sleep(1)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wakeup.wait(), self.sweep or None)

    async def _claim_one(self) -> bool:
        """Claim the oldest due deployment and begin to run it. Return whether there was one."""
        claim = partial(Deployment.claim, excluding=list(self._claimed))
        deployment = await in_database(claim, self.name, name="Claiming")
        if deployment is not None:
            self._begin(deployment)
        return deployment is not None

    def _begin(self, deployment: Deployment) -> None:
        claimed = ClaimedDeployment(deployment)
        claimed.work = asyncio.create_task(execute(claimed, self._dokploy))
        self._claimed[deployment.pk] = claimed
        supervisor = asyncio.create_task(self._supervise(claimed))
        self._supervisors.add(supervisor)
        supervisor.add_done_callback(self._supervisors.discard)

    async def _supervise(self, claimed: ClaimedDeployment) -> None:
        """Wait until the work on a deployment has ended or was cancelled, then release it."""
        await asyncio.wait({claimed.work})
        del self._claimed[claimed.deployment.pk]
        error = None if claimed.work.cancelled() else claimed.work.exception()
        if error is None or isinstance(error, Interrupted):
            await self._release(claimed)
        else:  # the lease lapses, which counts as a crash: repeated crashes end the deployment
            text = "%s stopped unexpectedly; it resumes when its lease lapses"
            log.error(text, claimed.deployment.pk, exc_info=error)
        self.notify()

    async def _release(self, claimed: ClaimedDeployment) -> None:
        """Release the lease. While the database is unavailable, try until the lease lapses."""
        try:
            await claimed.in_db(claimed.deployment.release)
        except LeaseLost:
            log.warning("%s could not be released; its lease will lapse", claimed.deployment.pk)

    # -- leases --------------------------------------------------------------------------------------------------------

    async def _renew_leases(self) -> None:
        """Renew the leases of all claimed deployments, and stop work on those that are lost."""
        claimed = dict(self._claimed)  # a copy: more may begin during the query
        if not claimed:
            return
        queried_at = 0.0

        def note_time() -> None:
            nonlocal queried_at
            queried_at = time.monotonic()

        held = await in_database(
            Deployment.heartbeat, self.name, list(claimed), before_try=note_time, name="The heartbeat"
        )
        for id, one in claimed.items():
            if id in held:
                one.lease_renewed_at = queried_at
            elif self._claimed.get(id) is one:  # otherwise it has ended and is being released
                one.work.cancel()


def _exit_on_failure(task: asyncio.Task[None]) -> None:
    """End the process if a task of the runner has failed: nothing else claims deployments, renews leases or sweeps."""
    if not task.cancelled() and task.exception():
        watchdog.end(b"A task of the runner has failed; exiting (70) so the supervisor restarts the process.")
