"""A client for Dokploy's HTTP API, made for Dokploy v0.30.2."""

from .client import ADMIN_ROLES, Dokploy
from .responses import is_engine_error
from .transport import CALL_SECONDS, Exchange
from .types import (
    Application,
    Container,
    DokployDeployment,
    Domain,
    Environment,
    Project,
    QueueEntry,
    SavedConfig,
    Service,
)

__all__ = [
    "ADMIN_ROLES",
    "CALL_SECONDS",
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
    "Service",
    "is_engine_error",
]
