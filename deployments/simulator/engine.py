"""The pretend container engine, and Dokploy's queue of deploy jobs in front of it."""

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from . import dotenv
from .store import Row, Store
from .switches import Gates, Settings

logger = logging.getLogger(__name__)

NANOID = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
LOWER = "abcdefghijklmnopqrstuvwxyz0123456789"
# Older rows that a new deployment leaves in place.
RETAINED = 10
NO_SOCKET = "connect ENOENT /var/run/docker.sock"
PROVIDERS = {"github": "Github", "gitlab": "Gitlab", "gitea": "Gitea", "bitbucket": "Bitbucket"}
DEPLOYMENT = (
    "deploymentId title description status logPath pid applicationId composeId serverId isPreviewDeployment "
    "previewDeploymentId createdAt startedAt finishedAt errorMessage scheduleId backupId rollbackId "
    "volumeBackupId buildServerId"
).split()


def new_id(length: int = 21, alphabet: str = NANOID) -> str:
    return "".join(secrets.choice(alphabet) for _ in range(length))


def now() -> str:
    """The time as JavaScript's toISOString writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class EngineError(Exception):
    """The engine would not do it; the text is its message."""


class JobFailed(Exception):
    """A deploy job ends with this line in its log."""


@dataclass
class Job:
    number: int
    application_id: str
    title: str
    description: str
    kind: str
    timestamp: int
    processed_on: int | None = None


class Engine:
    def __init__(self, store: Store, settings: Settings, gates: Gates) -> None:
        self.queue: list[Job] = []
        self._store = store
        self._settings = settings
        self._gates = gates
        self._jobs = 0
        self._bell = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._starting: set[asyncio.Task[None]] = set()
        # Set, and replaced, whenever a log has grown.
        self.written = asyncio.Event()

    # The queue. It lives in memory and runs as many jobs at a time as the server's settings say: one, at first.

    def start(self) -> None:
        """What a Dokploy start does: the job that ran is `cancelled`, those that waited are gone."""
        self.queue.clear()
        self._jobs = 0
        for row in self._store.deployments.where(status="running"):
            self._store.deployments.change(row["deploymentId"], status="cancelled")
        for row in self._store.applications.where(applicationStatus="running"):
            self._store.applications.change(row["applicationId"], applicationStatus="idle")
        self._worker = asyncio.create_task(self._work())

    async def stop(self) -> None:
        if self._worker:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)

    async def close(self) -> None:
        await self.stop()
        for task in self._starting:
            task.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)

    def enqueue(self, application_id: str, title: str, description: str, kind: str) -> None:
        self._jobs += 1
        timestamp = int(time.time() * 1000)
        self.queue.append(Job(self._jobs, application_id, title, description, kind, timestamp))
        self._bell.set()

    def clean(self, application_id: str) -> None:
        """Drop the jobs of one application that wait; a running one goes on."""
        self.queue = [job for job in self.queue if job.processed_on or job.application_id != application_id]

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as running:
            while True:
                self._bell.clear()
                for job in self._due():
                    job.processed_on = int(time.time() * 1000)
                    running.create_task(self._process(job))
                await self._bell.wait()

    def _due(self) -> Iterator[Job]:
        """The jobs to start now: the oldest first, never two of one application."""
        busy = {job.application_id for job in self.queue if job.processed_on}
        for job in self.queue:
            if len(busy) >= self._store.settings["server"]["buildsConcurrency"]:
                return
            if job.application_id not in busy:
                busy.add(job.application_id)
                yield job

    async def _process(self, job: Job) -> None:
        try:
            await self._run(job)
        except Exception:
            logger.exception("job %s failed", job.number)
        finally:
            if job in self.queue:
                self.queue.remove(job)
            self._bell.set()

    async def _run(self, job: Job) -> None:
        application = self._store.applications.get(job.application_id)
        if application is None:
            return
        deployment_id = self._begin(job, application)
        await self._gates.pass_through("job")
        try:
            await self._carry_out(job, deployment_id, application)
        except (JobFailed, EngineError, dotenv.UnknownReference) as error:
            self._log(deployment_id, f"{error}\nError occurred ❌, check the logs for details.\n")
            self._end(deployment_id, job.application_id, "error")
        else:
            self._end(deployment_id, job.application_id, "done")

    async def _carry_out(self, job: Job, deployment_id: str, application: Row) -> None:
        source = application["sourceType"]
        if source != "docker":
            raise JobFailed(f"Error: ❌ {PROVIDERS.get(source, 'Git')} Provider not found\n")
        if job.kind == "deploy":
            if not application["dockerImage"]:
                raise JobFailed("Docker image not found")
            await self._pull(deployment_id, application)
        await self._gates.pass_through("stall")
        # Dokploy goes on with the row that it read at the beginning, even if that was deleted since.
        self.apply(application)

    def _begin(self, job: Job, application: Row) -> str:
        application_id = job.application_id
        self._store.applications.change(application_id, applicationStatus="running")
        rows = self._store.deployments.where(applicationId=application_id)
        for row in rows[: max(0, len(rows) - RETAINED)]:
            self._store.deployments.drop(row["deploymentId"])
            self._store.logs.drop(row["deploymentId"])
        deployment_id, created, name = new_id(), now(), application["appName"]
        stamp = f"{created[:10]}:{created[11:19]}"
        row = {
            **dict.fromkeys(DEPLOYMENT),
            "deploymentId": deployment_id,
            "title": job.title,
            "description": job.description,
            "status": "running",
            "logPath": f"/etc/dokploy/logs/{name}/{name}-{stamp}.log",
            "applicationId": application_id,
            "isPreviewDeployment": False,
            "createdAt": created,
            "startedAt": created,
        }
        self._store.deployments.put(deployment_id, row)
        self._store.logs.put(deployment_id, {"text": "Initializing deployment\n"})
        return deployment_id

    def _end(self, deployment_id: str, application_id: str, status: str) -> None:
        self._store.deployments.change(deployment_id, status=status, finishedAt=now())
        self._store.applications.change(application_id, applicationStatus=status)

    def _log(self, deployment_id: str, text: str) -> None:
        if deployment_id in self._store.logs:
            self._store.logs.put(deployment_id, {"text": self._store.logs[deployment_id]["text"] + text})
            self.written.set()
            self.written = asyncio.Event()

    # Pulling.

    async def _pull(self, deployment_id: str, application: Row) -> None:
        image = application["dockerImage"]
        seconds, refusal = self._settings.pull, self._settings.pull_error
        host = registry_host(image)
        self._log(deployment_id, f"Pulling {image}\n")
        if application["username"] and application["password"] and self._settings.login == "refused":
            raise JobFailed("❌ Login failed\n")
        if refusal is None and host.rsplit(":", 1)[0].endswith(".invalid"):
            await asyncio.sleep(seconds / 4)
            name = host.rsplit(":", 1)[0]
            raise JobFailed(
                f'Error response from daemon: Get "https://{host}/v2/": dial tcp: lookup {name}: no such host\n'
                "❌ Pulling image failed\n"
            )
        lines = list(pull_lines(image))
        for number, line in enumerate(lines[:1] if refusal is not None else lines):
            await asyncio.sleep(seconds / len(lines))
            self._log(deployment_id, line + "\n")
            if number == 0:
                await self._gates.pass_through("pull")
        if refusal is not None:
            raise JobFailed(f"{refusal}\n❌ Pulling image failed\n")
        self._log(deployment_id, "✅ Pulling image completed.\n")

    # Services. An update starts the new task before it stops the old one (Dokploy's `start-first`).

    def apply(self, application: Row) -> None:
        """Create or update the service; "done" means no more than that this was accepted."""
        environment = self._store.environments.get(application["environmentId"], {})
        project = self._store.projects.get(environment.get("projectId", ""), {})
        env = dotenv.resolve(application["env"], project.get("env"), environment.get("env"))
        self._require_engine()
        if self._settings.engine_error is not None:
            raise EngineError(self._settings.engine_error)
        name = application["appName"]
        service = {
            "name": name,
            "application": application["name"],
            "image": application["dockerImage"] or "ERROR-NO-IMAGE-PROVIDED",
            "env": env,
            "replicas": max(0, application["replicas"]),
            "healthcheck": bool(application["healthCheckSwarm"]),
            "serving": self._store.services.get(name, {}).get("serving"),
        }
        self._start_task(service)

    def scale(self, name: str, replicas: int) -> None:
        self._require_engine()
        service = self._store.services.get(name)
        if service is None:
            raise EngineError(f"Error: No such service: {name}")
        self._start_task({**service, "replicas": replicas})

    def remove(self, name: str) -> None:
        self._require_engine()
        self._store.services.drop(name)

    def containers(self, prefix: str) -> list[tuple[Row, Row, int]]:
        """(service, task, slot) of every container whose name begins so, as `docker ps` would list them."""
        if self._settings.engine == "down":
            return []
        found = []
        for name, service in self._store.services.items():
            if not name.startswith(prefix):
                continue
            tasks = [service["task"]]
            if service["serving"] and service["serving"]["id"] != service["task"]["id"]:
                tasks.append(service["serving"])
            found += [(service, task, slot) for task in tasks for slot in range(1, service["replicas"] + 1)]
        return found

    def serving(self, name: str) -> Row | None:
        """The task of a service that answers requests."""
        if self._settings.container_status is not None:
            return None
        serving: Row | None = self._store.services.get(name, {}).get("serving")
        return serving

    def wake(self) -> None:
        """After a start of this process: the containers ran on meanwhile, so they are up."""
        for name, service in self._store.services.items():
            if service["replicas"]:
                self._store.services.change(name, serving=service["task"])

    def health(self, service: str) -> Row:
        """What Dokploy finds out about a service of its own by asking the engine for it."""
        if self._settings.engine == "down":
            return {"status": "unhealthy", "message": NO_SOCKET}
        if self._settings.infrastructure == "missing":
            missing = f"(HTTP code 404) no such service - service {service} not found "
            return {"status": "unhealthy", "message": missing}
        return {"status": "healthy"}

    def _require_engine(self) -> None:
        if self._settings.engine == "down":
            raise EngineError(NO_SOCKET)

    def _start_task(self, service: Row) -> None:
        name = service["name"]
        task_id = new_id(25, LOWER)
        service["task"] = {"id": task_id, "image": service["image"], "startedAt": time.time()}
        if not service["replicas"]:
            service["serving"] = None
        self._store.services.put(name, service)
        starting = asyncio.create_task(self._come_up(name, task_id))
        self._starting.add(starting)
        starting.add_done_callback(self._starting.discard)

    async def _come_up(self, name: str, task_id: str) -> None:
        await asyncio.sleep(self._settings.start)
        await self._gates.pass_through("container")
        service = self._store.services.get(name)
        if service and service["replicas"] and service["task"]["id"] == task_id:
            self._store.services.change(name, serving=service["task"])

    # What `docker ps` and `docker service ps` say.

    def container_row(self, service: Row, task: Row, slot: int) -> Row:
        status = self._settings.container_status
        if status is None:
            status = f"Up {duration(time.time() - task['startedAt'])}"
            if service["healthcheck"]:
                status += " (healthy)" if self._is_up(service, task) else " (health: starting)"
        return {
            "containerId": digest(f"{task['id']}.{slot}")[:12],
            "name": f"{service['name']}.{slot}.{task['id']}",
            "state": {"Up": "running"}.get(status.split()[0], status.split()[0].lower()),
            "status": status,
        }

    def task_row(self, service: Row, task: Row, slot: int) -> Row:
        failing = self._settings.container_status is not None and not (self._settings.container_status.startswith("Up"))
        word = "Failed" if failing else "Running" if self._is_up(service, task) else "Starting"
        return {
            "containerId": task["id"],
            "name": f"{service['name']}.{slot}",
            "state": "shutdown" if failing else "running",
            "currentState": f"{word} {duration(time.time() - task['startedAt']).lower()} ago",
            "node": "simulator",
            "error": "task: non-zero exit (1)" if failing else "Error:",
        }

    def _is_up(self, service: Row, task: Row) -> bool:
        serving = self.serving(service["name"])
        return serving is not None and (serving["id"] == task["id"] or serving["startedAt"] > task["startedAt"])

    def queue_list(self) -> list[Row]:
        """Newest first, with the job that runs as `active`."""
        return [self._queue_row(job) for job in reversed(self.queue)]

    def _queue_row(self, job: Job) -> Row:
        application = self._store.applications.get(job.application_id)
        path: Row = {"href": None, "label": "—"}
        if application:
            environment = self._store.environments[application["environmentId"]]
            href = (
                f"/dashboard/project/{environment['projectId']}/environment/{environment['environmentId']}"
                f"/services/application/{job.application_id}"
            )
            path = {"href": href, "label": "Application"}
        data: dict[str, Any] = {
            "applicationId": job.application_id,
            "titleLog": job.title,
            "descriptionLog": job.description,
            "type": job.kind,
            "applicationType": "application",
            "server": False,
        }
        row: Row = {"id": f"job-{job.number}", "name": "deployments", "data": data}
        row["timestamp"] = job.timestamp
        if job.processed_on is not None:
            row["processedOn"] = job.processed_on
        return {**row, "state": "active" if job.processed_on else "waiting", "servicePath": path}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def registry_host(image: str) -> str:
    """The registry of an image's name; empty for Docker Hub (docs.docker.com, "image name")."""
    first, slash, _ = image.partition("/")
    is_host = slash and ("." in first or ":" in first or first == "localhost")
    return first if is_host else ""


def pull_lines(image: str) -> Iterator[str]:
    """What `docker pull` prints when it has no terminal."""
    repository, at, checksum = image.partition("@")
    tag = "latest"
    if ":" in repository.rpartition("/")[2]:
        repository, _, tag = repository.rpartition(":")
    if not registry_host(image) and "/" not in repository:
        repository = f"library/{repository}"
    yield f"{checksum if at else tag}: Pulling from {repository}"
    layers = [digest(f"{image} {number}")[:12] for number in range(4)]
    for layer in layers:
        yield f"{layer}: Pulling fs layer"
    for layer in layers:
        yield f"{layer}: Download complete"
    for layer in layers:
        yield f"{layer}: Pull complete"
    yield f"Digest: {checksum if at else 'sha256:' + digest(image)}"
    yield f"Status: Downloaded newer image for {image}"
    yield image


def duration(seconds: float) -> str:
    """Docker's units.HumanDuration (docker/go-units)."""
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
