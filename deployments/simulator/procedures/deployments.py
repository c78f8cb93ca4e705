"""Dokploy deployments, their logs, and the queue of deploy jobs."""

from ..server import DokployServer
from ..store import Row
from ..zod import Field
from .registry import TEXT, query, require


@query("deployment.all", applicationId=TEXT)
def list_deployments(server: DokployServer, given: Row) -> object:
    """Return the deployments of an application, newest first."""
    return server.store.deployments.where(applicationId=given["applicationId"])[::-1]


@query("deployment.queueList")
def list_queue(server: DokployServer, given: Row) -> object:
    return server.queue.list_jobs()


@query("deployment.readLogs", deploymentId=TEXT, tail=Field("number", "optional", minimum=1, maximum=10000))
def read_log(server: DokployServer, given: Row) -> object:
    """Return the last lines of a deployment's log, by default 100."""
    deployment = require(server.store.deployments.get(given["deploymentId"]), "Deployment")
    lines = server.store.logs[deployment["deploymentId"]]["text"].splitlines(keepends=True)
    return "".join(lines[-given.get("tail", 100) :])
