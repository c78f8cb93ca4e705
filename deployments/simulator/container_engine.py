"""The simulated container engine (Docker Swarm): services and their containers."""

import asyncio
import hashlib
import time
from dataclasses import dataclass

from . import dotenv
from .gates import Gates
from .settings import Settings
from .store import LOWER_CASE_ALPHABET, Row, Store, new_id

NO_SOCKET = "connect ENOENT /var/run/docker.sock"


class EngineError(Exception):
    """The engine rejected a request. The text is the engine's message."""


@dataclass(frozen=True)
class Container:
    service: Row
    task: Row
    slot: int


class ContainerEngine:
    """Services by name. An update starts the new task before it stops the old one (Dokploy's `start-first`).

    In a service's row, `task` is the newest task and `serving` the task that answers requests.
    """

    def __init__(self, store: Store, settings: Settings, gates: Gates) -> None:
        self._store = store
        self._settings = settings
        self._gates = gates
        self._starting: set[asyncio.Task[None]] = set()

    def restore(self) -> None:
        """Mark the newest task of every service as serving, because containers outlive this process."""
        for name, service in self._store.services.items():
            if service["replicas"]:
                self._store.services.change(name, serving=service["task"])

    async def close(self) -> None:
        for task in self._starting:
            task.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)

    def apply(self, application: Row) -> None:
        """Create or update an application's service. Raises UnknownReference or EngineError."""
        environment = self._store.environments.get(application["environmentId"], {})
        project = self._store.projects.get(environment.get("projectId", ""), {})
        env = dotenv.resolve(application["env"], project.get("env"), environment.get("env"))
        self._require_engine()
        if self._settings.engine_error is not None:
            raise EngineError(self._settings.engine_error)
        name = application["appName"]
        image = application["dockerImage"] or "ERROR-NO-IMAGE-PROVIDED"
        service = {
            "name": name,
            "application": application["name"],
            "image": image,
            "env": env,
            "replicas": max(0, application["replicas"]),
            "healthcheck": bool(application["healthCheckSwarm"]),
            "task": {"id": new_id(25, LOWER_CASE_ALPHABET), "image": image, "startedAt": time.time()},
            "serving": self._store.services.get(name, {}).get("serving"),
        }
        if not service["replicas"]:
            service["serving"] = None
        self._store.services.put(name, service)
        starting = asyncio.create_task(self._start_task(name, service["task"]["id"]))
        self._starting.add(starting)
        starting.add_done_callback(self._starting.discard)

    async def _start_task(self, name: str, task_id: str) -> None:
        await asyncio.sleep(self._settings.start)
        await self._gates.pass_through("container")
        service = self._store.services.get(name)
        if service and service["replicas"] and service["task"]["id"] == task_id:
            self._store.services.change(name, serving=service["task"])

    def remove(self, name: str) -> None:
        """Remove a service and its containers. Raises EngineError."""
        self._require_engine()
        self._store.services.drop(name)

    def _require_engine(self) -> None:
        if self._settings.engine == "down":
            raise EngineError(NO_SOCKET)

    def serving_task(self, name: str) -> Row | None:
        """Return the task of a service that answers requests, or None."""
        if self._settings.container_status is not None:
            return None
        serving: Row | None = self._store.services.get(name, {}).get("serving")
        return serving

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
            found += [Container(service, task, slot) for task in tasks for slot in range(1, service["replicas"] + 1)]
        return found

    def describe(self, container: Container) -> Row:
        """Return a container's row in the form of `docker ps`."""
        service, task = container.service, container.task
        status = self._settings.container_status
        if status is None:
            status = f"Up {format_duration(time.time() - task['startedAt'])}"
            if service["healthcheck"]:
                status += " (healthy)" if self._is_up(service, task) else " (health: starting)"
        word = status.split()[0]
        return {
            "containerId": digest(f"{task['id']}.{container.slot}")[:12],
            "name": f"{service['name']}.{container.slot}.{task['id']}",
            "state": "running" if word == "Up" else word.lower(),
            "status": status,
        }

    def _is_up(self, service: Row, task: Row) -> bool:
        serving = self.serving_task(service["name"])
        return serving is not None and (serving["id"] == task["id"] or serving["startedAt"] > task["startedAt"])

    def infrastructure_health(self, service: str) -> Row:
        """Return Dokploy's report on one of its own services, which it requests from the engine."""
        if self._settings.engine == "down":
            return {"status": "unhealthy", "message": NO_SOCKET}
        if self._settings.infrastructure == "missing":
            missing = f"(HTTP code 404) no such service - service {service} not found "
            return {"status": "unhealthy", "message": missing}
        return {"status": "healthy"}


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
