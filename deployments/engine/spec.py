"""What is asked for (StackSpec), what is there so far (Resources), and one thing that happened (Progress)."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Kind = Literal["phase", "rung", "log", "receipt", "note"]
Status = Literal["in_progress", "success", "failure"]
Certificate = Literal["letsencrypt", "wildcard", "none"]


def mark_of(installation: str) -> str:
    """How the mark of everything begins that one portal makes."""
    return f"deployportal/{installation}/"


@dataclass(frozen=True, slots=True)
class StackSpec:
    """Everything that one run brings to Dokploy. Holds secrets in clear: never logged, never reported."""

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
    health_timeout: float = 60.0
    deploy_timeout: float = 1800.0
    router_address: str = ""
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """Values that must not appear in anything that is reported."""

    @property
    def mark(self) -> str:
        """What every object that we make carries; nothing without it is ours. Outlives a run."""
        return f"{mark_of(self.installation)}{self.stack}"

    def pinned(self, digest: str | None) -> "StackSpec":
        """The same with the very image of this digest, whatever its tag has come to mean. As it is without one."""
        return replace(self, image=f"{self.image}@{digest}") if digest and "@" not in self.image else self

    @property
    def deploy_titles(self) -> str:
        """How the title of each deploy of this run begins."""
        return f"{self.mark}/{self.deployment}/"

    def deploy_title(self, attempt: int) -> str:
        return f"{self.deploy_titles}{attempt}"


@dataclass(frozen=True, slots=True)
class Resources:
    """The ids at Dokploy, as far as the run has come. Replaced, never mutated. Dokploy's ids are opaque text."""

    project_id: str | None = None
    environment_id: str | None = None
    application_id: str | None = None
    app_name: str | None = None
    domain_id: str | None = None
    dokploy_deployment_id: str | None = None
    image_digest: str | None = None
    """Of the image that was pulled, “sha256:…”, where Docker said it."""
    replaces: tuple[str, ...] = ()
    """The names of the containers that ran when the deploy was sent. While one of them runs it may be what answers."""


@dataclass(frozen=True, slots=True)
class MarkedObject:
    """One object at Dokploy that carries this installation's mark."""

    kind: Literal["project", "application"]
    id: str
    name: str
    mark: str


@dataclass(frozen=True, slots=True)
class Progress:
    """One report. `progress` in percent; None leaves it as it is. `error` as in Failure, once the run has failed."""

    kind: Kind
    phase: str
    message: str
    status: Status = "in_progress"
    progress: int | None = None
    resources: Resources | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    error: Mapping[str, Any] | None = None


Report = Callable[[Progress], Awaitable[None]]
