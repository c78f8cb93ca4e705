"""The database of the simulator: rows in one SQLite file, which survive a restart."""

import json
import secrets
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Row = dict[str, Any]
NANOID_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
LOWER_CASE_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"


def new_id(length: int = 21, alphabet: str = NANOID_ALPHABET) -> str:
    """Return a random id, by default in the format of the `nanoid` package."""
    return "".join(secrets.choice(alphabet) for _ in range(length))


def now() -> str:
    """Return the time in the format of JavaScript's toISOString."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def pick(row: Row, *names: str) -> Row:
    return {name: row[name] for name in names}


class Table(dict[str, Row]):
    """Rows by id, oldest first. Every change is written to the file at once."""

    def __init__(self, connection: sqlite3.Connection, name: str) -> None:
        rows = connection.execute("SELECT id, body FROM row WHERE kind = ? ORDER BY rowid", (name,))
        super().__init__((key, json.loads(body)) for key, body in rows)
        self._connection = connection
        self._name = name

    def put(self, key: str, row: Row) -> Row:
        self[key] = row
        self._connection.execute(
            "INSERT INTO row (kind, id, body) VALUES (?, ?, ?)"
            " ON CONFLICT (kind, id) DO UPDATE SET body = excluded.body",
            (self._name, key, json.dumps(row)),
        )
        return row

    def change(self, key: str, **values: Any) -> None:
        """Change these values of a row. Does nothing if the row does not exist."""
        if key in self:
            self.put(key, {**self[key], **values})

    def drop(self, key: str) -> Row | None:
        """Delete a row and return it, or None if it does not exist."""
        self._connection.execute("DELETE FROM row WHERE kind = ? AND id = ?", (self._name, key))
        return self.pop(key, None)

    def where(self, **values: Any) -> list[Row]:
        return [row for row in self.values() if all(row[name] == value for name, value in values.items())]


class Store:
    def __init__(self, directory: Path) -> None:
        """Open the file or create it. Raises OSError or sqlite3.Error."""
        directory.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(directory / "dokploy.sqlite3", isolation_level=None)
        # The file must survive the end of this process, but not a power failure.
        connection.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;")
        connection.execute("CREATE TABLE IF NOT EXISTS row (kind TEXT, id TEXT, body TEXT, PRIMARY KEY (kind, id))")
        self._connection = connection
        self.projects = Table(connection, "projects")
        self.environments = Table(connection, "environments")
        self.applications = Table(connection, "applications")
        self.domains = Table(connection, "domains")
        self.deployments = Table(connection, "deployments")
        self.logs = Table(connection, "logs")
        self.settings = Table(connection, "settings")
        # Dokploy has no tables for these: the state of the container engine and of the edge router.
        self.services = Table(connection, "services")
        self.routes = Table(connection, "routes")
        self._last_config_key = max((row["uniqueConfigKey"] for row in self.domains.values()), default=0)

    def next_config_key(self) -> int:
        """Return the next number of a domain (`uniqueConfigKey`)."""
        self._last_config_key += 1
        return self._last_config_key

    def close(self) -> None:
        self._connection.close()
