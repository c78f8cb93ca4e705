"""The portal's state. Only the code of this package changes it; pages and consumers only read it."""

from . import wire
from .api_token import ApiToken
from .deployment import DATABASE_AWAY, Deployment, LeaseLost
from .event import Event
from .external_resource import ExternalResource
from .installation import Installation
from .orphan import Orphan
from .refusal import Refusal
from .requests import DeploymentRequest, request_due_removals, request_removal, retry_deployment
from .stack import Stack
from .template import Template

__all__ = [
    "DATABASE_AWAY",
    "ApiToken",
    "Deployment",
    "DeploymentRequest",
    "Event",
    "ExternalResource",
    "Installation",
    "LeaseLost",
    "Orphan",
    "Refusal",
    "Stack",
    "Template",
    "request_due_removals",
    "request_removal",
    "retry_deployment",
    "wire",
]
