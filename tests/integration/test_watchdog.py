"""A process whose event loop is blocked exits; a process that was stopped by a signal continues."""

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
BLOCKS = "time.sleep(60)"
WAITS = "await asyncio.to_thread(sys.stdin.readline); await asyncio.sleep(1); print('lives')"


def guarded(then: str, **pipes: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", GUARDED.format(then=then)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **pipes}
    process = subprocess.Popen(command, cwd=ROOT, text=True, **pipes)  # type: ignore[call-overload]
    assert process.stdout.readline() == "turns\n"
    return process  # type: ignore[no-any-return]


def test_a_process_whose_loop_is_blocked_exits_with_70_and_says_why() -> None:
    _, said = (process := guarded(BLOCKS)).communicate(timeout=20)
    assert (process.returncode, said) == (
        70,
        "Event loop blocked for 30 s; exiting (70) so the supervisor restarts the process.\n",
    )


def test_it_exits_even_if_its_standard_error_is_closed() -> None:
    process = guarded(BLOCKS)
    assert process.stderr is not None
    process.stderr.close()
    assert process.wait(20) == 70
    process.stderr = None
    process.communicate()


def test_a_process_that_was_stopped_by_a_signal_continues() -> None:
    process = guarded(WAITS)
    process.send_signal(signal.SIGSTOP)
    state = Path(f"/proc/{process.pid}/stat")
    until(lambda: state.read_text().rpartition(") ")[2].startswith("T"))
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2)  # many pulses
    process.send_signal(signal.SIGCONT)
    said, _ = process.communicate("\n", timeout=20)
    assert (process.returncode, said) == (0, "lives\n")
