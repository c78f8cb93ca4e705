"""The processes that the tests start: the simulator alone, and the whole portal with its simulator."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from .process_pool import ROOT, PooledProcess, ProcessPool

KEY = "the-owners-key"
SWITCH_KEY = "the-switch-key"
IMAGE = "registry.test/shop/web:1"


class Simulator:
    """The simulator's process, with a client for each of its interfaces."""

    def __init__(self, data: Path, *options: str, switch_key: str = SWITCH_KEY, **pipes: Any) -> None:
        environment = {**os.environ, "SIMULATOR_API_KEY": KEY, "SIMULATOR_SWITCH_KEY": switch_key}
        times = ("--pull", "0", "--start", "0", "--latency", "0", "--monitor", "0")
        self.process = subprocess.Popen(
            [sys.executable, *command(data), *times, *options],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            **pipes,
        )
        assert self.process.stdout is not None
        self.ready = self.process.stdout.readline()
        word, api, router = self.ready.split()
        assert word == "ready"
        self.port = int(api)
        url = f"http://127.0.0.1:{api}"
        self.api = client(f"{url}/api/", {"x-api-key": KEY})
        self.bare = client(url)
        self.switches = client(f"{url}/_simulator/", {"X-Simulator-Key": SWITCH_KEY})
        self.router = client(f"http://127.0.0.1:{router}")

    def close(self) -> int:
        """Close the clients, terminate the process and return its exit status."""
        for client in (self.api, self.bare, self.switches, self.router):
            client.close()
        self.process.terminate()
        return self.wait()

    def wait(self) -> int:
        """Wait until the process ends and return its exit status."""
        status = self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status

    def get(self, procedure: str, **query: Any) -> httpx.Response:
        """Call a procedure that reads, and return the response whatever its status."""
        return self.api.get(procedure, params=query)

    def post(self, procedure: str, **given: Any) -> httpx.Response:
        """Call a procedure that writes, and return the response whatever its status."""
        return self.api.post(procedure, json=given)

    def ask(self, procedure: str, **query: Any) -> Any:
        """Call a procedure that reads, and return its result. Raises httpx.HTTPStatusError."""
        return self.get(procedure, **query).raise_for_status().json()

    def do(self, procedure: str, **given: Any) -> Any:
        """Call a procedure that writes, and return its result or None. Raises httpx.HTTPStatusError."""
        answer = self.post(procedure, **given).raise_for_status()
        return answer.json() if answer.content else None

    def turn(self, **settings: Any) -> None:
        """Change settings of the simulator."""
        self.switches.post("settings", json=settings).raise_for_status()

    def fault(self, procedure: str, what: str, **more: Any) -> None:
        """Set a fault for the next call of a procedure, or for as many calls as `times` says (None: for all)."""
        given = {"procedure": procedure, "what": what, **more}
        self.switches.post("faults", json=given).raise_for_status()

    def close_gate(self, name: str) -> None:
        self.switches.put(f"gates/{name}").raise_for_status()

    def open_gate(self, name: str) -> None:
        self.switches.delete(f"gates/{name}").raise_for_status()

    def wait_at(self, name: str) -> int:
        """Wait up to 20 s until the gate holds a call or a job, and return how many it holds."""
        answer = self.switches.get(f"gates/{name}", params={"wait": 20}, timeout=25)
        waiting: int = answer.json()["waiting"]
        return waiting

    def gather_at(self, name: str, count: int) -> None:
        """Wait until the gate holds this many calls or jobs."""
        until(lambda: self.wait_at(name) == count)

    def state(self) -> Any:
        return self.switches.get("state").raise_for_status().json()

    def clear(self, settings: dict[str, Any]) -> None:
        """Open all gates, clear faults and keys, set these settings, and delete all objects.

        Long lists would slow the next test down.
        """
        state = self.state()
        for name in state["gates"]:
            self.open_gate(name)
        if state["faults"]:
            self.switches.delete("faults")
        if state["settings"] != settings:
            self.turn(**settings)
        self.switches.delete("keys").raise_for_status()
        if self.ask("settings.getWebServerSettings")["buildsConcurrency"] != 1:
            self.do("settings.updateBuildsConcurrency", buildsConcurrency=1)
        if state["queue"]:
            until(lambda: not self.state()["queue"])
        for row in state["applications"]:
            self.do("application.delete", applicationId=row["applicationId"])
        for row in state["projects"]:
            self.do("project.remove", projectId=row["projectId"])

    def project(self, name: str = "shop") -> tuple[str, str]:
        """Create a project; return its id and that of its environment."""
        made = self.do("project.create", name=name)
        return made["project"]["projectId"], made["environment"]["environmentId"]

    def application(self, environment: str = "", image: str | None = IMAGE, **more: Any) -> Any:
        """Create an application, by default in a new project, and return its row."""
        environment = environment or self.project()[1]
        given = {"name": "web", "appName": "web", "sourceType": "docker", **more}
        application = self.do("application.create", environmentId=environment, **given)
        if image is not None:
            self.do("application.update", applicationId=application["applicationId"], dockerImage=image)
        return application

    def deploy(self, application: Any, procedure: str = "application.deploy", **more: Any) -> Any:
        """Deploy an application, wait until the queue is empty, and return the row of the Dokploy deployment."""
        self.do(procedure, applicationId=application["applicationId"], **more)
        until(lambda: not self.ask("deployment.queueList"))
        return self.ask("deployment.all", applicationId=application["applicationId"])[0]

    def log(self, deployment: Any) -> str:
        text: str = self.ask("deployment.readLogs", deploymentId=deployment["deploymentId"])
        return text

    def status(self, application: Any) -> str:
        row = self.ask("application.one", applicationId=application["applicationId"])
        return str(row["applicationStatus"])

    def visit(self, host: str, path: str = "/") -> httpx.Response:
        """Request a page of this host from the router."""
        return self.router.get(path, headers={"Host": host})


