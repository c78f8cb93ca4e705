"""Call again after an error, wait for an outage to end, look again for an object that may still appear."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from math import inf
from typing import TypeVar

from .dokploy import CALL_SECONDS
from .errors import DokployError, Failure, Unavailable
from .reporter import Reporter

HEARTBEAT_SECONDS = 4.0  # the portal promises a report at least every five seconds
FIRST_PAUSE_SECONDS = 0.5
MAX_PAUSE_SECONDS = 4.0
POLL_SECONDS = 1.0
LANDING_SECONDS = CALL_SECONDS  # Dokploy may act on a request for as long as a client would wait for the response
RECOVERED_SECONDS = 4 * CALL_SECONDS  # an attempt that failed only after this time had reached Dokploy: a new outage
FLAPPING_FACTOR = 10  # after this multiple of the patience, several short outages count as one long outage

T = TypeVar("T")


class OutageClock:
    """Measures how long Dokploy has been unavailable during a phase, and gives the pause before the next attempt."""

    def __init__(self, patience: float, *, long_attempts: bool) -> None:
        """Start the clock.

        `patience` is how long an outage may last, in seconds. With `long_attempts`, an attempt may go on for minutes
        and make many calls, of which only the last one belongs to the outage.
        """
        self._patience, self._long_attempts = patience, long_attempts
        self._outage, self._pause = 0.0, FIRST_PAUSE_SECONDS
        self._phase_started = self._attempt_started = asyncio.get_running_loop().time()

    def begin_attempt(self) -> None:
        """Note that an attempt begins now."""
        self._attempt_started = asyncio.get_running_loop().time()

    def add_failed_attempt(self) -> bool:
        """Add the attempt that has just failed to the outage. Return whether the patience is exhausted."""
        now = asyncio.get_running_loop().time()
        recovered = self._long_attempts and now - self._attempt_started > RECOVERED_SECONDS
        if recovered and now - self._phase_started < FLAPPING_FACTOR * self._patience:
            self._outage, self._pause = 0.0, FIRST_PAUSE_SECONDS
        self._outage += min(now - self._attempt_started, CALL_SECONDS) + self._pause
        return self._outage > self._patience

    def end_outage(self) -> None:
        """Note that Dokploy has answered."""
        self._outage = 0.0

    def next_pause(self) -> float:
        """Return the pause before the next attempt, in seconds. It doubles each time, up to MAX_PAUSE_SECONDS."""
        pause = self._pause
        self._pause = min(pause * 2, MAX_PAUSE_SECONDS)
        return pause


async def retry(
    call: Callable[[], Awaitable[T]], reporter: Reporter, *, attempts: int, timeout: float, patience: float
) -> T:
    """Make the call until it succeeds, and return its result.

    Wait for the end of an outage for at most `patience` seconds. Repeat the call after a temporary error, up to
    `attempts` attempts. Raise Failure when either is exhausted, and at once after a permanent error or when a call
    takes longer than `timeout` seconds.
    """
    attempt, outage = 1, OutageClock(patience, long_attempts=timeout == inf)
    while True:
        outage.begin_attempt()
        try:
            return await with_heartbeats(call, timeout, reporter)
        except TimeoutError:
            raise Failure("TIMEOUT", f"The phase took longer than its limit of {timeout:.0f} s.") from None
        except Unavailable as error:
            if outage.add_failed_attempt():
                raise Failure.of(error) from error
            await reporter.status(f"Waiting for Dokploy: {error}")
        except DokployError as error:
            outage.end_outage()
            if error.permanent or attempt >= attempts:
                raise Failure.of(error) from error
            attempt += 1
            reporter.attempt = attempt
            await reporter.status(f"Attempt {attempt} of {attempts}: {error}", attempt=attempt)
        # The pause has no timeout: after a stall of the whole process, both would expire at the same time.
        await with_heartbeats(partial(asyncio.sleep, outage.next_pause()), inf, reporter)


async def with_heartbeats(call: Callable[[], Awaitable[T]], timeout: float, reporter: Reporter) -> T:
    """Return the call's result. Report a heartbeat whenever nothing was reported for HEARTBEAT_SECONDS.

    Raise TimeoutError after `timeout` seconds.
    """
    loop = asyncio.get_running_loop()

    async def call_with_timeout() -> T:
        async with asyncio.timeout(timeout):
            return await call()

    task = asyncio.ensure_future(call_with_timeout())
    try:
        while not task.done():
            since_report = loop.time() - reporter.last_report
            done, _ = await asyncio.wait({task}, timeout=max(HEARTBEAT_SECONDS - since_report, 0))
            if not done and loop.time() - reporter.last_report >= HEARTBEAT_SECONDS:
                await reporter.heartbeat()
        return task.result()
    finally:
        if not task.done():
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)  # also retrieves an exception that is not raised here


async def read_patiently(read: Callable[[], Awaitable[T]], reporter: Reporter, seconds: float) -> T:
    """Return the result of a read. While it raises Unavailable, read again, for `seconds` in all; then raise it."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        try:
            return await read()
        except Unavailable as error:
            if loop.time() > deadline:
                raise
            await reporter.status(f"Waiting for Dokploy: {error}")
        await asyncio.sleep(POLL_SECONDS)


async def look_until_found(look: Callable[[], Awaitable[T]], is_found: Callable[[T], bool], seconds: float) -> T:
    """Return the first result that counts as found, or the last one after `seconds`.

    A request may still take effect after its connection or its worker is lost: a single look does not rule that out.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        result = await look()
        if is_found(result) or loop.time() >= deadline:
            return result
        await asyncio.sleep(min(POLL_SECONDS, deadline - loop.time()))
