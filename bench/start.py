"""`serve` from the command to its first answer, on a data directory that it knows. The baseline: stock Daphne with
Django's and Channels' apps and one empty view."""

import os
import subprocess
import sys
import tempfile
import time
from typing import IO

from tests.processes import ROOT

from .figures import Figure, middle
from .portals import plain
from .sockets import Load, request

ROUNDS = 3
LIMIT = 20.0


def measure() -> list[Figure]:
    took, stock = [], []
    with plain() as served, tempfile.TemporaryDirectory(prefix="deploy-portal-bench-") as data:
        first = [sys.executable, "manage.py", "serve", "--no-sample"]
        daphne = [sys.executable, "-m", "daphne", "-v", "0", "-p", str(served.port), "bench.bare:application"]
        begun = _begin(first, {**served.env}, served.port)
        for _ in range(ROUNDS):
            took.append(_begin(first, {**served.env}, served.port))
            stock.append(_begin(daphne, {**os.environ, "BARE_DATA": data}, served.port))
    second, bare = middle(took), middle(stock)
    return [
        Figure(
            "serve to its first answer, second start",
            second,
            "s",
            bare,
            "bare Daphne, Django, Channels",
            "< 1.5 s",
            second < 1.5,
        ),
        Figure("  the first start, with an empty directory", begun, "s"),
    ]


def _begin(command: list[str], env: dict[str, str], port: int) -> float:
    """Seconds until there is an answer; the process is ended again."""
    with tempfile.TemporaryFile() as output:
        began = time.monotonic()
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=output, stderr=output)
        try:
            while not _answers(port):
                assert process.poll() is None, _said(output)
                assert time.monotonic() - began < LIMIT, "it does not answer"
                time.sleep(0.005)
            return time.monotonic() - began
        finally:
            process.terminate()
            process.wait(30)


def _answers(port: int) -> bool:
    try:
        load = Load(port, b"", 1)
    except OSError:
        return False
    try:
        load.times([request(port, "GET", "/help/")], 200)
        return True
    finally:
        load.close()


def _said(output: IO[bytes]) -> str:
    output.seek(0)
    return output.read().decode()
