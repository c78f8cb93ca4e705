"""Whether a user can deploy a stack with a name: valid, unused in this portal and at Dokploy, within the quota."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Literal

from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.auth.models import User

from .engine.dokploy import Dokploy
from .engine.errors import DokployError
from .models import Refusal, Stack

DOKPLOY_TIMEOUT_SECONDS = 1.5
CACHE_SECONDS = 5.0

State = Literal["ok", "bad", "unknown"]


@dataclass(slots=True)
class Line:
    """One sentence for the user. state: decides the icon in front of it."""

    state: State
    text: str


@dataclass(slots=True)
class NameAvailability:
    """The result. available: None when unknown, because Dokploy did not answer. is_own: the user has this stack."""

    name: str
    address: str | None = None
    lines: list[Line] = field(default_factory=list)
    suggestions: list[str] = field(default_factory=list)
    available: bool | None = True
    is_own: bool = False

    def add(self, state: State, text: str) -> None:
        self.lines.append(Line(state, text))
        if state == "bad":
            self.available = False
        elif state == "unknown":
            self.available = None

    @property
    def reason(self) -> str | None:
        """The first sentence that says why the name is not, or perhaps not, available."""
        return next((line.text for line in self.lines if line.state != "ok"), None)


def check_local(user: User, name: str, address: str | None) -> NameAvailability:
    """Check the name and the quota against the portal's own data. Queries the database, synchronously."""
    result = NameAvailability(name)
    try:
        Stack.validate_name(name)
    except Refusal as refusal:
        result.add("bad", refusal.message)
        return result
    result.address = Stack.address_of(name)
    stack = Stack.objects.existing().filter(name=name).first()
    if stack is None:
        result.add("ok", "This portal has no stack with this name.")
    elif _is_own(stack, user):
        result.is_own = True
        result.add("ok", "You already have a stack with this name. Deploying changes its settings.")
    else:
        result.add("bad", "This name is taken.")
        result.suggestions = _suggestions(name)
    if result.available and not result.is_own:
        _check_quota(result, user, address)
    return result


def _is_own(stack: Stack, user: User) -> bool:
    """Return whether the user may redeploy the stack. Stacks of anonymous users can't be redeployed."""
    return stack.owner_id == user.pk and user.username != settings.OPEN_USERNAME


def _check_quota(result: NameAvailability, user: User, address: str | None) -> None:
    try:
        remaining = Stack.require_quota(user, address)
    except Refusal as refusal:
        result.add("bad", refusal.message)
    else:
        if remaining <= 3:
            result.add("ok", f"You can deploy {remaining} more. The limit is {settings.PORTAL_QUOTA} stacks.")


async def check(user: User, name: str, address: str | None) -> NameAvailability:
    """Check the name against the portal's own data, and against the projects at Dokploy."""
    result = await sync_to_async(check_local)(user, name, address)
    if not result.available or result.is_own:
        return result
    taken = await _is_taken_at_dokploy(name)
    if taken is None:
        result.add("unknown", "Dokploy can't be reached, so the name may be taken there.")
    elif taken:
        result.add("bad", "Dokploy already has a project with this name.")
        result.suggestions = await sync_to_async(_suggestions)(name)
    else:
        result.lines[0] = Line("ok", "Available")
    return result


_cached_at, _cached_names = 0.0, frozenset[str]()


async def _is_taken_at_dokploy(name: str) -> bool | None:
    """Return whether a project has this name; None when Dokploy does not answer in time.

    However many users type, Dokploy is asked once in CACHE_SECONDS, and again when the cached list has the name: that
    project may have been removed since.
    """
    if time.monotonic() - _cached_at > CACHE_SECONDS or name in _cached_names:
        try:
            await _fetch_names()
        except (DokployError, TimeoutError):
            return None
    return name in _cached_names


async def _fetch_names() -> None:
    """Cache the names of all projects. Raise DokployError or TimeoutError."""
    global _cached_at, _cached_names
    calls_per_second = settings.DOKPLOY_CALLS_PER_SECOND
    dokploy = Dokploy(settings.DOKPLOY_URL, settings.DOKPLOY_API_KEY, connections=1, calls_per_second=calls_per_second)
    try:
        async with asyncio.timeout(DOKPLOY_TIMEOUT_SECONDS):
            _cached_names = frozenset(project.name for project in await dokploy.projects())
            _cached_at = time.monotonic()
    finally:
        await dokploy.aclose()


def _suggestions(name: str) -> list[str]:
    """Return up to three similar names that no stack of this portal has."""
    candidates = [f"{name[:27].rstrip('-')}-{number}" for number in range(2, 12)]
    taken = set(Stack.objects.existing().filter(name__in=candidates).values_list("name", flat=True))
    return [candidate for candidate in candidates if candidate not in taken][:3]
