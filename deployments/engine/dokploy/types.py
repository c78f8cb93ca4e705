"""The objects that Dokploy's API returns, reduced to the fields that the portal uses.

Statuses and states are typed for reading only: an unknown value from another version of Dokploy is kept as it is.
"""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

Json = Any
"""A decoded JSON value of unknown type."""

DeploymentStatus = Literal["running", "done", "error", "cancelled"]
QueueState = Literal["waiting", "active"]
ContainerState = Literal["created", "running", "paused", "restarting", "removing", "exited", "dead", ""]
"""The states of Docker's Engine API. Empty when Dokploy does not report one."""


@dataclass(frozen=True, slots=True)
class Project:
    """A project: a group of environments, which contain applications and other services."""

    id: str
    name: str
    description: str
    created_at: str
    """In ISO 8601, so that the texts sort by time."""
    application_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Application:
    """An application: one Docker service, with its image, its variables and its domains."""

    id: str
    name: str
    app_name: str
    """The name of the Docker service."""
    description: str
    created_at: str


@dataclass(frozen=True, slots=True)
class SavedConfig:
    """An application's saved configuration, which its next deployment uses."""

    source: str
    image: str
    env: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Environment:
    """An environment of a project, with its applications."""

    id: str
    is_default: bool
    applications: tuple[Application, ...]
    services: int
    """The number of its services of all types, applications included."""


@dataclass(frozen=True, slots=True)
class Domain:
    """A host and a path that Dokploy's router forwards to a port of an application."""

    id: str
    host: str
    path: str
    port: int | None
    https: bool
    certificate_type: str
    """Dokploy's value, such as “letsencrypt” or “none”."""
    application_id: str = ""
    created_at: str = ""


@dataclass(frozen=True, slots=True)
class DokployDeployment:
    """Dokploy's record of a deployment that it has started."""

    id: str
    title: str
    status: DeploymentStatus
    log_path: str = ""
    """The path of the log file on Dokploy's host.

    A later deployment of the same application within the same second overwrites the file.
    """


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """A deployment in Dokploy's queue that waits or runs."""

    application_id: str | None
    title: str
    state: QueueState
    timestamp: int
    """When it was queued, in milliseconds since 1970."""


@dataclass(frozen=True, slots=True)
class Service:
    """The Docker service of an application: what Docker runs, whatever Dokploy has saved."""

    image: str
    update_state: str
    """The state of the last update in Docker's API: updating, completed, paused, rollback_started, rollback_paused or
    rollback_completed. Empty when the service was never updated."""
    update_started_at: str


@dataclass(frozen=True, slots=True)
class Container:
    """A container of an application."""

    name: str
    state: ContainerState
    status: str
    """Docker's description of the state, such as “Exited (1) 2 seconds ago”."""

    @property
    def exit_code(self) -> int | None:
        """The exit code of a program that has ended, or None."""
        found = re.match(r"Exited \((\d+)\)", self.status)
        return int(found[1]) if found else None
