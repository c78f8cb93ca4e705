"""Assertions about the state after a fault: objects at Dokploy, rows and pages. None of them reads a log line.

The invariants: each stack has at most one project, application and domain; every object that the portal created is
recorded; every deployment ends; its events have no gap and are the same everywhere; no secret is shown; no object of
another user is changed.
"""

import re
import resource
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psycopg
from psycopg.rows import dict_row
from websockets.sync.client import ClientConnection

from deployments.realtime.pubsub import RUNNER_CHANNEL

from ..gates import GATES
from ..processes import Portal, ScaledOut, client, until
from ..services import Redis, timed
from ..users import PASSWORD, browser, new_token, operator, sign_in

KINDS = ("project", "application", "domain")
SEED_DATA = f"""
from django.contrib.auth.models import User
from deployments.models import Template
User.objects.create_superuser("operator", password="{PASSWORD}")
Template.objects.create(slug="broken", name="Broken", image="registry.invalid/broken:1", position=9)
"""
NO_QUOTAS = {"PORTAL_QUOTA": 1000, "PORTAL_OPEN_QUOTA": 1000, "STACK_HEALTH_INTERVAL_SECONDS": 0.2}
ONE_OF_EACH = dict.fromkeys(("projects", "applications", "domains", "services"), 1)
RESUME_SECONDS = 30 + 5  # a lease, then the sweep


@dataclass
class Figures:
    """Counts of one test: killed processes, ended deployments, and the defects that must be zero.

    not_passed: points that the second deployment did not pass, so that no process was killed there. resume: seconds
    from a process's start, or a worker's death, to the next event of a deployment in progress.
    """

    killed: int = 0
    not_passed: list[str] = field(default_factory=list)
    ended: int = 0
    duplicates: int = 0
    orphans: int = 0
    missing: int = 0
    resume: list[float] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)


class PortalDatabase(Portal):
    """A portal whose rows can be read even when its process is dead."""

    suffix = "localhost"

    def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        """Return the rows that a query selects; each value replaces a ? in it."""
        raise NotImplementedError

    def write(self, statement: str, *values: Any) -> None:
        """Change rows in the database directly, without the portal."""
        raise NotImplementedError

    def operator(self) -> httpx.Client:
        """Return a client that is signed in as an operator."""
        return operator(self)

    def newest_deployment(self, name: str) -> dict[str, Any]:
        """Return the stack's newest deployment as it is stored."""
        query = (
            "SELECT run.* FROM deployments_deployment run JOIN deployments_stack stack ON stack.id = run.stack_id "
            "WHERE stack.name = ? ORDER BY run.created_at DESC LIMIT 1"
        )
        return self.rows(query, name)[0]

    def wait_until_ended(self, name: str, seconds: float = 60) -> dict[str, Any]:
        return until(
            lambda: (deployment := self.newest_deployment(name))["status"] != "in_progress" and deployment,
            seconds,
            pause=0.05,
        )

    def stored_events(self, id: str) -> list[dict[str, Any]]:
        """Return the stored events; `at` is in seconds since 1970."""
        query = "SELECT seq, kind, message, at FROM deployments_event WHERE deployment_id = ? ORDER BY seq"
        return [{**row, "at": _seconds(row["at"])} for row in self.rows(query, id)]

    # -- requests ----------------------------------------------------------------------------------------------------

    def request(self, name: str, **more: Any) -> None:
        """Request a deployment. The portal may die during this request, and during those below."""
        self.send("POST", "/api/deploy", json={"name": name, **more})

    def request_removal(self, name: str) -> None:
        self.send("DELETE", f"/api/stacks/{name}")

    def send(self, method: str, path: str, **more: Any) -> None:
        with suppress(httpx.TransportError):
            answer = self.http.request(method, path, **more)
            assert answer.status_code == 202, answer.text


