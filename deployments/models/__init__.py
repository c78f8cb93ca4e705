"""State: the only writer of it. Every change is a verb; a message or a page only ever reads."""

from .deployment import DATABASE_AWAY, Deployment, Event, LeaseLost
from .installation import Installation
from .orphan import Orphan
from .refusal import Refusal
from .stack import Receipt, Stack
from .template import Template
from .token import ApiToken

__all__ = [
    "DATABASE_AWAY",
    "ApiToken",
    "Deployment",
    "Event",
    "Installation",
    "LeaseLost",
    "Orphan",
    "Receipt",
    "Refusal",
    "Stack",
    "Template",
]
