"""The log of our deploy, reported while it is written: as the socket brings it, or by asking where it brings none."""

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import TypeVar

from .dokploy import Dokploy, DokployDeployment
from .errors import NotFound, Refused, Unavailable
from .reporter import Reporter

AGAIN_SECONDS = 1.0
PATIENCE_SECONDS = 60.0  # for the log of a deploy that has ended: an outage passes, an error may stay

T = TypeVar("T")


class DeployLog:
    """To be entered; when it is left nothing follows the log any more.

    A task of its own only reads the socket. All reports are made by who calls, one after the other: what a report
    raises goes up there, and none is broken off by the end of the deploy.
    """

    def __init__(self, dokploy: Dokploy, reporter: Reporter) -> None:
        self._dokploy = dokploy
        self._reporter = reporter
        self._build_id = ""
        self._reader: asyncio.Task[None] | None = None
        self._brought: list[str] = []
        self._grown = asyncio.Event()
        self._refused = False

    async def __aenter__(self) -> "DeployLog":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stop()

    async def look(self, build: DokployDeployment) -> None:
        """Once in every round while the deploy runs. The first begins to follow, once for each deploy; a later one asks
        for the log if the socket has brought nothing or has failed."""
        if build.id != self._build_id:
            await self._stop()
            self._build_id, self._brought, self._refused = build.id, [], False
            self._reader = asyncio.create_task(self._read(build))
        elif self._is_silent() and not self._refused and not self._reporter.is_full(build.id):
            try:
                log = await self._dokploy.read_deploy_log(build.id)
            except (Refused, NotFound):  # it is said at the end
                self._refused = True
            except Unavailable:  # of an outage the other questions tell
                pass
            else:
                await self._reporter.log(build.id, log, whole=False)

    async def during(self, act: Awaitable[T]) -> T:
        """Awaits it, and reports meanwhile what the socket brings."""
        task = asyncio.ensure_future(act)
        grown = asyncio.ensure_future(self._grown.wait())
        try:
            while not task.done():
                await asyncio.wait({task, grown}, return_when=asyncio.FIRST_COMPLETED)
                if grown.done():
                    self._grown.clear()
                    grown = asyncio.ensure_future(self._grown.wait())
                    await self._reporter.log(self._build_id, self._text(), whole=False)
            return task.result()
        finally:
            task.cancel()
            grown.cancel()
            await asyncio.gather(task, grown, return_exceptions=True)

    async def whole(self, build: DokployDeployment) -> str:
        """All of the log of a deploy that has ended, with what was not reported yet reported.

        Where Dokploy does not give it, that is noted, and what the socket has brought has to do.
        """
        await self._stop()
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            try:
                log = await self._dokploy.read_deploy_log(build.id)
                break
            except (Refused, NotFound, Unavailable) as error:
                if not isinstance(error, Unavailable) or loop.time() - began > PATIENCE_SECONDS:
                    await self._reporter.note(f"The log cannot be read: {error}")
                    log = self._text()
                    break
                await self._reporter.status(f"Waiting for Dokploy: {error}")
            await asyncio.sleep(AGAIN_SECONDS)
        await self._reporter.log(build.id, log, whole=True)
        return log

    async def _read(self, build: DokployDeployment) -> None:
        with contextlib.suppress(Unavailable):
            async with contextlib.aclosing(self._dokploy.follow_log(build.log_path)) as pieces:
                async for text in pieces:
                    self._brought.append(text)
                    self._grown.set()
                    if self._reporter.is_full(build.id):
                        return

    def _is_silent(self) -> bool:
        """The socket has failed, or nothing has come yet."""
        return not self._brought or self._reader is None or self._reader.done()

    def _text(self) -> str:
        return "".join(self._brought)

    async def _stop(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait({self._reader})
            self._reader = None
