"""Decode Dokploy's responses: from HTTP to a value or an error, and from rows to typed objects.

The statuses and messages are those of Dokploy v0.30.2.
"""

import json
import re
from collections.abc import Callable
from typing import Any, TypeVar, cast

from ..errors import (
    KeyExhausted,
    KeyRefused,
    NotAllowed,
    NotDokploy,
    NotFound,
    OutcomeUnknown,
    Refused,
    Unavailable,
    UnknownProcedure,
)
from .types import (
    Application,
    Container,
    ContainerState,
    DeploymentStatus,
    DokployDeployment,
    Domain,
    Environment,
    Json,
    Project,
    QueueEntry,
    QueueState,
    SavedConfig,
    Service,
)

# Messages about a container engine that does not answer (Node's network errors) or cannot run services (Docker's 5xx).
_ENGINE_ERROR = re.compile(r"(connect|read|write|getaddrinfo) E|socket hang up|\(HTTP code 5")
_SERVICE_LISTS = ("applications", "mariadb", "mongo", "mysql", "postgres", "redis", "compose", "libsql")

T = TypeVar("T")


def decode_response(procedure: str, status: int, body: bytes) -> Json:  # noqa: C901 # one branch for each meaning
    """Return the decoded body of a successful response, or raise the DokployError that the response stands for.

    An empty body is decoded to None.
    """
    if 200 <= status < 300:
        if not body.strip():
            return None
        try:
            return json.loads(body)
        except (ValueError, RecursionError):  # without the error's text: the body contains variables of other users
            raise OutcomeUnknown("Dokploy's response is not valid JSON.") from None
    if 300 <= status < 400:
        raise NotDokploy("DOKPLOY_URL leads to a redirect. Set it to the final address.")
    error = decode_error(body)
    message = error.get("message") if isinstance(error.get("message"), str) else ""
    data = error.get("data")
    path = data.get("path") if isinstance(data, dict) else None
    evidence = "" if "Failed query" in str(message) else one_line(str(message))  # failed SQL contains stored values
    if status == 401 and not path:
        raise KeyRefused(
            "Dokploy rejects the portal's API key: the key is invalid, or its rate limit is reached. "
            "Create a key with rateLimitEnabled:false."
        )
    if status == 401 and message == "UNAUTHORIZED":
        raise KeyExhausted("The portal's API key reached its rate limit at Dokploy.")
    if status in (401, 403):
        raise NotAllowed(f"The portal's API key does not have permission for {procedure}.", evidence=evidence)
    if status == 404 and error.get("code") == "NOT_FOUND" and not path:
        raise UnknownProcedure(f"This version of Dokploy does not support {procedure}.", evidence=procedure)
    if status == 404 and not path:
        raise NotDokploy("The server at DOKPLOY_URL does not have Dokploy's API.", evidence=procedure)
    if status == 404:
        raise NotFound(f"Dokploy did not find the object of {procedure}.", evidence=evidence)
    if status == 400 and (error.get("issues") or body.strip() == b"Invalid JSON"):
        raise Refused("Dokploy rejected a setting of this stack.", evidence=_first_issue(error) or evidence)
    if status in (413, 415):
        raise Refused("Dokploy rejected the request.", evidence=evidence)
    if status == 429:
        raise Unavailable("Dokploy received too many requests.")
    # Dokploy may send any other 4xx or 5xx after it did the work: project.create turns every error into a 400.
    raise OutcomeUnknown(f"Dokploy answered {status} to {procedure}.", evidence=evidence)


def decode_error(body: bytes) -> dict[str, Any]:
    """Return the JSON object in the body of an error. Return an empty one when the body is anything else."""
    try:
        error = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return error if isinstance(error, dict) else {}


def is_ambiguous_401(status: int, body: bytes) -> bool:
    """Return whether this is the 401 that Dokploy sends before it calls the procedure.

    It has three possible causes: an invalid key, an exhausted rate limit, or a database that does not answer.
    """
    return status == 401 and "data" not in decode_error(body)


def is_engine_error(message: str) -> bool:
    """Return whether a message from Dokploy says that its container engine does not work."""
    return bool(_ENGINE_ERROR.match(message))


def one_line(text: object, limit: int = 200) -> str:
    """Return the text on one line, cut to `limit` characters."""
    return " ".join(str(text).split())[:limit]


def _first_issue(error: dict[str, Any]) -> str:
    """Return the field and the message of a validation error's first issue."""
    issues = error.get("issues")
    first = issues[0] if isinstance(issues, list) and issues else None
    if not isinstance(first, dict):
        return ""
    path = first.get("path")
    field = ".".join(str(part) for part in path) if isinstance(path, list) else ""
    return one_line(f"{field}: {first.get('message', '')}")


# -- values, validated where they enter --------------------------------------------------------------------------------


def require_created(parse: Callable[[], T]) -> T:
    """Return what `parse` reads from the response to a create call.

    Raise OutcomeUnknown when the object is missing or malformed: it may have been created.
    """
    try:
        return parse()
    except (Unavailable, KeyError):
        raise OutcomeUnknown("Dokploy's response does not contain the created object.") from None


