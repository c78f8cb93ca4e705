"""Create or delete objects of one type at Dokploy, without duplicates and without leftovers.

Dokploy's create calls are not idempotent, its names are not unique, and an error response does not mean that nothing
was created. Therefore, after an unknown outcome, look for the object; never send the create call again.
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import ClassVar, Generic, TypeVar

from .. import retry
from ..dokploy import Dokploy
from ..errors import Failure, NotFound, OutcomeUnknown
from ..reporter import Reporter
from ..spec import Resources, StackSpec
from ..tasks import uninterrupted
from .ownership import Found, Item, mark_changed, preferred

ItemT = TypeVar("ItemT", bound=Item)


class Resource(ABC, Generic[ItemT]):
    """A type of object at Dokploy: how to find, create and delete the stack's own objects.

    The methods' parameters are those of a step of the recipe. `type` is the type's name in records and reports.
    """

    type: ClassVar[str]

    def mark(self, spec: StackSpec) -> str:
        """Return the mark under which the object is recorded."""
        return spec.mark

    @abstractmethod
    async def find(self, dokploy: Dokploy, spec: StackSpec, resources: Resources, reporter: Reporter) -> Found[ItemT]:
        """Return the stack's own objects of this type, and the recorded ones that lost the mark."""

    async def is_usable(self, item: ItemT, dokploy: Dokploy) -> bool:
        """Return whether an object that was found can be used. An unusable object is replaced."""
        return True

    async def is_empty(self, item: ItemT, dokploy: Dokploy) -> bool:
        """Return whether a surplus object contains nothing that deleting it would lose."""
        return True

    async def before_create(self, dokploy: Dokploy, spec: StackSpec, resources: Resources, reporter: Reporter) -> None:
        """Wait until the object may be created. Raise Failure when it must not be created."""

    @abstractmethod
    async def create(self, dokploy: Dokploy, spec: StackSpec, resources: Resources) -> ItemT:
        """Create the object and return it."""

    @abstractmethod
    async def delete(self, item: ItemT, dokploy: Dokploy, spec: StackSpec, reporter: Reporter) -> None:
        """Delete the object, and return once it is confirmed to be gone. Raise Failure when it must not be deleted."""

    async def confirm_gone(
        self, deleted: list[ItemT], dokploy: Dokploy, resources: Resources, reporter: Reporter
    ) -> None:
        """Raise Failure when something remains of objects that Dokploy no longer lists.

        `deleted` contains the objects that were deleted just now.
        """


async def ensure(
    resource: Resource[ItemT], dokploy: Dokploy, spec: StackSpec, resources: Resources, reporter: Reporter
) -> ItemT:
    """Return the stack's object of this type. Create it if it does not exist. Delete surplus objects that are empty.

    The intent is recorded before the create call. A cancellation takes effect only after the call and the record of its
    result. Raise OutcomeUnknown when the object is not found after a call whose outcome is unknown; the phase's next
    attempt looks again.
    """
    item = await _find_one(resource, dokploy, spec, resources, reporter)
    if item is not None:
        await reporter.status(f"The {resource.type} already exists")
        await reporter.created(resource.type, resource.mark(spec), item.id)
        return item
    await resource.before_create(dokploy, spec, resources, reporter)

    async def create() -> ItemT:
        item = await resource.create(dokploy, spec, resources)
        await reporter.created(resource.type, resource.mark(spec), item.id)
        return item

    await reporter.intend(resource.type, resource.mark(spec))
    try:
        return await uninterrupted(create())
    except OutcomeUnknown:
        item = await _find_one(resource, dokploy, spec, resources, reporter)
        if item is None:
            raise
        await reporter.created(resource.type, resource.mark(spec), item.id)
        return item


async def ensure_absent(
    resource: Resource[ItemT], dokploy: Dokploy, spec: StackSpec, resources: Resources, reporter: Reporter
) -> None:
    """Delete the stack's objects of this type, and return once all of them are confirmed to be gone.

    Raise Failure for one that lost the mark, and for one that must not be deleted.
    """
    found = await _find(resource, dokploy, spec, resources, reporter)
    for item in found.owned:
        await resource.delete(item, dokploy, spec, reporter)
    if found.changed:
        raise mark_changed(found.changed[0], spec)
    await resource.confirm_gone(found.owned, dokploy, resources, reporter)
    await reporter.removed(resource.type)


async def _find(
    resource: Resource[ItemT], dokploy: Dokploy, spec: StackSpec, resources: Resources, reporter: Reporter
) -> Found[ItemT]:
    """Return the stack's objects of this type. If one was requested and its id is unknown, wait for it to appear."""
    seconds = retry.LANDING_SECONDS if reporter.records.awaits(resource.type) else 0.0
    return await retry.look_until_found(
        lambda: resource.find(dokploy, spec, resources, reporter),
        lambda found: bool(found.owned or found.changed),
        seconds,
    )


async def _find_one(
    resource: Resource[ItemT], dokploy: Dokploy, spec: StackSpec, resources: Resources, reporter: Reporter
) -> ItemT | None:
    """Return the stack's object of this type, and delete surplus empty ones. Raise Failure if one lost the mark."""
    found = await _find(resource, dokploy, spec, resources, reporter)
    if found.changed:
        raise mark_changed(found.changed[0], spec)
    usable = [item for item in found.owned if await resource.is_usable(item, dokploy)]
    chosen = preferred(usable, reporter.records)
    for item in found.owned:
        if item is not chosen and await resource.is_empty(item, dokploy):
            await resource.delete(item, dokploy, spec, reporter)
    return chosen


async def delete_and_confirm(
    type: str,
    id: str,
    delete: Callable[[str], Awaitable[None]],
    exists: Callable[[str], Awaitable[bool]],
    reporter: Reporter,
) -> None:
    """Send a delete call and read back that the object is gone. Raise OutcomeUnknown when Dokploy still has it."""
    await reporter.removing(type, id)
    with suppress(NotFound, OutcomeUnknown):  # it may be gone already: the read decides
        await delete(id)
    if await exists(id):
        raise OutcomeUnknown(f"Dokploy still has the {type}.")


def require_id(id: str | None) -> str:
    """Return the id. Raise Failure when an earlier phase did not record it."""
    if id is None:
        raise Failure("DEPLOYMENT_FAILED", "An earlier phase did not record an id that this phase needs.")
    return id
