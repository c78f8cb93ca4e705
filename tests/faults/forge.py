"""Workers by the hundred: a process that has loaded everything, and forks a worker whenever it is asked to. What a
worker costs is its loading.

It reads one word a line, and answers each with a line: `work` with the new worker's process id; `died` with process id
and signal number, a space between, of one that has died since, or with an empty line. At the end of its input it ends,
and its workers with it.
"""

import os
import signal
import sys

import django
from django.core.management import call_command

django.setup()

from deployments.management.commands import worker  # noqa: E402, F401
from deployportal import asgi  # noqa: E402, F401


def work() -> str:
    if pid := os.fork():
        alive.add(pid)
        return str(pid)
    status = 1
    try:
        os.dup2(2, 1)  # or who reads our answers would not see our end
        os.close(0)
        call_command("worker")
        status = 0
    finally:
        os._exit(status)


def died() -> str:
    pid, status = os.waitpid(-1, os.WNOHANG) if alive else (0, 0)
    alive.discard(pid)
    return f"{pid} {os.WTERMSIG(status)}" if pid else ""


alive: set[int] = set()
for line in sys.stdin:
    print({"work": work, "died": died}[line.strip()](), flush=True)
for pid in alive:
    os.kill(pid, signal.SIGKILL)
