"""The servers that the parts measure: the product, the stock baseline, and Node's raw push."""

import json
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from tests.processes import Portal, until

from .node import Push, find_node

ROOT = Path(__file__).resolve().parent.parent
# The limits are high because they are not measured.
LIMITS = {
    "PORTAL_OPEN": 1,
    "PORTAL_QUOTA": 10_000,
    "PORTAL_OPEN_QUOTA": 10_000,
    "PORTAL_WAITING": 10_000,
    "PORTAL_VIEWERS": 5_000,
    "PORTAL_VIEWERS_EACH": 3_000,
    "PYTHONWARNINGS": "ignore",
}
START_SECONDS = 60


class Server(Portal):
    """A real `serve` with its simulator, and a control address (bench/server.py). kind: "product" or "stock"."""

    process: subprocess.Popen[str] | None

    def __init__(self, data: Path, kind: str) -> None:
        super().__init__(data, **LIMITS)
        self.kind = kind

    def start(self) -> Self:
        """Start the process and wait until it answers."""
        with self.output.open("a") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bench.server", self.kind],
                cwd=ROOT,
                env=self.env,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                text=True,
            )
        until(self.answers, START_SECONDS)
        return self

    def answers(self) -> bool:
        """Return whether the server answers. Raises AssertionError with its output if it has ended."""
        assert self.process is not None
        assert self.process.poll() is None, self.output.read_text()
        try:
            return self.http.get("/bench/ready").status_code == 200
        except httpx.TransportError:
            return False

    def close(self) -> None:
        """End the process."""
        try:
            super().close()
        finally:
            if self.process is not None and self.process.stdin is not None:
                self.process.kill()
                self.process.stdin.close()

    def control(self, action: str, **query: Any) -> Any:
        """Perform an action inside the process (bench/server.py). Raises AssertionError if it fails there."""
        answer = self.http.get(f"/bench/{action}", params=query)
        assert answer.status_code == 200, self.output.read_text()[-3000:]
        return answer.json()

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return rows of the server's database. This process reads them, which costs the server no time."""
        with closing(sqlite3.connect(f"file:{self.data / 'portal.sqlite3'}?mode=ro", uri=True)) as database:
            return database.execute(sql, values).fetchall()

    def cpu(self) -> float:
        """Return the seconds of CPU that the process has used so far, all threads together."""
        assert self.process is not None
        return time.clock_gettime(
            ~self.process.pid << 3 | 2
        )  # the clock id of a process's CPU clock (clock_getcpuclockid)

    def resident(self) -> int:
        """Return the resident memory of the process in kB."""
        assert self.process is not None
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())
        assert found is not None
        return int(found[1])


class Servers:
    """The servers that several parts share. Each is started when it is first used, and ends with the bench."""

    def __init__(self) -> None:
        self._ends = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ends.close()

    @cached_property
    def product(self) -> Server:
        """Return the product, started on first use."""
        return self._start("product")

    @cached_property
    def stock(self) -> Server:
        """Return the server with stock Channels and stock Django views, started on first use."""
        return self._start("stock")

    @cached_property
    def push(self) -> Push | None:
        """Return Node's raw push, started on first use, or None without Node."""
        node = find_node()
        return self._ends.enter_context(closing(Push(node))) if node else None

    def settings(self) -> Portal:
        """Return a portal that is not started, for its settings and ports."""
        data = Path(self._ends.enter_context(tempfile.TemporaryDirectory(prefix="deploy-portal-bench-")))
        return self._ends.enter_context(closing(Portal(data, **LIMITS)))

    def _start(self, kind: str) -> Server:
        data = Path(self._ends.enter_context(tempfile.TemporaryDirectory(prefix="deploy-portal-bench-")))
        return self._ends.enter_context(closing(Server(data, kind))).start()


def run_module(name: str, *arguments: str, seconds: float, **env: str) -> Any:
    """Run a module in a new process with a new data directory; return the JSON on its last line of output."""
    inherited = {
        key: value for key, value in os.environ.items() if key not in ("DATABASE_URL", "REDIS_URL", "DOKPLOY_URL")
    }
    with tempfile.TemporaryDirectory(prefix="deploy-portal-bench-") as data:
        done = subprocess.run(
            [sys.executable, "-m", name, *arguments],
            cwd=ROOT,
            env={**inherited, "DATA_DIR": data, "DJANGO_SETTINGS_MODULE": "deployportal.settings", **env},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def seconds_of(stored: str) -> float:
    """Convert a time as SQLite stores it (UTC) to seconds since 1970."""
    return datetime.fromisoformat(stored).replace(tzinfo=UTC).timestamp()