class OneMachinePortal(PortalDatabase):
    """A portal on one machine (SQLite) that only this test uses, with the client of a signed-in user."""

    def __init__(self, data: Path, **env: Any) -> None:
        data.mkdir(parents=True, exist_ok=True)
        super().__init__(data, **{**NO_QUOTAS, **env})
        self.user = browser(self)
        self.user.base_url = httpx.URL(f"http://localhost:{self.port}")
        self.token: dict[str, str] = {}
        self.foreign_api = client(f"http://127.0.0.1:{self.port + 1}/api/")  # changes Dokploy as another user would

    def start(self) -> "OneMachinePortal":
        super().start()
        if not self.token:
            self.token = {**new_token(self.user), "Accept": "application/json"}
            self.http.headers.update(self.token)
            self.foreign_api.headers["x-api-key"] = (self.data / "simulator-key").read_text()
        return self

    def close(self) -> None:
        self.user.close()
        self.foreign_api.close()
        super().close()

    def wait_until_dead(self, seconds: float = 30) -> int:
        """Wait until the process has died by itself; return its exit status."""
        assert self.process is not None
        status = self.process.wait(seconds)
        until(self.ports_are_free, 10)
        return status

    def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        with closing(sqlite3.connect(f"file:{self._database}?mode=ro", uri=True, timeout=20)) as database:
            database.row_factory = sqlite3.Row
            return [dict(row) for row in database.execute(query, values)]

    def write(self, statement: str, *values: Any) -> None:
        with closing(sqlite3.connect(self._database, timeout=20)) as database, database:
            database.execute(statement, values)

    @property
    def _database(self) -> Path:
        return self.data / "portal.sqlite3"

    def limit_file_size(self, size: int) -> None:
        """Limit the size of files that the portal may write: with 0 every write fails, as on a full disk."""
        self._limit(resource.RLIMIT_FSIZE, size)

    def limit_memory(self, size: int) -> None:
        """Limit the portal's memory, in bytes: with 0 it gets no more than it already has."""
        self._limit(resource.RLIMIT_AS, size)

    def _limit(self, what: int, size: int) -> None:
        assert self.process is not None
        _, hard = resource.prlimit(self.process.pid, what)
        resource.prlimit(self.process.pid, what, (size, hard))

    def change_by_hand(self, procedure: str, **given: Any) -> Any:
        """Call a Dokploy procedure as another user would, without the portal. Return its result."""
        answer = self.foreign_api.post(procedure, json=given).raise_for_status()
        return answer.json() if answer.content else None


class ScaledOutPortal(PortalDatabase, ScaledOut):
    """A web process and workers on PostgreSQL and Redis. Requests are anonymous unless `user` has signed in."""

    suffix = "apps.test"

    def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        with psycopg.connect(self.env["DATABASE_URL"], row_factory=dict_row) as database:
            cursor = database.execute(query.replace("?", "%s"), values)
            return cursor.fetchall() if cursor.description else []

    write = rows  # type: ignore[assignment]

    def seed(self) -> None:
        """Create an operator and the template that always fails, as in the demo."""
        command = [sys.executable, "manage.py", "shell", "-v", "0", "-c", SEED_DATA]
        subprocess.run(command, cwd=self.root, env=self.env, check=True)

    def operator(self) -> httpx.Client:
        return sign_in(browser(self), "operator", PASSWORD)


def _seconds(at: datetime | str) -> float:
    """Return a stored time in seconds since 1970. SQLite stores times as text, in UTC."""
    return (datetime.fromisoformat(f"{at}+00:00") if isinstance(at, str) else at).timestamp()


def objects(there: Any, name: str, suffix: str = PortalDatabase.suffix) -> dict[str, int]:
    """Return the number of this stack's objects at Dokploy, by type."""
    apps = [row["appName"] for row in there["applications"] if row["name"] == name]
    return {
        "project": sum(row["name"] == name for row in there["projects"]),
        "application": len(apps),
        "domain": sum(row["host"] == f"{name}.{suffix}" for row in there["domains"]),
        "service": sum(re.fullmatch(rf"{name}-[^-]+", row["name"]) is not None for row in there["services"]),
    }


def assert_same_everywhere(portal: PortalDatabase, deployment: dict[str, Any], figures: Figures) -> None:
    """Assert that this ended deployment's events have no gap, and that page, JSON and database agree."""
    numbers = [event["seq"] for event in portal.stored_events(deployment["id"])]
    figures.missing += len(set(range(1, deployment["version"] + 1)) - set(numbers))
    assert numbers == list(range(1, deployment["version"] + 1)), deployment
    state, told = portal.status(deployment["id"]), portal.events(deployment["id"])["events"]
    assert [event["seq"] for event in told] == numbers
    for name in ("phase", "status", "progress", "message", "version"):
        assert state[name] == deployment[name], (deployment, name)
    last = told[-1]
    assert (last["phase"], last["status"]) == (deployment["phase"], deployment["status"])
    page = portal.user.get(f"/deployments/{deployment['id']}").text
    assert f'data-version="{deployment["version"]}" data-done' in page
    assert ('id="success"' in page) == (deployment["status"] == "success")
    assert ('id="failure"' in page) == (deployment["status"] == "failure")


