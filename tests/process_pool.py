"""Start many processes quickly: one process has loaded the slow imports and forks on request.

Each fork is a real `manage.py` process with its own environment and settings, and can be killed like one.
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
# Slow imports that need no settings and start nothing.
LOADED = (
    *("django.core.management", "django.core.handlers.asgi", "django.views.debug", "django.contrib.admin"),
    *("django.contrib.contenttypes.management", "django.db.backends.postgresql.base", "dj_database_url"),
    *("autobahn.twisted.websocket", "twisted.internet.asyncioreactor", "twisted.web.http", "channels_redis.pubsub"),
    *("channels.auth", "cryptography.fernet", "psycopg_pool", "rich.console", "whitenoise.base"),
    *("deployments.engine.dokploy.log_stream", "deployments.engine.orchestrator"),
)


class ProcessPool:
    """A client of the forking process."""

    def __init__(self) -> None:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._lock = threading.Lock()
        self._process = subprocess.Popen([sys.executable, "-m", "tests.process_pool"], cwd=ROOT, **pipes)

    def manage(self, *arguments: str, env: dict[str, str], output: Path) -> "PooledProcess":
        """Start `manage.py` with these arguments."""
        return PooledProcess(self, self.ask(arguments=["manage.py", *arguments], env=env, output=str(output)))

    def ask(self, **what: Any) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        with self._lock:
            print(json.dumps(what), file=stdin, flush=True)
            answer = stdout.readline()
        assert answer, "the forking process has died"
        return json.loads(answer)

    def close(self) -> None:
        """End the pool and every process that it has started."""
        self._process.communicate(timeout=10)


class PooledProcess:
    """A forked process with the interface of subprocess.Popen."""

    def __init__(self, process_pool: ProcessPool, pid: int) -> None:
        self._pool, self.pid = process_pool, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._pool.ask(poll=self.pid)
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


# -- the forking process -----------------------------------------------------------------------------------------------


def _load() -> None:
    for name in LOADED:
        import_module(name)
    gc.freeze()  # otherwise each child's first collection would copy the heap
    assert "twisted.internet.reactor" not in sys.modules, "every child would share its event loop"


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
