"""One deployment while this worker holds its lease."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from asgiref.sync import sync_to_async
from django.db import close_old_connections

from ..engine.dokploy import Exchange
from ..engine.errors import Cancelled, Interrupted
from ..engine.spec import Progress
from ..models import DATABASE_AWAY, Deployment, LeaseLost
from . import failpoints

SELF_STOP_SECONDS = 20.0  # shorter than the lease: this worker stops before another may take over
RECONNECT_SECONDS = 0.5
READS_KEPT = 300

T = TypeVar("T")

log = logging.getLogger(__name__)


class ClaimedDeployment:
    """The engine's connection to one deployment: its reports, its lease, its request log, and the order to stop."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.lease_renewed_at = time.monotonic()
        self.requests: list[str] = []
        self.task: asyncio.Task[None]
        self.interruptible = False  # False before the task starts, and between a change and the report of its result
        self.draining = False
        self.undoing = bool(deployment.error)

    def stop(self) -> None:
        """Stop working on it: at once, or as soon as the result of a change in progress is reported."""
        self.draining = True
        if self.interruptible:
            self.task.cancel()

    def require_lease(self) -> None:
        """Raise LeaseLost if the lease was last renewed more than SELF_STOP_SECONDS ago."""
        if time.monotonic() - self.lease_renewed_at > SELF_STOP_SECONDS:
            raise LeaseLost

    def before_change(self, procedure: str) -> None:
        """Allow one call that changes something at Dokploy.

        Raise Interrupted while draining, LeaseLost when the lease may have lapsed.
        """
        if self.draining:
            raise Interrupted
        self.require_lease()
        self.interruptible = False
        self.hit(procedure, failpoints.BEFORE_CALL)

    def record_exchange(self, exchange: Exchange) -> None:
        """Keep a line of the request log: all changes, and the first READS_KEPT reads."""
        if exchange.method == "POST":
            self.hit(exchange.procedure, failpoints.ANSWERED)
        if exchange.method == "POST" or len(self.requests) < READS_KEPT:
            self.requests.append(str(exchange))

    async def in_db(self, query: Callable[..., T], *arguments: Any) -> T:
        """Return the result of a database function, run in a thread.

        While the database is away, try again until the lease lapses; then raise LeaseLost.
        """
        while True:
            self.require_lease()
            try:
                return await sync_to_async(query)(*arguments)
            except DATABASE_AWAY as error:
                log.warning("%s waits for the database: %s", self.deployment.pk, str(error).strip())
                await reconnect()

    async def report(self, progress: Progress) -> None:
        """Commit one report of the engine: this is the progress callback.

        Raise LeaseLost with nothing written; Interrupted (while draining) or Cancelled after the commit.
        """
        await self.in_db(self._record, progress)
        if "alive" not in progress.data:  # a heartbeat says nothing about a change in progress
            self.interruptible = True
            if self.draining:
                raise Interrupted
        if self.deployment.cancel_requested_at and not self.undoing:
            raise Cancelled

    def _record(self, progress: Progress) -> None:
        if "alive" in progress.data:  # the number of heartbeats varies, so they are not failpoints
            self.deployment.record(progress, self.requests)
            return
        parts = (progress.kind, progress.data.get("state"), progress.data.get("kind"), progress.data.get("step"))
        name = ".".join(filter(None, parts))
        self.hit(name, failpoints.BEFORE_COMMIT, progress.phase)
        self.deployment.record(progress, self.requests)
        self.hit(name, failpoints.AFTER_COMMIT, progress.phase)

    def hit(self, name: str, position: str, phase: str = "") -> None:
        """Pass a failpoint: in fault tests the process may be killed here."""
        deployment = self.deployment
        failpoints.hit(deployment.stack.name, deployment.pk, phase or deployment.phase, name, position)


async def reconnect() -> None:
    """Wait RECONNECT_SECONDS, then drop database connections that no longer work."""
    await asyncio.sleep(RECONNECT_SECONDS)
    await sync_to_async(close_old_connections)()