def assert_objects(portal: PortalDatabase, names: Sequence[str], expected: int, figures: Figures) -> None:
    """Assert that each stack has the expected number of objects, and that all of them are recorded."""
    there = portal.dokploy()
    for name in names:
        found = objects(there, name, portal.suffix)
        figures.duplicates += sum(count > expected for count in found.values())
        assert found == dict.fromkeys(found, expected), name
    assert_all_recorded(portal, there, figures)


def assert_all_recorded(portal: PortalDatabase, there: Any, figures: Figures, foreign: Sequence[str] = ()) -> None:
    """Assert that every object at Dokploy is recorded: by id, or by mark where the answer with the id was lost."""
    query = "SELECT kind, mark, external_id FROM deployments_receipt WHERE state != 'gone'"
    receipts = portal.rows(query)
    known = {receipt["external_id"] for receipt in receipts} | {(r["kind"], r["mark"]) for r in receipts}
    made = {row[f"{kind}Id"]: (kind, row.get("description")) for kind in KINDS for row in there[f"{kind}s"]}
    applications = {row["appName"] for row in there["applications"]}
    orphans = {id for id, named in made.items() if not {id, named} & known}
    orphans |= {row["name"] for row in there["services"] if row["name"] not in applications}
    orphans -= set(foreign)
    figures.orphans += len(orphans)
    assert not orphans


# -- scaled out --------------------------------------------------------------------------------------------------------


def assert_one_of_each(portal: ScaledOutPortal, id: str, figures: Figures) -> None:
    """Assert that this deployment's stack has one object of each type, and that no event is missing."""
    assert_objects(portal, [portal.status(id)["name"]], 1, figures)
    assert_no_event_missing(portal, id, figures)


def assert_no_event_missing(portal: ScaledOutPortal, id: str, figures: Figures) -> None:
    """Assert that no event of this ended deployment is missing."""
    numbers = [event["seq"] for event in portal.stored_events(id)]
    version = portal.status(id)["version"]
    figures.missing += len(set(range(1, version + 1)) - set(numbers))
    figures.ended += 1
    assert sorted(numbers) == list(range(1, version + 1))


def wait_until_resumed(portal: ScaledOutPortal, id: str) -> float:
    """Wait until another worker has resumed this deployment; return when, in seconds since 1970."""
    notes = until(
        lambda: [event for event in portal.stored_events(id) if event["kind"] == "note"], RESUME_SECONDS, pause=0.05
    )
    return float(notes[0]["at"])


def wait_for_next_event(portal: ScaledOutPortal, id: str, after: int) -> float:
    """Wait for the first event after this number. Return when it was written, in seconds since 1970."""
    later = until(
        lambda: [event for event in portal.stored_events(id) if event["seq"] > after], RESUME_SECONDS + 10, pause=0.05
    )
    return float(later[0]["at"])


def group_key(portal: ScaledOutPortal, id: str) -> str:
    """Return the Redis channel that announces changes of this deployment."""
    return f"{portal.env['CHANNEL_PREFIX']}__group__run.{id}"


def wait_for_subscribers(redis: Redis, workers: int = 1) -> None:
    """Wait until this number of workers is subscribed."""
    until(lambda: redis.client.pubsub_numsub(RUNNER_CHANNEL)[0][1] == workers, 20)


def wait_for_frame(page: ClientConnection, text: str, seconds: float = 20) -> str:
    """Wait until the page receives a frame with this text; return the frame."""
    deadline = time.monotonic() + seconds
    while text not in (frame := str(page.recv(timeout=deadline - time.monotonic()))):
        pass
    return frame


def assert_updated_by_messages(portal: ScaledOutPortal, page: ClientConnection) -> None:
    """Open the gate of each phase once the page shows the phase, and assert that messages updated the page.

    The periodic comparison of versions alone would take up to three seconds for each phase.
    """
    texts = [*(f"{number} of 7" for number in range(2, 8)), "data-done"]

    def step(gate: str, text: str) -> None:
        portal.open_gate(gate)
        wait_for_frame(page, text)

    took = [timed(partial(step, gate, text)) for gate, text in zip(GATES.values(), texts, strict=True)]
    assert median(took) < 2


def let_last(seconds: float) -> None:
    """Wait for this many seconds while the fault lasts."""
    end = time.monotonic() + seconds
    until(lambda: time.monotonic() > end, seconds + 1)
