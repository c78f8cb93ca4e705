"""State: the only writer of it. Every change is a verb; a message or a page only ever reads."""

from .api_token import ApiToken
from .deployment import DATABASE_AWAY, Deployment, Event, LeaseLost
from .installation import Installation
from .orphan import Orphan
from .refusal import Refusal
from .stack import ExternalResource, Stack
from .template import Template

__all__ = [
    "DATABASE_AWAY",
    "ApiToken",
    "Deployment",
    "Event",
    "ExternalResource",
    "Installation",
    "LeaseLost",
    "Orphan",
    "Refusal",
    "Stack",
    "Template",
]
