"""Decide which objects at Dokploy belong to a stack.

An object is owned when it carries the stack's mark (`StackSpec.mark`, kept in its description) and either its id is
recorded or it has the stack's name. The mark alone is not enough: a copy that a user makes in Dokploy carries it too.
An object whose id is recorded but whose mark was removed is left alone, and is not treated as deleted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from ..dokploy import Application, Dokploy, Project
from ..errors import Failure
from ..records import Records
from ..spec import MarkedObject, StackSpec, mark_of


class Item(Protocol):
    """An object of any type, as Dokploy lists it."""

    @property
    def id(self) -> str:
        """The id, an opaque string."""

    @property
    def created_at(self) -> str:
        """The time of creation, as Dokploy writes it. Sorted as texts, these times are in order."""


ItemT = TypeVar("ItemT", bound=Item)
MarkedT = TypeVar("MarkedT", Project, Application)


@dataclass(frozen=True, slots=True)
class Found(Generic[ItemT]):
    """The objects of one type that a stack owns, and the recorded objects that lost the mark.

    A domain has no mark of its own: `changed` then holds its application.
    """

    owned: list[ItemT]
    changed: Sequence[Project | Application] = ()


def by_ownership(listed: list[MarkedT], spec: StackSpec, records: Records) -> Found[MarkedT]:
    """Return the objects of the list that the stack owns, and those that are recorded but not owned any more."""
    marked = [item for item in listed if item.description == spec.mark]
    owned = [item for item in marked if records.has(item.id) or item.name == spec.name]
    return Found(owned, [item for item in listed if records.has(item.id) and item not in owned])


def preferred(owned: list[ItemT], records: Records) -> ItemT | None:
    """Return the object to use when several are owned: the recorded one, else the oldest. None for an empty list."""
    return min(owned, key=lambda item: (not records.has(item.id), item.created_at), default=None)


def mark_changed(item: Project | Application, spec: StackSpec) -> Failure:
    """Return the failure for a recorded object that lost the mark."""
    type = "project" if isinstance(item, Project) else "application"
    text = (
        f"The description of the {type} “{item.name[:60]}” was changed in Dokploy and lacks this portal's mark, so the "
        f"{type} was not touched. Put “{spec.mark}” into the description again, or remove the {type} in Dokploy. Then "
        f"try again."
    )
    return Failure("MARK_CHANGED_AT_DOKPLOY", text)


async def list_marked_objects(dokploy: Dokploy, installation: str, recorded_ids: set[str]) -> list[MarkedObject]:
    """Return every project and application that carries this installation's mark.

    The applications of a project are not listed when all their ids are in `recorded_ids`: this saves a call for each
    such project.
    """
    mark = mark_of(installation)
    marked = []
    for project in await dokploy.projects():
        if not project.description.startswith(mark):
            continue
        marked.append(MarkedObject("project", project.id, project.name, project.description))
        if recorded_ids.issuperset(project.application_ids):
            continue
        for environment in await dokploy.environments(project.id):
            marked += [
                MarkedObject("application", application.id, application.name, application.description)
                for application in environment.applications
                if application.description.startswith(mark)
            ]
    return marked
