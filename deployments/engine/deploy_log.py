"""The log of a Dokploy deployment, reported while it is written: from the WebSocket, or by polling where that fails."""

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import TypeVar

from .dokploy import Dokploy, DokployDeployment
from .errors import NotFound, Refused, Unavailable
from .reporter import Reporter
from .retry import read_patiently

PATIENCE_SECONDS = 60.0  # enough for a short outage; a lasting error must not hold up a finished deployment

T = TypeVar("T")


class DeployLog:
    """Follows the log of one Dokploy deployment at a time. As a context manager, it stops following on exit.

    A separate task reads the WebSocket and does nothing else. The caller's task makes all reports, one after the other,
    so that an exception of a report reaches the caller, and no report is cancelled when the deployment ends.
    """

    def __init__(self, dokploy: Dokploy, reporter: Reporter) -> None:
        self._dokploy = dokploy
        self._reporter = reporter
        self._deployment_id = ""
        self._reader: asyncio.Task[None] | None = None
        self._received: list[str] = []
        self._text_arrived = asyncio.Event()
        self._read_refused = False

    async def __aenter__(self) -> "DeployLog":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stop()

    async def poll(self, dokploy_deployment: DokployDeployment) -> None:
        """Start to follow the log, or read it over HTTP. Call this regularly while the Dokploy deployment runs.

        The first call for a Dokploy deployment starts to follow its log over the WebSocket. A later call reads the log
        with a request and reports it, but only if the WebSocket has failed or has sent nothing.
        """
        id = dokploy_deployment.id
        if id != self._deployment_id:
            await self._stop()
            self._deployment_id, self._received, self._read_refused = id, [], False
            self._reader = asyncio.create_task(self._read(dokploy_deployment))
        elif self._is_silent() and not self._read_refused and not self._reporter.is_full(id):
            try:
                log = await self._dokploy.read_deploy_log(id)
            except (Refused, NotFound):  # reported once, by read_complete
                self._read_refused = True
            except Unavailable:  # the caller's own requests notice an outage
                pass
            else:
                await self._reporter.log(id, log, complete=False)

    async def while_following(self, call: Awaitable[T]) -> T:
        """Await the call and return its result. Meanwhile, report what the WebSocket sends."""
        task = asyncio.ensure_future(call)
        arrival = asyncio.ensure_future(self._text_arrived.wait())
        try:
            while not task.done():
                await asyncio.wait({task, arrival}, return_when=asyncio.FIRST_COMPLETED)
                if arrival.done():
                    self._text_arrived.clear()
                    arrival = asyncio.ensure_future(self._text_arrived.wait())
                    await self._reporter.log(self._deployment_id, self._text(), complete=False)
            return task.result()
        finally:
            task.cancel()
            arrival.cancel()
            await asyncio.gather(task, arrival, return_exceptions=True)

    async def read_complete(self, dokploy_deployment: DokployDeployment) -> str:
        """Return the whole log of a Dokploy deployment that has ended, and report the lines not reported yet.

        When Dokploy does not return the log, report a note and return the text that the WebSocket sent.
        """
        await self._stop()
        try:
            log = await read_patiently(
                lambda: self._dokploy.read_deploy_log(dokploy_deployment.id), self._reporter, PATIENCE_SECONDS
            )
        except (Refused, NotFound, Unavailable) as error:
            await self._reporter.note(f"The log cannot be read: {error}")
            log = self._text()
        await self._reporter.log(dokploy_deployment.id, log, complete=True)
        return log

    async def _read(self, dokploy_deployment: DokployDeployment) -> None:
        with contextlib.suppress(Unavailable):
            async with contextlib.aclosing(self._dokploy.follow_log(dokploy_deployment.log_path)) as pieces:
                async for text in pieces:
                    self._received.append(text)
                    self._text_arrived.set()
                    if self._reporter.is_full(dokploy_deployment.id):
                        return

    def _is_silent(self) -> bool:
        """Return whether the WebSocket has failed or has sent nothing yet."""
        return not self._received or self._reader is None or self._reader.done()

    def _text(self) -> str:
        return "".join(self._received)

    async def _stop(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait({self._reader})
            self._reader = None
