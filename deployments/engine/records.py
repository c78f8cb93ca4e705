"""The records of a stack's objects at Dokploy, as the engine sees them."""

from collections.abc import Iterable, Iterator

from .spec import Progress


class Records:
    """What is recorded about the objects of one stack: type, mark and id of each one that is not gone.

    The id is empty from the intent to create an object until its id is known. In the database, ExternalResource holds
    the same and applies the same reports.
    """

    def __init__(self, entries: Iterable[tuple[str, str, str]] = ()) -> None:
        """Create records from (type, mark, id)."""
        self._ids = {(type, mark): id for type, mark, id in entries}

    def __iter__(self) -> Iterator[tuple[str, str, str]]:
        return iter([(type, mark, id) for (type, mark), id in self._ids.items()])

    def __len__(self) -> int:
        return len(self._ids)

    def has(self, id: str) -> bool:
        """Return whether an object with this id is recorded."""
        return bool(id) and id in self._ids.values()

    def has_any(self, ids: Iterable[str]) -> bool:
        """Return whether an object with one of these ids is recorded."""
        return any(self.has(id) for id in ids)

    def marks(self, type: str) -> list[str]:
        """Return the marks of all recorded objects of a type."""
        return [mark for recorded, mark, _ in self if recorded == type]

    def awaits(self, type: str) -> bool:
        """Return whether an object of this type was requested and its id is unknown: it may still be created."""
        return any(recorded == type and not id for recorded, _, id in self)

    def forget(self, type: str, mark: str) -> None:
        """Drop the record of an object whose request was certainly not sent."""
        self._ids.pop((type, mark), None)

    def apply(self, progress: Progress) -> None:
        """Apply one report about an object, or about all objects of a type if it names no id."""
        data = progress.data
        state, type, id = data["state"], data["kind"], data.get("id") or ""
        if state in ("intended", "made"):
            self._ids[type, data["mark"]] = id
            return
        for (recorded, mark), known in list(self._ids.items()):
            if recorded != type or (id and known not in (id, "")):  # "": recorded before its id was known
                continue
            if state == "gone":
                del self._ids[recorded, mark]
            else:
                self._ids[recorded, mark] = id or known
