"""Ends a process that cannot end by itself: one whose loop stands still for good, or that waits for what is away."""

import asyncio
import contextlib
import os
import select
import sys
import threading
import time

PULSE_SECONDS = 10.0
MISSED_PULSES = 3  # as long as a lease: what it worked on is anybody's by then
STOOD_STILL = 70  # the exit status: an error in the software (sysexits.h)


def guard(loop: asyncio.AbstractEventLoop) -> None:
    """From now on: a process whose loop does not turn for 30 to 40 seconds ends, with status 70, so that whoever
    started it can start it anew. It would hear no signal, renew no lease and answer nobody any more.

    Seen where memory ran out: in CPython who starts a thread waits for ever for one that dies in its first breath.
    """
    threading.Thread(target=_guard, args=(loop,), name="watchdog", daemon=True).start()


def end(why: bytes) -> None:
    """Ends the process at once, with status 70. why: a line for its standard error, if that takes one at once."""
    with contextlib.suppress(Exception):
        error = sys.stderr.fileno()
        if select.select([], [error], [], 0)[1]:
            os.write(error, why + b"\n")
    os._exit(STOOD_STILL)


def end_soon() -> None:
    """After a drain: the process ends by itself, and if a thread of it still waits for something that is away, a second
    later all the same, with 0."""
    watchdog = threading.Timer(1.0, os._exit, [0])
    watchdog.daemon = True
    watchdog.start()


def _guard(loop: asyncio.AbstractEventLoop) -> None:
    """Counts pulses, not the time that has passed: while the whole process was frozen there was none."""
    turned = threading.Event()
    missed = 0
    while missed < MISSED_PULSES:
        turned.clear()
        try:
            loop.call_soon_threadsafe(turned.set)
        except MemoryError:
            pass
        except RuntimeError:  # it is closed: an orderly end
            return
        time.sleep(PULSE_SECONDS)
        missed = 0 if turned.is_set() else missed + 1
    end(b"The portal stood still for too long. It ends, to be started anew.")