def client(url: str, headers: dict[str, str] | None = None) -> httpx.Client:
    # Plain HTTP only: loading the certificates would take most of the time.
    return httpx.Client(base_url=url, headers=headers, timeout=10, verify=False)


def command(data: Path) -> list[str]:
    addresses = ["--api", "127.0.0.1:0", "--router", "127.0.0.1:0"]
    return ["-m", "deployments.simulator", *addresses, "--data", str(data)]


def until(condition: Callable[[], Any], seconds: float = 30.0, pause: float = 0.005) -> Any:
    """Return the condition's value as soon as it is true. Fail after this many seconds."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(pause)
    return result


class Portal:
    """`manage.py serve` as a demo with the simulator's control API enabled; all its files are under `data`.

    root: the checkout that the next process starts from. process_pool: starts the processes if a test needs many.
    """

    process_pool: ProcessPool | None = None

    def __init__(self, data: Path, **env: Any) -> None:
        self.root, self.data = ROOT, data
        self.port = free_ports()
        self.url = f"http://127.0.0.1:{self.port}"
        self.env = {
            **{name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "REDIS_URL")},
            "DATA_DIR": str(data),
            "PORT": str(self.port),
            "SIMULATOR_SWITCH_KEY": SWITCH_KEY,
            "SIMULATOR_PULL_SECONDS": "0",
            "SIMULATOR_START_SECONDS": "0",
            "SIMULATOR_LATENCY_SECONDS": "0",
            "SIMULATOR_MONITOR_SECONDS": "0",
            "STACK_PROOF_SECONDS": "0",
            "CHANNEL_PREFIX": f"test-{secrets.token_hex(4)}",
            "PYTHONWARNINGS": "default",
            **{name: str(value) for name, value in env.items()},
        }
        self.http = client(self.url)
        self.switches = client(f"http://127.0.0.1:{self.port + 1}/_simulator/", {"X-Simulator-Key": SWITCH_KEY})
        self.router = client(f"http://127.0.0.1:{self.port + 2}")
        self.process: subprocess.Popen[str] | PooledProcess | None = None
        self.output = data / "output"

    def start(self) -> "Portal":
        """Start the portal without the sample deployment, and wait until it answers."""
        self.process = self.manage("serve", "--no-sample")
        until(self.answers, 30, pause=0.05)
        return self

    def manage(self, *arguments: str) -> "subprocess.Popen[str] | PooledProcess":
        """Start `manage.py` with these arguments."""
        if self.process_pool:
            return self.process_pool.manage(*arguments, env=self.env, output=self.output)
        with self.output.open("a") as output:
            command = [sys.executable, "manage.py", *arguments]
            return subprocess.Popen(command, cwd=self.root, env=self.env, stdout=output, stderr=output, text=True)

    def answers(self) -> bool:
        """Return whether the portal answers. Fail with its output if its process has ended."""
        assert self.process is not None
        assert self.process.poll() is None, self.output.read_text()
        try:
            return self.http.get("/help/").status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """Kill the portal with kill -9. Its simulator ends by itself when its pipe closes."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        until(self.ports_are_free, 10)

    def ports_are_free(self) -> bool:
        return all(_is_free(self.port + offset) for offset in range(3))

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send this signal, wait up to 30 s for the end, and return the exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(30)

    def close(self) -> None:
        if self.process is not None:
            self.stop()
        for http in (self.http, self.switches, self.router):
            http.close()

    # -- the API -------------------------------------------------------------------------------------------

    def deploy(self, name: str, **more: Any) -> str:
        """Request a deployment as `curl -d` would; return its id."""
        answer = self.http.post("/api/deploy", content=httpx.Response(200, json={"name": name, **more}).content)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["deploymentId"])

    def status(self, id: str) -> Any:
        answer = self.http.get(f"/api/status/{id}", headers={"Accept": "application/json"})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def events(self, id: str, after: int = 0, wait: float = 0) -> Any:
        """Return the events after a number. If there are none, wait for one up to `wait` seconds."""
        return self.http.get(f"/api/deployments/{id}/events", params={"after": after, "wait": wait}).json()

    def finished(self, id: str, seconds: float = 30) -> Any:
        """Wait until the deployment has ended, and return its state."""
        return until(lambda: (state := self.status(id))["status"] != "in_progress" and state, seconds, pause=0.03)

    def has_free(self, name: str) -> bool:
        """Wait until the name check has Dokploy's answer, and return whether the name is available."""
        ask = lambda: self.http.get(f"/api/check/{name}").json()  # noqa: E731
        return until(lambda: (said := ask())["available"] is not None and said)["available"] is True

    def stream(self, id: str, seconds: float = 60, **headers: str) -> Iterator[dict[str, Any]]:
        """Yield the events of the stream as a client receives them: {"event", "id", "data"}."""
        with self.http.stream("GET", f"/api/status/{id}", headers=headers, timeout=seconds) as answer:
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
            event: dict[str, Any] = {}
            for line in answer.iter_lines():
                if line:
                    name, _, value = line.partition(": ")
                    event[name] = value
                elif "data" in event:
                    yield {**event, "data": httpx.Response(200, content=event["data"]).json()}
                    event = {}

    # -- the simulator's control API -----------------------------------------------------------------------------------

    def turn(self, **settings: Any) -> None:
        """Change settings of the simulator."""
        self.switches.post("settings", json=settings).raise_for_status()

    def fault(self, procedure: str, what: str, **more: Any) -> None:
        """Set a fault for the next call of a procedure, or for as many calls as `times` says (None: for all)."""
        self.switches.post("faults", json={"procedure": procedure, "what": what, **more}).raise_for_status()

    def close_gate(self, name: str) -> None:
        self.switches.put(f"gates/{name}").raise_for_status()

    def open_gate(self, name: str) -> None:
        self.switches.delete(f"gates/{name}").raise_for_status()

    def wait_at(self, name: str, seconds: float = 20) -> None:
        """Wait until a call or a job is held at the gate."""
        answer = self.switches.get(f"gates/{name}", params={"wait": seconds}, timeout=seconds + 5)
        assert answer.json()["waiting"] > 0

    def dokploy(self) -> Any:
        """Return the state of the simulator: all objects, gates, faults and settings."""
        return self.switches.get("state").raise_for_status().json()

    def reset(self) -> None:
        """Open all gates, clear faults and remove delays."""
        for name, gate in self.switches.get("gates").json().items():
            if gate is not None:
                self.open_gate(name)
        self.switches.delete("faults")
        self.turn(pull=0, start=0, latency=0, pull_error=None, engine_error=None, container_status=None, database="up")


