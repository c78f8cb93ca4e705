"""Remove everything that a conformance session created."""

import asyncio

from ..errors import DokployError, Failure
from .session import Session, ThrowawayStack

CLEANUP_SECONDS = 300.0
MAX_REMOVALS = 3
SEARCH_PAUSE_SECONDS = 1.5

MarkedItem = tuple[str, str]
"""The description of an object with the session's mark, and the mark of its stack."""


async def remove_everything(session: Session) -> None:
    """Remove all objects with the session's mark, within CLEANUP_SECONDS. Record the leftovers in the session.

    Search until two searches in a row find nothing, because a cancelled call may still create an object. Give up when
    objects are left after MAX_REMOVALS removals.
    """
    removals, empty_searches = 0, 0
    try:
        async with asyncio.timeout(CLEANUP_SECONDS):
            while empty_searches < 2:
                marks = await _search(session)
                if marks is None or (marks and removals == MAX_REMOVALS):
                    return
                empty_searches = 0 if session.leftovers else empty_searches + 1
                if marks:
                    removals += 1
                    await _remove_stacks(session, marks)
                await asyncio.sleep(SEARCH_PAUSE_SECONDS)
    except TimeoutError:
        session.write(f"           the cleanup did not end within {CLEANUP_SECONDS:.0f} s")


async def _search(session: Session) -> set[str] | None:
    """Record the leftovers. Return the marks of their stacks, or None when no further search can succeed."""
    try:
        items = await _find_marked(session)
    except DokployError as error:
        session.leftovers = [f"possibly objects with the mark {session.mark}…; the search failed ({error})"]
        return None if error.permanent else set()
    session.leftovers = [description for description, _ in items]
    return {mark for _, mark in items}


async def _remove_stacks(session: Session, marks: set[str]) -> None:
    stacks = [stack for stack in session.stacks.values() if stack.spec.mark in marks]
    await asyncio.gather(*(_remove(session, stack) for stack in stacks))


async def _remove(session: Session, stack: ThrowawayStack) -> None:
    try:
        await stack.remove()
    except Failure as failure:
        session.write(f"           {stack.spec.name} could not be removed: {failure.message}")


async def _find_marked(session: Session) -> list[MarkedItem]:
    """Return all objects and queue entries in Dokploy that have the session's mark."""
    items: list[MarkedItem] = []
    for project in await session.dokploy.projects():
        if project.description.startswith(session.mark):
            items.append((f"project {project.name} ({project.id})", project.description))
            for environment in await session.dokploy.environments(project.id):
                items += [(f"application {a.name} ({a.id})", a.description) for a in environment.applications]
    for entry in await session.dokploy.queue():
        if entry.title.startswith(session.mark):
            items.append((f"a deployment in the queue ({entry.title})", "/".join(entry.title.split("/")[:3])))
    return items
