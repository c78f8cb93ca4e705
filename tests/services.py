"""Services that one test can stop, freeze and flush: PostgreSQL, Redis, HAProxy; and a clock that it can set."""

import glob
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psycopg
import redis

from .conftest import need
from .processes import ROOT, Portal, ScaledOut, Simulator, free_ports, until

PLAIN_PROXY = """
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s
frontend plain
    bind 127.0.0.1:{bind}
    http-request del-header Upgrade
    default_backend portal
backend portal
    server one 127.0.0.1:{portal}
"""


class PostgreSQL:
    """A PostgreSQL cluster in a directory of its own. Root starts it as the user postgres, because it refuses root."""

    def __init__(self) -> None:
        found = sorted(glob.glob("/usr/lib/postgresql/*/bin")) or [os.path.dirname(shutil.which("initdb") or "")]
        need(found[-1], "PostgreSQL is not installed")
        self.programs, self.port = Path(found[-1]), free_ports()
        self.folder = tempfile.mkdtemp(prefix="portal-postgres-")
        if os.getuid() == 0:
            shutil.chown(self.folder, "postgres", "postgres")
        self.url = f"postgres://portal@127.0.0.1:{self.port}/postgres"
        self._run("initdb", "--auth", "trust", "--username", "portal", "--encoding", "UTF8", "--no-sync")
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder} -c fsync=off"
        self._options = ["-w", "-t", "30", "-l", f"{self.folder}/log", "-o", options]
        self._run("pg_ctl", "start", *self._options)

    def restart(self) -> None:
        """Restart the server, which closes every connection."""
        self._run("pg_ctl", "restart", "-m", "fast", *self._options)

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "-m", "fast", "-w")

    def start(self) -> None:
        self._run("pg_ctl", "start", *self._options)

    def close(self) -> None:
        self._run("pg_ctl", "stop", "-m", "immediate", "-w", check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def ask(self, query: str) -> list[Any]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            return connection.execute(query).fetchall()

    def _run(self, program: str, *arguments: str, check: bool = True) -> None:
        command = [str(self.programs / program), "-D", f"{self.folder}/data", *arguments]
        if os.getuid() == 0:
            command = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *command]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run(command, check=check, cwd=self.folder, timeout=60, **quiet)  # type: ignore[call-overload]


class Redis:
    """A Redis server that persists nothing."""

    def __init__(self) -> None:
        need(shutil.which("redis-server"), "Redis is not installed")
        self.port = free_ports()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.client = redis.Redis(port=self.port, socket_timeout=5)
        self.start()

    def start(self) -> None:
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=tempfile.gettempdir())
        until(self._answers, 10)

    def stop(self) -> None:
        self.thaw()
        self.process.terminate()
        self.process.wait(10)

    def freeze(self) -> None:
        """Stop the process with SIGSTOP: the kernel accepts connections, but nothing answers."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def flush(self) -> None:
        """Delete all keys and close every subscriber's connection."""
        self.client.flushall()
        self.client.client_kill_filter(_type="pubsub")

    def close(self) -> None:
        self.client.close()
        self.stop()

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.ConnectionError:
            return False


class Proxied(ScaledOut):
    """Two web processes behind the HAProxy of deploy/. Clients connect to the proxy's port."""

    def __init__(self, data: Path, simulator: Simulator, database_url: str, redis_url: str, **env: Any) -> None:
        need(shutil.which("haproxy"), "HAProxy is not installed")
        super().__init__(data, simulator, database_url, redis_url, TRUSTED_PROXIES=1, **env)
        self.webs: list[subprocess.Popen[str]] = []

    def start(self) -> "Proxied":
        self.setup()
        self.webs = [self.web(1), self.web(2)]
        ports = {f"PORTAL_WEB_{number}": f"127.0.0.1:{self.port + number}" for number in (1, 2)}
        env = {**os.environ, **ports, "PORTAL_BIND": f"127.0.0.1:{self.port}"}
        command = ["haproxy", "-db", "-f", "deploy/haproxy.cfg"]
        with self.output.open("a") as output:
            self.process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=output, stderr=output, text=True)
        for number in (1, 2):
            until(lambda number=number: self.web_answers(number), 30, pause=0.05)
        until(self.answers, 30, pause=0.05)
        return self

    def web(self, number: int) -> "subprocess.Popen[str]":
        pings = ("--ping-interval", "5", "--ping-timeout", "10")
        address = ("-b", "127.0.0.1", "-p", str(self.port + number))
        return self.spawn("daphne", *address, *pings, "deployportal.asgi:application")

    def web_answers(self, number: int) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port + number}/static/portal.css").status_code == 200
        except httpx.TransportError:
            return False

    def close(self) -> None:
        for web in self.webs:
            web.kill()
            web.wait()
        super().close()


class PlainProxy:
    """A proxy that does not support WebSockets."""

    def __init__(self, folder: Path, portal: Portal) -> None:
        need(shutil.which("haproxy"), "HAProxy is not installed")
        self.port = free_ports()
        configuration = folder / "plain-proxy.cfg"
        configuration.write_text(PLAIN_PROXY.format(bind=self.port, portal=portal.port))
        self._process = subprocess.Popen(["haproxy", "-db", "-q", "-f", str(configuration)])
        until(self._answers, 10)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/help/").status_code == 200
        except httpx.TransportError:
            return False


class Clock:
    """A settable wall clock of the processes that are started with `env`, and of their children.

    The monotonic clock is not changed, as on a machine whose clock is set.
    """

    def __init__(self, folder: Path) -> None:
        found = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
        need(found, "libfaketime is not installed")
        self._file = folder / "clock"
        self.env = {
            "LD_PRELOAD": found[0],
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",  # with 1, Python's waits for its global lock spin
            "NO_FAKE_STAT": "1",
        }
        self.jump(0)

    def jump(self, seconds: int) -> None:
        """Set the clock this many seconds ahead of the true time, or behind it if negative."""
        written = self._file.with_suffix(".new")
        written.write_text(f"{seconds:+d}")
        written.replace(self._file)  # atomic, because every reading of the clock reads the file


def timed(act: Callable[[], Any]) -> float:
    """Call a function and return how long it took, in seconds."""
    began = time.monotonic()
    act()
    return time.monotonic() - began
