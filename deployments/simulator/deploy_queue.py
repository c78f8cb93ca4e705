"""Dokploy's queue of deploy jobs, and the execution of a job: deployment, log, pull, update of the service."""

import asyncio
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .container_engine import ContainerEngine, EngineError
from .dotenv import UnknownReference
from .gates import Gates
from .pull import has_no_host, pull_lines, registry_host
from .settings import Settings
from .store import Row, Store, new_id, now

logger = logging.getLogger(__name__)

# The number of older deployments of an application that are kept when a new one begins.
RETAINED = 10
PROVIDERS = {"github": "Github", "gitlab": "Gitlab", "gitea": "Gitea", "bitbucket": "Bitbucket"}
DEPLOYMENT_COLUMNS = (
    "deploymentId title description status logPath pid applicationId composeId serverId isPreviewDeployment "
    "previewDeploymentId createdAt startedAt finishedAt errorMessage scheduleId backupId rollbackId "
    "volumeBackupId buildServerId"
).split()


class JobFailed(Exception):
    """A deploy job failed. The text is the end of its log."""


@dataclass
class Job:
    number: int
    application_id: str
    title: str
    description: str
    type: str
    timestamp: int = field(default_factory=lambda: int(time.time() * 1000))
    processed_on: int | None = None


class DeployQueue:
    """The queue, in memory only. The server's `buildsConcurrency` limits the concurrent jobs, initially to one."""

    def __init__(self, store: Store, engine: ContainerEngine, settings: Settings, gates: Gates) -> None:
        # Whenever a log grows, this event is set and replaced by a new one.
        self.log_written = asyncio.Event()
        self._jobs: list[Job] = []
        self._last_number = 0
        self._store = store
        self._engine = engine
        self._settings = settings
        self._gates = gates
        self._changed = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start with an empty queue and set running deployments to `cancelled`, as Dokploy does when it starts."""
        self._jobs.clear()
        self._last_number = 0
        for row in self._store.deployments.where(status="running"):
            self._store.deployments.change(row["deploymentId"], status="cancelled")
        for row in self._store.applications.where(applicationStatus="running"):
            self._store.applications.change(row["applicationId"], applicationStatus="idle")
        self._worker = asyncio.create_task(self._work())

    async def stop(self) -> None:
        if self._worker:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)

    def add(self, application_id: str, title: str, description: str, type: str) -> None:
        self._last_number += 1
        self._jobs.append(Job(self._last_number, application_id, title, description, type))
        self._changed.set()

    def clean(self, application_id: str) -> None:
        """Remove the waiting jobs of an application. A running job continues."""
        self._jobs = [job for job in self._jobs if job.processed_on or job.application_id != application_id]

    def list_jobs(self) -> list[Row]:
        """Return the jobs as Dokploy lists them, newest first."""
        return [self._describe(job) for job in reversed(self._jobs)]

    def _describe(self, job: Job) -> Row:
        path: Row = {"href": None, "label": "—"}
        application = self._store.applications.get(job.application_id)
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
            "type": job.type,
            "applicationType": "application",
            "server": False,
        }
        row: Row = {"id": f"job-{job.number}", "name": "deployments", "data": data, "timestamp": job.timestamp}
        if job.processed_on is not None:
            row["processedOn"] = job.processed_on
        return {**row, "state": "active" if job.processed_on else "waiting", "servicePath": path}

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as running:
            while True:
                self._changed.clear()
                for job in self._due_jobs():
                    job.processed_on = int(time.time() * 1000)
                    running.create_task(self._process(job))
                await self._changed.wait()

    def _due_jobs(self) -> Iterator[Job]:
        """Yield the jobs to start now, oldest first, at most one per application and within the limit."""
        busy = {job.application_id for job in self._jobs if job.processed_on}
        for job in self._jobs:
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
            if job in self._jobs:
                self._jobs.remove(job)
            self._changed.set()

    async def _run(self, job: Job) -> None:
        application = self._store.applications.get(job.application_id)
        if application is None:
            return
        deployment_id = self._begin_deployment(job, application)
        await self._gates.pass_through("job")
        try:
            await self._deploy(job, deployment_id, application)
        except (JobFailed, EngineError, UnknownReference) as error:
            self._log(deployment_id, f"{error}\nError occurred ❌, check the logs for details.\n")
            self._end_deployment(deployment_id, job.application_id, "error")
        else:
            self._end_deployment(deployment_id, job.application_id, "done")

    async def _deploy(self, job: Job, deployment_id: str, application: Row) -> None:
        source = application["sourceType"]
        if source != "docker":
            raise JobFailed(f"Error: ❌ {PROVIDERS.get(source, 'Git')} Provider not found\n")
        if job.type == "deploy":
            if not application["dockerImage"]:
                raise JobFailed("Docker image not found")
            await self._pull(deployment_id, application)
        await self._gates.pass_through("stall")
        # Dokploy uses the row that it read at the beginning, even if the application was deleted meanwhile.
        self._engine.apply(application)

    def _begin_deployment(self, job: Job, application: Row) -> str:
        self._store.applications.change(job.application_id, applicationStatus="running")
        self._remove_old_deployments(job.application_id)
        deployment_id, created, name = new_id(), now(), application["appName"]
        stamp = f"{created[:10]}:{created[11:19]}"
        row = {
            **dict.fromkeys(DEPLOYMENT_COLUMNS),
            "deploymentId": deployment_id,
            "title": job.title,
            "description": job.description,
            "status": "running",
            "logPath": f"/etc/dokploy/logs/{name}/{name}-{stamp}.log",
            "applicationId": job.application_id,
            "isPreviewDeployment": False,
            "createdAt": created,
            "startedAt": created,
        }
        self._store.deployments.put(deployment_id, row)
        self._store.logs.put(deployment_id, {"text": "Initializing deployment\n"})
        return deployment_id

    def _remove_old_deployments(self, application_id: str) -> None:
        rows = self._store.deployments.where(applicationId=application_id)
        for row in rows[: max(0, len(rows) - RETAINED)]:
            self._store.deployments.drop(row["deploymentId"])
            self._store.logs.drop(row["deploymentId"])

    def _end_deployment(self, deployment_id: str, application_id: str, status: str) -> None:
        self._store.deployments.change(deployment_id, status=status, finishedAt=now())
        self._store.applications.change(application_id, applicationStatus=status)

    def _log(self, deployment_id: str, text: str) -> None:
        if deployment_id in self._store.logs:
            self._store.logs.put(deployment_id, {"text": self._store.logs[deployment_id]["text"] + text})
            self.log_written.set()
            self.log_written = asyncio.Event()

    async def _pull(self, deployment_id: str, application: Row) -> None:
        image = application["dockerImage"]
        self._log(deployment_id, f"Pulling {image}\n")
        if application["username"] and application["password"] and self._settings.login == "refused":
            raise JobFailed("❌ Login failed\n")
        seconds, error = self._settings.pull, self._settings.pull_error
        if error is None and has_no_host(image):
            await asyncio.sleep(seconds / 4)
            host = registry_host(image)
            raise JobFailed(
                f'Error response from daemon: Get "https://{host}/v2/": dial tcp: lookup {host.rsplit(":", 1)[0]}: '
                "no such host\n❌ Pulling image failed\n"
            )
        lines = list(pull_lines(image))
        for number, line in enumerate(lines if error is None else lines[:1]):
            await asyncio.sleep(seconds / len(lines))
            self._log(deployment_id, line + "\n")
            if number == 0:
                await self._gates.pass_through("pull")
        if error is not None:
            raise JobFailed(f"{error}\n❌ Pulling image failed\n")
        self._log(deployment_id, "✅ Pulling image completed.\n")
