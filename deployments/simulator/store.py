"""Rows that survive a restart, in one SQLite file."""

import json
import sqlite3
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Table(dict[str, Row]):
    """Rows by id, oldest first; every change is on disk before it is answered."""

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
        """Change a row if it is still there."""
        if key in self:
            self.put(key, {**self[key], **values})

    def drop(self, key: str) -> Row | None:
        self._connection.execute("DELETE FROM row WHERE kind = ? AND id = ?", (self._name, key))
        return self.pop(key, None)

    def where(self, **values: Any) -> list[Row]:
        return [row for row in self.values() if all(row[name] == value for name, value in values.items())]


class Store:
    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(directory / "dokploy.sqlite3", isolation_level=None)
        # The file must outlive this process, not a power cut.
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
        # Not Dokploy's rows: what the engine runs and what the edge router was told.
        self.services = Table(connection, "services")
        self.routes = Table(connection, "routes")

    def close(self) -> None:
        self._connection.close()
