"""The simulated container engine (Docker Swarm): services and their containers."""

import asyncio
import hashlib
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from math import inf

from . import dotenv
from .gates import Gates
from .settings import Settings
from .store import LOWER_CASE_ALPHABET, Row, Store, new_id, pick

NO_SOCKET = "connect ENOENT /var/run/docker.sock"


class EngineError(Exception):
    """The engine rejected a request. The text is the engine's message."""


SPEC = ("image", "env", "replicas", "healthcheck")
KEPT_TASKS = 5  # Docker's default


@dataclass(frozen=True)
class Container:
    service: Row
    task: Row
    slot: int


class ContainerEngine:
    """Services by name. An update starts the new task before it stops the old one (Dokploy's `start-first`).

    In a service's row, `task` is the newest task, `serving` the task that answers requests, `ended` the tasks whose
    program has ended, `update` the UpdateStatus of Docker's API, and `previous` the spec before the last update.
    An update whose program ends within settings.monitor is rolled back, as Dokploy's defaults ask Swarm to do.
    """

    def __init__(self, store: Store, settings: Settings, gates: Gates) -> None:
        self._store = store
        self._settings = settings
        self._gates = gates
        self._running: set[asyncio.Task[None]] = set()

    def restore(self) -> None:
        """Mark the newest task of every service as serving, because containers outlive this process."""
        for name, service in self._store.services.items():
            kept = {"previous": None, "update": None, "ended": [], "output": [], **service}
            serving = service["task"] if service["replicas"] else service["serving"]
            self._store.services.put(name, {**kept, "serving": serving})

    async def close(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def apply(self, application: Row) -> None:
        """Create or update an application's service. Raises UnknownReference or EngineError."""
        environment = self._store.environments.get(application["environmentId"], {})
        project = self._store.projects.get(environment.get("projectId", ""), {})
        env = dotenv.resolve(application["env"], project.get("env"), environment.get("env"))
        self._require_engine()
        if self._settings.engine_error is not None:
            raise EngineError(self._settings.engine_error)
        name = application["appName"]
        before = self._store.services.get(name)
        service = {
            "name": name,
            "application": application["name"],
            "image": application["dockerImage"] or "ERROR-NO-IMAGE-PROVIDED",
            "env": env,
            "replicas": max(0, application["replicas"]),
            "healthcheck": bool(application["healthCheckSwarm"]),
            "previous": pick(before, *SPEC) if before else None,
            "update": new_update("updating", "update in progress") if before else None,
            "ended": before["ended"] if before else [],
            "serving": before["serving"] if before else None,
            "output": before["output"] if before else [],
        }
        if not service["replicas"]:
            service["serving"] = None
        self._store.services.put(name, service)
        self._begin_task(name)

    def _begin_task(self, name: str, delay: float = 0.0) -> None:
        """Give the service a new task, and run the task after `delay` seconds."""
        image = self._store.services[name]["image"]
        task = {"id": new_id(25, LOWER_CASE_ALPHABET), "image": image, "startedAt": time.time() + delay}
        self._store.services.change(name, task=task)
        running = asyncio.create_task(self._run_task(name, task["id"], delay))
        self._running.add(running)
        running.add_done_callback(self._running.discard)

    async def _run_task(self, name: str, task_id: str, delay: float) -> None:
        await asyncio.sleep(self._settings.start + delay)
        await self._gates.pass_through("container")
        service = self._current(name, task_id)
        if service is None or not service["replicas"]:
            return
        program = self._settings.programs.get(service["image"], {})
        lives, monitor = program.get("lives", inf), self._settings.monitor
        self._store.services.change(name, serving=service["task"], output=self._output(service, "starts", program))
        is_update = (service["update"] or {}).get("State") in ("updating", "rollback_started")
        if is_update:
            await asyncio.sleep(min(lives, monitor))
            if self._current(name, task_id) is None:
                return
            if lives < monitor:
                self._end_task(name, program)
                if service["previous"]:
                    self._roll_back(name)
                else:  # the program of the previous spec ends too
                    self._begin_task(name, self._settings.restart_delay)
                return
            self._finish_update(name)
            lives -= monitor
        if lives != inf:
            await asyncio.sleep(lives)
            if self._current(name, task_id) is not None:
                self._end_task(name, program)
                self._begin_task(name, self._settings.restart_delay)

    def _current(self, name: str, task_id: str) -> Row | None:
        service = self._store.services.get(name)
        return service if service and service["task"]["id"] == task_id else None

    def _end_task(self, name: str, program: Row) -> None:
        """Let the program of the newest task end."""
        service = self._store.services[name]
        ended = {**service["task"], "endedAt": time.time(), "exitCode": program["exit_code"]}
        self._store.services.change(
            name,
            serving=None,
            ended=[ended, *service["ended"]][:KEPT_TASKS],
            output=self._output(service, "ends", program),
        )

    def _roll_back(self, name: str) -> None:
        """Return to the previous spec, in a container with a new name."""
        service = self._store.services[name]
        update = {**service["update"], "State": "rollback_started", "Message": "update rolled back due to failure"}
        self._store.services.change(name, **service["previous"], previous=None, update=update)
        self._begin_task(name)

    def _finish_update(self, name: str) -> None:
        update = self._store.services[name]["update"]
        state = "rollback_completed" if update["State"].startswith("rollback") else "completed"
        message = {"completed": "update completed", "rollback_completed": "rollback completed"}[state]
        self._store.services.change(name, update={**update, "State": state, "CompletedAt": stamp(), "Message": message})

    def _output(self, service: Row, event: str, program: Row) -> list[str]:
        """Return the service's log after its program started or ended. The newest container's lines come first."""
        lines = [f"{stamp()} {line}" for line in program.get(event, [])]
        return [*lines, *service["output"]]

    def remove(self, name: str) -> None:
        """Remove a service and its containers. Raises EngineError."""
        self._require_engine()
        self._store.services.drop(name)

    def _require_engine(self) -> None:
        if self._settings.engine == "down":
            raise EngineError(NO_SOCKET)

    def serving_task(self, name: str) -> Row | None:
        """Return the task that answers a service's requests, or None."""
        if self._settings.container_status is not None:
            return None
        serving: Row | None = self._store.services.get(name, {}).get("serving")
        return serving

    def listens(self, name: str) -> bool:
        """Return whether the program of a service listens on the port that its domain leads to."""
        service = self._store.services.get(name, {})
        return bool(self._settings.programs.get(service.get("image", ""), {}).get("listens", True))

    def containers(self, prefix: str) -> list[Container]:
        """Return every container whose name has this prefix, in the order of `docker ps`."""
        if self._settings.engine == "down":
            return []
        found = []
        for name, service in self._store.services.items():
            if not name.startswith(prefix):
                continue
            tasks = [service["task"]]
            if service["serving"] and service["serving"]["id"] != service["task"]["id"]:
                tasks.append(service["serving"])
            tasks += service["ended"]
            found += [Container(service, task, slot) for task in tasks for slot in range(1, service["replicas"] + 1)]
        return found

    def describe(self, container: Container) -> Row:
        """Return a container's row in the form of `docker ps`."""
        service, task = container.service, container.task
        status = self._settings.container_status
        if status is None:
            status = self._status(service, task)
        word = status.split()[0]
        return {
            "containerId": digest(f"{task['id']}.{container.slot}")[:12],
            "name": f"{service['name']}.{container.slot}.{task['id']}",
            "state": "running" if word == "Up" else word.lower(),
            "status": status,
        }

    def _status(self, service: Row, task: Row) -> str:
        if "endedAt" in task:
            return f"Exited ({task['exitCode']}) {format_duration(time.time() - task['endedAt'])} ago"
        if task["startedAt"] > time.time():
            return "Created"
        status = f"Up {format_duration(time.time() - task['startedAt'])}"
        if service["healthcheck"]:
            status += " (healthy)" if self._is_up(service, task) else " (health: starting)"
        return status

    def _is_up(self, service: Row, task: Row) -> bool:
        serving = self.serving_task(service["name"])
        return serving is not None and (serving["id"] == task["id"] or serving["startedAt"] > task["startedAt"])

    def inspect_service(self, name: str) -> Row | None:
        """Return a service in the form of Docker's API, or None if there is none."""
        service = self._store.services.get(name)
        if service is None or self._settings.engine == "down":
            return None
        found: Row = {"Spec": {"Name": name, "TaskTemplate": task_template(service)}}
        if service["previous"] and not (service["update"] or {}).get("State", "").startswith("rollback"):
            found["PreviousSpec"] = {"Name": name, "TaskTemplate": task_template(service["previous"])}
        return {**found, "UpdateStatus": service["update"]} if service["update"] else found

    def logs(self, name: str, tail: int) -> str:
        """Return the last lines that the programs of a service's containers wrote, not in order of time."""
        lines = self._store.services[name]["output"][:tail]
        return "".join(f"{line}\n" for line in lines)

    def infrastructure_health(self, service: str) -> Row:
        """Return Dokploy's report on one of its own services. Dokploy asks the engine about it."""
        if self._settings.engine == "down":
            return {"status": "unhealthy", "message": NO_SOCKET}
        if self._settings.infrastructure == "missing":
            missing = f"(HTTP code 404) no such service - service {service} not found "
            return {"status": "unhealthy", "message": missing}
        return {"status": "healthy"}


def new_update(state: str, message: str) -> Row:
    return {"State": state, "StartedAt": stamp(), "Message": message}


def stamp() -> str:
    """Return the time in the format of Docker's API, in nanoseconds."""
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


def task_template(spec: Row) -> Row:
    return {"ContainerSpec": {"Image": spec["image"], "Env": spec["env"]}}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def format_duration(seconds: float) -> str:
    """Format a duration as Docker does (units.HumanDuration of docker/go-units)."""
    minutes, hours = int(seconds // 60), int(seconds / 3600 + 0.5)
    if seconds < 1:
        return "Less than a second"
    if seconds < 2:
        return "1 second"
    if seconds < 60:
        return f"{int(seconds)} seconds"
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    if hours == 1:
        return "About an hour"
    return f"{hours} hours" if hours < 48 else f"{hours // 24} days"
