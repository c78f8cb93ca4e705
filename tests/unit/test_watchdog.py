"""A process whose loop stands still ends by itself; one that was only frozen lives."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ..processes import ROOT, until

GUARDED = """
import asyncio, sys, time
from deployments.worker import watchdog
watchdog.PULSE_SECONDS = 0.1

async def main():
    watchdog.guard(asyncio.get_running_loop())
    await asyncio.sleep(0.5)
    print("turns", flush=True)
    {then}

asyncio.run(main())
"""
STANDS_STILL = "time.sleep(60)"
IS_FROZEN = "await asyncio.to_thread(sys.stdin.readline); await asyncio.sleep(1); print('lives')"


def guarded(then: str, **pipes: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", GUARDED.format(then=then)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **pipes}
    process = subprocess.Popen(command, cwd=ROOT, text=True, **pipes)  # type: ignore[call-overload]
    assert process.stdout.readline() == "turns\n"
    return process  # type: ignore[no-any-return]


def test_a_process_whose_loop_stands_still_ends_and_says_why() -> None:
    _, said = (process := guarded(STANDS_STILL)).communicate(timeout=20)
    assert (process.returncode, said) == (
        70,
        "Event loop blocked for 30 s; exiting (70) so the supervisor restarts the process.\n",
    )


def test_it_ends_also_when_nobody_hears_it_any_more() -> None:
    process = guarded(STANDS_STILL)
    assert process.stderr is not None
    process.stderr.close()
    assert process.wait(20) == 70
    process.stderr = None
    process.communicate()


def test_a_process_that_was_frozen_lives_on() -> None:
    process = guarded(IS_FROZEN)
    process.send_signal(signal.SIGSTOP)
    state = Path(f"/proc/{process.pid}/stat")
    until(lambda: state.read_text().rpartition(") ")[2].startswith("T"))
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2)  # many pulses long
    process.send_signal(signal.SIGCONT)
    said, _ = process.communicate("\n", timeout=20)
    assert (process.returncode, said) == (0, "lives\n")
