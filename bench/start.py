"""The time from the command `serve` to its first answer.

The baseline is stock Daphne with Django's and Channels' apps and one empty view (bench/bare.py).
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from statistics import median
from typing import IO

from .figures import Figure
from .load import Load, request
from .portals import ROOT, Servers

LIMIT_SECONDS = 40.0


def measure(servers: Servers, *, short: bool) -> list[Figure]:
    """Measure the first start on an empty data directory, then later ones beside the baseline."""
    rounds = 1 if short else 3
    settings = servers.settings()
    serve = [sys.executable, "manage.py", "serve", "--no-sample"]
    daphne = [sys.executable, "-m", "daphne", "-v", "0", "-p", str(settings.port), "bench.bare:application"]
    first = _seconds(serve, settings.env, settings.port)
    later, stock = [], []
    for _ in range(rounds):
        later.append(_seconds(serve, settings.env, settings.port))
        stock.append(_seconds(daphne, {**os.environ, "BARE_DATA": str(settings.data)}, settings.port))
    second, bare, against = median(later), median(stock), "bare Daphne, Django, Channels"
    return [
        Figure("serve to its first answer, second start", second, "s", bare, against, "< 1.5 s", second < 1.5),
        Figure("  the first start, with an empty directory", first, "s", bare, against),
    ]


def _seconds(command: list[str], env: Mapping[str, str], port: int) -> float:
    """Start a server, return the seconds until it answers, and end it."""
    with tempfile.TemporaryFile() as output:
        began = time.monotonic()
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=output, stderr=output)
        try:
            while not _answers(port):
                assert process.poll() is None, _text(output)
                assert time.monotonic() - began < LIMIT_SECONDS, "the server does not answer"
                time.sleep(0.005)
            return time.monotonic() - began
        finally:
            process.terminate()
            try:
                process.wait(30)
            finally:
                process.kill()


def _answers(port: int) -> bool:
    try:
        with Load(port, 1) as load:
            load.times([request(port, "GET", "/help/")], 200)
    except OSError:
        return False
    return True


def _text(output: IO[bytes]) -> str:
    output.seek(0)
    return output.read().decode()
