"""The JSON form of deployments and events. Old clients depend on it: add fields, but never rename or remove one."""

from datetime import datetime
from typing import TYPE_CHECKING, Any

from ..engine import failures
from ..engine.recipe import TITLES

if TYPE_CHECKING:
    from .deployment import Deployment
    from .event import Event

RESOURCE_FIELDS = {
    "projectId": "project_id",
    "environmentId": "environment_id",
    "applicationId": "application_id",
    "domainId": "domain_id",
}


def deployment_dict(deployment: "Deployment", audience: str, event: "Event | None" = None) -> dict[str, Any]:
    """Return the deployment's present state, or its state at an event. Times are ISO 8601 in UTC.

    The request log is part of the present state only, and is empty for the audience “link”.
    """
    at = event or deployment
    resources = event.data.get("resources", {}) if event else resource_ids(deployment.resources)
    ended = at.status != deployment.Status.IN_PROGRESS
    return {
        "deploymentId": deployment.pk,
        "name": deployment.stack.name,
        "kind": deployment.kind,
        "phase": at.phase,
        "status": at.status,
        "progress": at.progress,
        "message": at.message,
        "currentStep": TITLES.get(at.phase, at.phase),
        "url": deployment.stack.url if resources.get("domainId") else None,
        "resources": resources,
        "error": error_dict(event.data.get("error") if event else deployment.error, audience),
        "timestamps": {
            "started": iso(deployment.created_at),
            "updated": iso(event.at if event else deployment.updated_at),
            "completed": iso(deployment.completed_at) if ended else None,
        },
        **({} if event else {"logs": deployment.requests if audience != "link" else []}),
        "version": event.seq if event else deployment.version,
        "cancelRequested": deployment.cancel_requested_at is not None,
    }


def event_dict(event: "Event", audience: str) -> dict[str, Any]:
    """Return one event. The audience “link” gets no log lines and no user names."""
    hidden = audience == "link" and event.type == event.Type.LOG
    data = {} if hidden else dict(event.data)
    if audience == "link":
        data.pop("by", None)
    if "error" in data:
        data["error"] = error_dict(data["error"], audience)
    return {
        "seq": event.seq,
        "at": iso(event.at),
        "kind": event.type,
        "phase": event.phase,
        "status": event.status,
        "progress": event.progress,
        "message": "" if hidden else event.message,
        "data": data,
    }


def error_dict(error: dict[str, Any] | None, audience: str) -> dict[str, Any] | None:
    """Return the part of a stored failure that this audience may see; None if there is none."""
    if not error:
        return None
    shown = {key: error[key] for key in ("phase", "code", "message", "retryable")}
    shown["help"] = f"/help/{error['code']}"
    if audience != "link" and error.get("evidence"):
        shown["evidence"] = error["evidence"]
    if audience == "operator" and (advice := failures.get(error["code"]).operator):
        shown["operator"] = advice
    return shown


def resource_ids(stored: dict[str, Any]) -> dict[str, str]:
    """Return the ids at Dokploy under their JSON names, as far as they are known."""
    return {field: stored[name] for field, name in RESOURCE_FIELDS.items() if stored.get(name)}


def iso(at: datetime | None) -> str | None:
    """Return a time in UTC as ISO 8601, with milliseconds and Z."""
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z") if at else None
