"""One viewer of a topic."""

import asyncio
from collections.abc import Awaitable, Callable

from ..identity import Credential


class Watcher:
    """A WebSocket, a stream, a long poll or the terminal.

    A watcher with `push` (a WebSocket) gets each rendered frame. A watcher without it waits for a change and reads the
    topic.
    """

    def __init__(self, credential: Credential, audience: str, push: Callable[[str], Awaitable[None]] | None) -> None:
        self.credential, self.audience, self.push = credential, audience, push
        self.expired = False
        self._changed = asyncio.Event()

    def notify(self) -> None:
        """Wake the watcher: its topic changed."""
        self._changed.set()

    def expire(self) -> None:
        """Mark the watcher as expired and wake it: its credential is no longer valid."""
        self.expired = True
        self._changed.set()

    async def wait_for_change(self, seconds: float) -> bool:
        """Wait until the topic changes or the watcher expires. Return False if neither happens in this time."""
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return False
        self._changed.clear()
        return True