def require_object(value: Json) -> dict[str, Any]:
    """Return the value if it is a JSON object. Raise Unavailable otherwise."""
    if not isinstance(value, dict):
        raise Unavailable("Dokploy's response has an unexpected format.")
    return value


def require_rows(value: Json) -> list[dict[str, Any]]:
    """Return the value if it is a list of JSON objects. Raise Unavailable otherwise."""
    if not isinstance(value, list):
        raise Unavailable("Dokploy's response has an unexpected format.")
    return [require_object(row) for row in value]


def require_str(row: dict[str, Any], key: str) -> str:
    """Return a field that is a non-empty string. Raise Unavailable otherwise."""
    value = row.get(key)
    if not isinstance(value, str) or not value:
        raise Unavailable(f"Dokploy's response lacks {key}.")
    return value


def optional_str(row: dict[str, Any], key: str) -> str | None:
    """Return a field if it is a string, else None."""
    value = row.get(key)
    return value if isinstance(value, str) else None


# -- rows --------------------------------------------------------------------------------------------------------------


def parse_project(row: dict[str, Any]) -> Project:
    """Return the project of a row of project.all or project.create."""
    environments = require_rows(row.get("environments") or [])
    applications = [app for environment in environments for app in require_rows(environment.get("applications") or [])]
    return Project(
        id=require_str(row, "projectId"),
        name=require_str(row, "name"),
        description=optional_str(row, "description") or "",
        created_at=optional_str(row, "createdAt") or "",
        application_ids=tuple(require_str(application, "applicationId") for application in applications),
    )


def parse_application(row: dict[str, Any]) -> Application:
    """Return the application of a row of application.create or environment.byProjectId."""
    return Application(
        id=require_str(row, "applicationId"),
        name=require_str(row, "name"),
        app_name=require_str(row, "appName"),
        description=optional_str(row, "description") or "",
        created_at=optional_str(row, "createdAt") or "",
    )


def parse_saved_config(row: dict[str, Any]) -> SavedConfig:
    """Return the configuration in a row of application.one. The registry's password and other fields are not kept."""
    return SavedConfig(
        source=optional_str(row, "sourceType") or "",
        image=optional_str(row, "dockerImage") or "",
        env=optional_str(row, "env") or "",
    )


def parse_service(row: dict[str, Any]) -> Service:
    """Return the service of a response to docker.getConfig, which is `docker service inspect`."""
    template = require_object(require_object(row.get("Spec")).get("TaskTemplate"))
    update = row.get("UpdateStatus") or {}
    return Service(
        image=require_str(require_object(template.get("ContainerSpec")), "Image"),
        update_state=optional_str(require_object(update), "State") or "",
        update_started_at=optional_str(require_object(update), "StartedAt") or "",
    )


def parse_environment(row: dict[str, Any]) -> Environment:
    """Return the environment of a row of environment.byProjectId."""
    services = [service for name in _SERVICE_LISTS for service in require_rows(row.get(name) or [])]
    return Environment(
        id=require_str(row, "environmentId"),
        is_default=row.get("isDefault") is True,
        applications=tuple(parse_application(entry) for entry in require_rows(row.get("applications") or [])),
        services=len(services),
    )


def parse_domain(row: dict[str, Any]) -> Domain:
    """Return the domain of a row of domain.create or domain.byApplicationId."""
    port = row.get("port")
    return Domain(
        id=require_str(row, "domainId"),
        host=require_str(row, "host"),
        path=optional_str(row, "path") or "/",
        port=port if isinstance(port, int) else None,
        https=row.get("https") is True,
        certificate_type=optional_str(row, "certificateType") or "none",
        application_id=optional_str(row, "applicationId") or "",
        created_at=optional_str(row, "createdAt") or "",
    )


def parse_dokploy_deployment(row: dict[str, Any]) -> DokployDeployment:
    """Return the Dokploy deployment of a row of deployment.all."""
    return DokployDeployment(
        id=require_str(row, "deploymentId"),
        title=require_str(row, "title"),
        status=cast(DeploymentStatus, require_str(row, "status")),
        log_path=optional_str(row, "logPath") or "",
    )


def parse_queue_entry(row: dict[str, Any]) -> QueueEntry:
    """Return the entry of a row of deployment.queueList."""
    data = require_object(row.get("data"))
    timestamp = row.get("timestamp")
    return QueueEntry(
        application_id=optional_str(data, "applicationId"),
        title=optional_str(data, "titleLog") or "",
        state=cast(QueueState, require_str(row, "state")),
        timestamp=timestamp if isinstance(timestamp, int) else 0,
    )


def parse_container(row: dict[str, Any]) -> Container:
    """Return the container of a row of docker.getContainersByAppNameMatch."""
    return Container(
        name=optional_str(row, "name") or "",
        state=cast(ContainerState, optional_str(row, "state") or ""),
        status=optional_str(row, "status") or "",
    )


def parse_infrastructure_error(part: dict[str, Any]) -> str:
    """Return the error of one part in settings.checkInfrastructureHealth. Empty when the part is healthy."""
    if require_str(part, "status") == "healthy":
        return ""
    return one_line(optional_str(part, "message") or "unhealthy")