def free_ports() -> int:
    """Return the first of three consecutive free ports, below the system's ephemeral range.

    Each parallel test process has a range of its own: a port that is free now could be taken by another.
    """
    share = 12_000 // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    begin = 20_000 + share * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    for first in range(begin + os.getpid() * 7 % (share // 2), begin + share - 2, 3):
        if all(_is_free(first + offset) for offset in range(3)):
            return first
    raise RuntimeError("No free ports.")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class ScaledOut(Portal):
    """A web process and workers on PostgreSQL and Redis. The simulator takes the place of a real Dokploy."""

    def __init__(self, data: Path, simulator: Simulator, database_url: str, redis_url: str, **env: Any) -> None:
        super().__init__(
            data,
            DATABASE_URL=database_url,
            REDIS_URL=redis_url,
            DOKPLOY_URL=f"http://127.0.0.1:{simulator.port}",
            DOKPLOY_API_KEY=KEY,
            PORTAL_OPEN=1,
            PORTAL_OPEN_QUOTA=1000,
            PORTAL_QUOTA=1000,
            ALLOWED_HOSTS="127.0.0.1",
            STACK_IMAGE=IMAGE,
            STACK_DOMAIN_SUFFIX="apps.test",
            STACK_URL="http://{name}.apps.test",
            STACK_CERTIFICATE="none",
            STACK_ROUTER_ADDRESS=f"127.0.0.1:{simulator.router.base_url.port}",
            STACK_HEALTH_INTERVAL_SECONDS=0.2,
            RUNNER_SWEEP_SECONDS=0,
            **env,
        )
        del self.env["SIMULATOR_SWITCH_KEY"]
        self.simulator, self.switches, self.router = simulator, simulator.switches, simulator.router
        self.workers: list[subprocess.Popen[str] | PooledProcess] = []

    def start(self) -> "ScaledOut":
        self.setup()
        self.process = self.spawn("daphne", "-b", "127.0.0.1", "-p", str(self.port), "deployportal.asgi:application")
        until(self.answers, 30, pause=0.05)
        return self

    def setup(self) -> None:
        """Run `manage.py setup`, as after each update."""
        subprocess.run([sys.executable, "manage.py", "setup"], cwd=self.root, env=self.env, check=True)

    def work(self, *command: str) -> "subprocess.Popen[str] | PooledProcess":
        """Start a worker, by default `manage.py worker`, and return its process."""
        self.workers.append(self.manage(*(command or ("worker",))))
        return self.workers[-1]

    def spawn(self, module: str, *arguments: str) -> "subprocess.Popen[str]":
        """Start a Python module with the portal's settings, and return its process."""
        env = {**self.env, "DJANGO_SETTINGS_MODULE": "deployportal.settings", "PYTHONPATH": str(self.root)}
        with self.output.open("a") as output:
            command = [sys.executable, "-m", module, *arguments]
            return subprocess.Popen(command, cwd=self.root, env=env, stdout=output, stderr=output, text=True)

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.wait()
        super().close()
