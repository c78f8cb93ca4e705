"""Ends a process that cannot end by itself: its event loop is blocked, or a thread waits for an unavailable service."""

import asyncio
import contextlib
import os
import select
import sys
import threading
import time

PULSE_SECONDS = 10.0
MISSED_PULSES = 3  # together as long as a lease, after which another worker may take over
SOFTWARE_ERROR = 70  # EX_SOFTWARE of sysexits.h


def guard(loop: asyncio.AbstractEventLoop) -> None:
    """Start a thread that ends the process with status 70 when the event loop is blocked for 30 to 40 seconds.

    Such a process handles no signal, renews no lease and answers no request. This happened when memory ran out:
    CPython's Thread.start() blocks forever if the new thread dies before signalling that it runs.
    """
    threading.Thread(target=_guard, args=(loop,), name="watchdog", daemon=True).start()


def end(reason: bytes) -> None:
    """End the process at once with status 70. Write the reason to standard error if that does not block."""
    with contextlib.suppress(Exception):
        error = sys.stderr.fileno()
        if select.select([], [error], [], 0)[1]:
            os.write(error, reason + b"\n")
    os._exit(SOFTWARE_ERROR)


def end_soon() -> None:
    """End the process with status 0 after one second, even if a thread still waits for an unavailable service."""
    timer = threading.Timer(1.0, os._exit, [0])
    timer.daemon = True
    timer.start()


def _guard(loop: asyncio.AbstractEventLoop) -> None:
    """Count missed pulses rather than elapsed time, which also passes while the whole process is frozen."""
    pulse = threading.Event()
    missed = 0
    while missed < MISSED_PULSES:
        pulse.clear()
        try:
            loop.call_soon_threadsafe(pulse.set)
        except MemoryError:
            pass
        except RuntimeError:  # the loop is closed: the process is ending
            return
        time.sleep(PULSE_SECONDS)
        missed = 0 if pulse.is_set() else missed + 1
    end(b"Event loop blocked for 30 s; exiting (70) so the supervisor restarts the process.")
