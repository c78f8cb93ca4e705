"""Limit the number of requests to Dokploy: a rate limit for each API key, and shared calls."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")


class RateLimiter:
    """Allows `per_second` calls a second, and `burst` calls at once. Callers wait in the order of their arrival.

    A rate of 0 means no limit.
    """

    _by_key: "WeakValueDictionary[tuple[str, str, float], RateLimiter]" = WeakValueDictionary()

    def __init__(self, per_second: float, burst: int) -> None:
        self._interval = 1 / per_second if per_second else 0.0
        self._burst = burst
        self._next = 0.0  # when the next call would be due if calls came evenly (generic cell rate algorithm)

    @classmethod
    def for_key(cls, url: str, key: str, per_second: float) -> "RateLimiter":
        """Return the limiter that all clients of this process share for this server and API key.

        Its burst is the number of calls allowed in one second.
        """
        limiter = cls._by_key.get((url, key, per_second))
        if limiter is None:
            limiter = cls._by_key[url, key, per_second] = cls(per_second, max(int(per_second), 1))
        return limiter

    async def acquire(self) -> None:
        """Wait until a call is allowed."""
        now = time.monotonic()
        due = max(self._next, now)
        self._next = due + self._interval
        wait = due - now - (self._burst - 1) * self._interval
        if wait > 0:
            await asyncio.sleep(wait)


class SingleFlight(Generic[T]):
    """Combines concurrent calls into one.

    A caller that arrives while a call is in progress waits for the next call, so that no result is older than the
    caller's request. Two calls start at least `pause` seconds apart.
    """

    def __init__(self, function: Callable[[], Awaitable[T]], pause: float = 0.0) -> None:
        self._function, self._pause = function, pause
        self._started = 0.0
        self._current: asyncio.Task[T] | None = None
        self._next: asyncio.Task[T] | None = None

    async def call(self) -> T:
        """Return the result of a call that starts after this request."""
        if self._next is None:
            self._next = asyncio.ensure_future(self._call_after(self._current))
        return await asyncio.shield(self._next)  # a cancelled caller must not cancel the call that others wait for

    async def _call_after(self, previous: "asyncio.Task[T] | None") -> T:
        try:
            if previous is not None:
                await asyncio.wait({previous})
            await asyncio.sleep(self._started + self._pause - time.monotonic())
        finally:
            self._current, self._next, self._started = self._next, None, time.monotonic()
        return await self._function()

    def close(self) -> None:
        """Cancel the calls that are in progress or waiting."""
        for task in (self._current, self._next):
            if task is not None:
                task.cancel()
