"""How often Dokploy is asked: a budget of calls for each key, and what many ask at once is asked once for all."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")


class RateLimiter:
    """So many calls a second and `burst` at once; who comes later waits, in the order of coming. 0: no limit."""

    _of_keys: "WeakValueDictionary[tuple[str, str, float], RateLimiter]" = WeakValueDictionary()

    def __init__(self, per_second: float, burst: int) -> None:
        self._interval = 1 / per_second if per_second else 0.0
        self._burst = burst
        self._next = 0.0  # when the next call would be due if calls came evenly (generic cell rate algorithm)

    @classmethod
    def of_key(cls, url: str, key: str, per_second: float) -> "RateLimiter":
        """The one that all clients of this process with this key share; a second's worth may go at once."""
        known = cls._of_keys.get((url, key, per_second))
        if known is None:
            known = cls._of_keys[url, key, per_second] = cls(per_second, max(int(per_second), 1))
        return known

    async def spend(self) -> None:
        """Returns when a call may be made."""
        now = time.monotonic()
        due = max(self._next, now)
        self._next = due + self._interval
        wait = due - now - (self._burst - 1) * self._interval
        if wait > 0:
            await asyncio.sleep(wait)


class SingleFlight(Generic[T]):
    """A question that many ask. Who asks while it is under way gets the next answer: none is older than the asking.

    pause: seconds that lie at least between two.
    """

    def __init__(self, ask: Callable[[], Awaitable[T]], pause: float = 0.0) -> None:
        self._ask, self._pause = ask, pause
        self._began = 0.0
        self._now: asyncio.Task[T] | None = None
        self._next: asyncio.Task[T] | None = None

    async def answer(self) -> T:
        if self._next is None:
            self._next = asyncio.ensure_future(self._after(self._now))
        return await asyncio.shield(self._next)  # that one who waits is cancelled is not the others' business

    async def _after(self, former: "asyncio.Task[T] | None") -> T:
        try:
            if former is not None:
                await asyncio.wait({former})
            await asyncio.sleep(self._began + self._pause - time.monotonic())
        finally:
            self._now, self._next, self._began = self._next, None, time.monotonic()
        return await self._ask()

    def close(self) -> None:
        for task in (self._now, self._next):
            if task is not None:
                task.cancel()
