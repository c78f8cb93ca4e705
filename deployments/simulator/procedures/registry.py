"""The registry of Dokploy's procedures, and their shared parts: refusals, fields and SQL errors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..server import DokployServer
from ..store import Row
from ..zod import Field

# The result of a procedure whose response has no body.
NO_CONTENT = object()
TEXT = Field()
NAME = Field(minimum=1)
OPTIONAL_NAME = Field(presence="optional", minimum=1)
OPTIONAL_TEXT = Field(presence="optional")
NULLABLE_TEXT = Field(presence="optional", nullable=True)
PRESENT_TEXT = Field(presence="present", nullable=True)
OPTIONAL_NUMBER = Field("number", presence="optional")
OPTIONAL_FLAG = Field("boolean", presence="optional")
Run = Callable[[DokployServer, Row], object]


class Refusal(Exception):
    """The error of a procedure: its HTTP status and its message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Procedure:
    name: str
    method: str
    fields: Mapping[str, Field]
    run: Run


PROCEDURES: dict[str, Procedure] = {}


def query(procedure: str, /, **fields: Field) -> Callable[[Run], Run]:
    """Register a function as a procedure that reads, with its input fields."""
    return register(procedure, "GET", fields)


def mutation(procedure: str, /, **fields: Field) -> Callable[[Run], Run]:
    """Register a function as a procedure that writes, with its input fields."""
    return register(procedure, "POST", fields)


def register(name: str, method: str, fields: Mapping[str, Field]) -> Callable[[Run], Run]:
    def decorate(run: Run) -> Run:
        PROCEDURES[name] = Procedure(name, method, fields, run)
        return run

    return decorate


def require_admin(server: DokployServer) -> None:
    """Raise Refusal unless the key's user is an owner or an admin. tRPC's refusal has no message of its own."""
    if server.role not in ("owner", "admin"):
        raise Refusal(401, "UNAUTHORIZED")


def require(row: Row | None, noun: str) -> Row:
    """Return the row. Raises Refusal if there is none."""
    if row is None:
        raise Refusal(404, f"{noun} not found")
    return row


def quote(names: list[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def failed_insert(table: str, columns: list[str], given: Row) -> str:
    """Return drizzle's message for an insert that failed: the statement and its parameters with their values."""
    sent = [name for name in columns if name in given]
    values = ", ".join(f"${sent.index(name) + 1}" if name in given else "default" for name in columns)
    params = ",".join(str(given[name]) for name in sent)
    parts = ("Failed query: insert into", f'"{table}"', f"({quote(columns)}) values ({values}) returning")
    return " ".join((*parts, f"{quote(columns)}\nparams: {params}"))
