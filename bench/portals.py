"""Portals for the bench: the tests' Portal, with the bench's door in it."""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.processes import ROOT, Portal, until

ROOM = {
    "PORTAL_OPEN": 1,
    "PORTAL_QUOTA": 10_000,
    "PORTAL_OPEN_QUOTA": 10_000,
    "PORTAL_WAITING": 10_000,
    "PORTAL_VIEWERS": 5_000,
    "PORTAL_VIEWERS_EACH": 3_000,
    "PYTHONWARNINGS": "ignore",
}


class Bench(Portal):
    """A real `serve` with its simulator, and a door to make changes from inside (bench/server.py)."""

    def __init__(self, data: Path, kind: str, **env: Any) -> None:
        super().__init__(data, **{**ROOM, **env})
        self.kind = kind

    def start(self) -> "Bench":
        self.output.touch()
        with self.output.open("a") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bench.server", self.kind],
                cwd=ROOT,
                env=self.env,
                stdout=output,
                stderr=output,
                text=True,
            )
        until(self.answers, 30)
        return self

    def answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.output.read_text()
        try:
            return self.http.get("/bench/ready").status_code == 200
        except httpx.TransportError:
            return False

    def door(self, what: str, **query: Any) -> Any:
        answer = self.http.get(f"/bench/{what}", params=query)
        assert answer.status_code == 200, self.output.read_text()[-2000:]
        return answer.json()

    @property
    def ended(self) -> int:
        """How many deployments are over."""
        return int(self.door("ended"))

    def all_ended(self, count: int, seconds: float = 30) -> bool:
        """Waits until so many are over; whether they were in time."""
        deadline = time.monotonic() + seconds
        while self.ended < count:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def cpu(self) -> float:
        """Seconds of CPU that the server's process has used."""
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident(self) -> int:
        """Memory of the server's process, in kB."""
        assert self.process is not None
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())
        assert found is not None
        return int(found[1])


@contextmanager
def portal(kind: str = "product", **env: Any) -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="deploy-portal-bench-") as data:
        made = Bench(Path(data), kind, **env)
        try:
            yield made.start()
        finally:
            made.close()


@contextmanager
def plain(**env: Any) -> Iterator[Portal]:
    """The product alone, not started yet."""
    with tempfile.TemporaryDirectory(prefix="deploy-portal-bench-") as data:
        made = Portal(Path(data), **{**ROOM, **env})
        try:
            yield made
        finally:
            made.close()
