"""Whether a name can be had: well-formed, free here, free at Dokploy, within the quota."""

import asyncio
import time
from typing import Any

from asgiref.sync import sync_to_async
from django.conf import settings

from .engine.dokploy import Dokploy
from .engine.errors import DokployError
from .models import Refusal, Stack

ASK_SECONDS = 1.5
REMEMBER_SECONDS = 5.0

_seen: tuple[float, frozenset[str]] = (0.0, frozenset())


def _one_line(state: str, word: str, text: str) -> dict[str, str]:
    return {"state": state, "word": word, "text": text}


def check_local(user: Any, name: str) -> dict[str, Any]:
    """What the portal itself knows: {"name", "address", "lines", "suggestions", "available"}."""
    try:
        Stack.validate_name(name)
    except Refusal as refusal:
        line = _one_line("bad", "Not possible", refusal.message)
        return {"name": name, "address": None, "lines": [line], "suggestions": [], "available": False}
    lines, suggestions = [_one_line("ok", "Valid", "The name can be an address.")], []
    stack = Stack.objects.existing().filter(name=name).first()
    if stack is None:
        lines.append(_one_line("ok", "Free", "Nobody has it here."))
    elif _is_own(stack, user):
        lines.append(_one_line("ok", "Yours", "Deploying brings your stack to these settings."))
    else:
        lines.append(_one_line("bad", "Taken", "Somebody has it already."))
        suggestions = _suggestions(name)
    own = Stack.objects.existing().filter(owner=user).count()
    if user.username == settings.OPEN_USERNAME:
        if own >= settings.PORTAL_OPEN_QUOTA:
            lines.append(_one_line("bad", "Quota", "There are too many stacks without an owner. Sign in."))
    elif stack is None and not user.is_staff:
        left = settings.PORTAL_QUOTA - own
        if left <= 0:
            lines.append(_one_line("bad", "Quota", f"You have {own} stacks, which is the limit."))
        elif left <= 3:
            lines.append(_one_line("ok", "Quota", f"{left} more of {settings.PORTAL_QUOTA} stacks."))
    return {
        "name": name,
        "address": Stack.address_of(name),
        "lines": lines,
        "suggestions": suggestions,
        "available": all(line["state"] != "bad" for line in lines),
        "own": stack is not None and _is_own(stack, user),
    }


def _is_own(stack: Stack, user: Any) -> bool:
    """Stacks of people who did not sign in are nobody's to deploy again."""
    return stack.owner_id == user.pk and user.username != settings.OPEN_USERNAME


async def check(user: Any, name: str) -> dict[str, Any]:
    """The same, and whether Dokploy has a project of that name; an answer that does not come in time is unknown."""
    found = await sync_to_async(check_local)(user, name)
    if found["available"] and not found["own"]:
        taken = await _taken_at_dokploy(name)
        if taken is None:
            found["lines"].append(_one_line("unknown", "Unknown", "Dokploy cannot be asked right now."))
            found["available"] = None
        elif taken:
            found["lines"].append(_one_line("bad", "Taken", "Dokploy already has a project of that name."))
            found["suggestions"] = await sync_to_async(_suggestions)(name)
            found["available"] = False
        else:
            found["lines"].append(_one_line("ok", "Free", "Dokploy does not have it either."))
    return found


async def _taken_at_dokploy(name: str) -> bool | None:
    """From a list that is some seconds old at most, however many people type. That one is taken is looked up anew: it
    may have been removed since."""
    seen_at, names = _seen
    old = time.monotonic() - seen_at > REMEMBER_SECONDS
    if (old or name in names) and not await _look():
        return None
    return name in _seen[1]


async def _look() -> bool:
    """Lists the projects' names; False where Dokploy does not answer in time."""
    global _seen
    budget = settings.DOKPLOY_CALLS_PER_SECOND
    dokploy = Dokploy(settings.DOKPLOY_URL, settings.DOKPLOY_API_KEY, connections=1, calls_per_second=budget)
    try:
        async with asyncio.timeout(ASK_SECONDS):
            _seen = (time.monotonic(), frozenset(project.name for project in await dokploy.projects()))
    except (DokployError, TimeoutError):
        return False
    finally:
        await dokploy.aclose()
    return True


def _suggestions(name: str) -> list[str]:
    """Three names like this one that are free here."""
    tried = [f"{name[:27].rstrip('-')}-{number}" for number in range(2, 12)]
    taken = set(Stack.objects.existing().filter(name__in=tried).values_list("name", flat=True))
    return [candidate for candidate in tried if candidate not in taken][:3]
