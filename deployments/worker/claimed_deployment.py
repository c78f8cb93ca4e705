"""One deployment while this worker holds its lease."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypeVar

from ..background import in_database
from ..engine.dokploy import Exchange
from ..engine.errors import Cancelled
from ..engine.spec import Progress
from ..models import Deployment, LeaseLost
from . import failpoints

SELF_STOP_SECONDS = 20.0  # shorter than the lease: this worker stops before another may take over
READS_KEPT = 300

T = TypeVar("T")


class ClaimedDeployment:
    """The engine's connection to one deployment: its reports, its lease and its request log.

    Attributes:
        deployment: the row.
        work: the task that runs the engine. It can be cancelled at any time: a create call and the record of its
            result run to their end together.
        lease_renewed_at: when the lease was last renewed, by the monotonic clock.
        requests: the lines of the request log.
    """

    work: "asyncio.Task[None]"

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.lease_renewed_at = time.monotonic()
        self.requests: list[str] = []

    def require_lease(self) -> None:
        """Raise LeaseLost if the lease was last renewed more than SELF_STOP_SECONDS ago."""
        if time.monotonic() - self.lease_renewed_at > SELF_STOP_SECONDS:
            raise LeaseLost

    def before_change(self, procedure: str) -> None:
        """Allow one call that changes something at Dokploy. Raise LeaseLost when the lease may have lapsed."""
        self.require_lease()
        self.hit(procedure, failpoints.BEFORE_CALL)

    def record_exchange(self, exchange: Exchange) -> None:
        """Keep a line of the request log: every change, and reads until the log has READS_KEPT lines."""
        if exchange.method == "POST":
            self.hit(exchange.procedure, failpoints.ANSWERED)
        if exchange.method == "POST" or len(self.requests) < READS_KEPT:
            self.requests.append(str(exchange))

    async def in_db(self, query: Callable[..., T], *arguments: Any) -> T:
        """Return the result of a database function, run in a thread.

        While the database is unavailable, try again until the lease lapses; then raise LeaseLost.
        """
        return await in_database(query, *arguments, before_try=self.require_lease, name=self.deployment.pk)

    async def report(self, progress: Progress) -> None:
        """Commit one report of the engine: this is the progress callback.

        Raise LeaseLost, and write nothing, when the lease is lost. Raise Cancelled when a user has cancelled the
        deployment: after the commit, or without writing anything if the report says success.
        """
        await self.in_db(self._record, progress)
        deployment = self.deployment
        if deployment.cancel_requested_at and not deployment.error and not deployment.done:
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
