"""A client of Dokploy's HTTP API."""

from .client import (
    NO_ENGINE,
    Application,
    Container,
    Dokploy,
    DokployDeployment,
    Domain,
    Environment,
    Exchange,
    Project,
    QueueEntry,
    SavedConfig,
)

__all__ = [
    "NO_ENGINE",
    "Application",
    "Container",
    "Dokploy",
    "DokployDeployment",
    "Domain",
    "Environment",
    "Exchange",
    "Project",
    "QueueEntry",
    "SavedConfig",
]
