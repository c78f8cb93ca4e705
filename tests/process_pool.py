"""Processes by the hundred: one that has loaded what takes time to load, and forks whenever it is asked to.

What it makes is a real `manage.py` process with an environment and settings of its own, and is really killed.
"""

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# What takes most of a start, as far as it needs no settings and begins nothing of its own.
LOADED = (
    *("django.core.management", "django.core.handlers.asgi", "django.views.debug", "django.contrib.admin"),
    *("django.contrib.contenttypes.management", "django.db.backends.postgresql.base", "dj_database_url"),
    *("autobahn.twisted.websocket", "twisted.internet.asyncioreactor", "twisted.web.http", "channels_redis.pubsub"),
    *("channels.auth", "cryptography.fernet", "psycopg_pool", "rich.console", "whitenoise.base"),
    *("deployments.engine.dokploy.log_stream", "deployments.engine.orchestrator"),
)


class Forge:
    """The process, seen from the tests."""

    def __init__(self) -> None:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._lock = threading.Lock()
        self._process = subprocess.Popen([sys.executable, "-m", "tests.process_pool"], cwd=ROOT, **pipes)

    def manage(self, *arguments: str, env: dict[str, str], output: Path) -> "Forged":
        """Starts `manage.py` with these arguments."""
        return Forged(self, self.ask(arguments=["manage.py", *arguments], env=env, output=str(output)))

    def ask(self, **what: Any) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        with self._lock:
            print(json.dumps(what), file=stdin, flush=True)
            answer = stdout.readline()
        assert answer, "the forge has died"
        return json.loads(answer)

    def close(self) -> None:
        """Ends it, and what it has made."""
        self._process.communicate(timeout=10)


class Forged:
    """A process that the forge has made, as subprocess.Popen would show it."""

    def __init__(self, forge: Forge, pid: int) -> None:
        self._forge, self.pid = forge, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._forge.ask(poll=self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = time.monotonic() + (timeout or 3600)
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            time.sleep(0.005)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


# -- the process itself ------------------------------------------------------------------------------------------------


def _load() -> None:
    for name in LOADED:
        import_module(name)
    gc.freeze()  # or the first collection of each child would copy all of it
    assert "twisted.internet.reactor" not in sys.modules, "its loop would be everybody's"


def _fork(arguments: list[str], env: dict[str, str], output: str) -> int:
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    status = 1
    try:
        nothing, file = os.open(os.devnull, os.O_RDONLY), os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for target, source in enumerate((nothing, file, file)):
            os.dup2(source, target)
        os.environ.clear()
        os.environ.update(env, DJANGO_SETTINGS_MODULE="deployportal.settings")
        sys.argv[:] = arguments
        from django.core.management import execute_from_command_line

        execute_from_command_line(arguments)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _poll(pid: int) -> int | None:
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def _answer(asked: dict[str, Any], alive: set[int]) -> int | None:
    if "poll" in asked:
        status = _poll(asked["poll"])
        if status is not None:
            alive.discard(asked["poll"])
        return status
    alive.add(pid := _fork(**asked))
    return pid


def main() -> None:
    _load()
    alive: set[int] = set()
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line), alive)), flush=True)
    for pid in alive:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
