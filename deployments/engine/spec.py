"""The engine's data: the requested stack (StackSpec), its objects at Dokploy (Resources) and a report (Progress)."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Kind = Literal["phase", "rung", "log", "receipt", "note"]  # stored names: a rung is a probe step, a receipt a resource
Status = Literal["in_progress", "success", "failure"]
Certificate = Literal["letsencrypt", "wildcard", "none"]


UNKNOWN_UPDATE = "unknown"


def mark_of(installation: str) -> str:
    """Return the prefix of the marks of everything that this installation of the portal creates."""
    return f"deployportal/{installation}/"


@dataclass(frozen=True, slots=True)
class StackSpec:
    """Everything that a deployment is to bring to Dokploy. Contains secrets in plain text: never log or report it."""

    installation: str
    stack: str
    deployment: str
    name: str
    image: str
    port: int
    host: str
    url: str
    certificate: Certificate = "none"
    env: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    registry: str = ""
    registry_username: str = ""
    registry_password: str = field(default="", repr=False)
    memory_bytes: int | None = None
    cpus: float | None = None
    health_path: str = "/"
    health_interval: float = 5.0
    """The longest pause between two probes, in seconds."""
    health_timeout: float = 60.0
    """The limit of the health check, in seconds."""
    proof_seconds: float = 10.0
    """How long a new container must stay up, and its address answer, before the deployment counts as successful."""
    deploy_timeout: float = 1800.0
    """The limit for Dokploy's deployment, its time in the queue included, in seconds."""
    router_address: str = ""
    """The address (host:port) that the health check connects to. Empty: the address that the host name resolves to."""
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """The values that are masked in everything that is reported."""

    @property
    def mark(self) -> str:
        """The mark of the stack's objects at Dokploy. It stays the same for all deployments of the stack."""
        return f"{mark_of(self.installation)}{self.stack}"

    def pinned(self, digest: str | None) -> "StackSpec":
        """Return the spec with the image pinned to the digest, so that its tag cannot mean another image.

        Without a digest, or when the image has one already, return the spec unchanged.
        """
        return replace(self, image=f"{self.image}@{digest}") if digest and "@" not in self.image else self

    @property
    def deploy_title_prefix(self) -> str:
        """The prefix of the titles of this deployment's Dokploy deployments."""
        return f"{self.mark}/{self.deployment}/"

    def deploy_title(self, attempt: int) -> str:
        """Return the title of the Dokploy deployment of an attempt. Attempts are counted from 1."""
        return f"{self.deploy_title_prefix}{attempt}"


@dataclass(frozen=True, slots=True)
class Resources:
    """The ids of a stack's objects at Dokploy, and what is known of its containers. None means not created yet.

    Dokploy's ids are opaque strings.
    """

    project_id: str | None = None
    environment_id: str | None = None
    application_id: str | None = None
    app_name: str | None = None
    """The name of the application's Docker service, which Dokploy chooses."""
    domain_id: str | None = None
    dokploy_deployment_id: str | None = None
    image_digest: str | None = None
    """The digest of the image that was pulled, “sha256:…”. None when Docker's output did not contain it."""
    update_before: str = ""
    """The start time of the service's last update before this deployment. Empty if it was never updated; UNKNOWN_UPDATE
    when Dokploy cannot tell."""
    replaces: tuple[str, ...] = ()
    """The names of all containers, ended ones included, that existed before the deployment. While one of them runs, an
    answer may come from it."""


@dataclass(frozen=True, slots=True)
class MarkedObject:
    """An object at Dokploy that carries this installation's mark."""

    resource_type: Literal["project", "application"]
    id: str
    name: str
    mark: str


@dataclass(frozen=True, slots=True)
class Progress:
    """One report. It is stored as one event of the deployment."""

    kind: Kind
    phase: str
    message: str
    status: Status = "in_progress"
    progress: int | None = None
    """In percent. None leaves the deployment's progress as it is."""
    resources: Resources | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    error: Mapping[str, Any] | None = None
    """The fields of the Failure, once the deployment has failed."""


Report = Callable[[Progress], Awaitable[None]]
