"""What is there after a fault: objects at Dokploy, rows, pages. Nothing here reads a log line.

What must hold: of each stack at most one project, application and domain; what we made stands in a receipt; every run
ends; its events have no gap and are told alike everywhere; no secret is told; nobody else's object is touched.
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

from ..integration.test_live import GATES
from ..processes import Portal, ScaledOut, client, until
from ..services import Redis, timed
from ..users import PASSWORD, browser, new_token, operator, sign_in

KINDS = ("project", "application", "domain")
FURNITURE = f"""
from django.contrib.auth.models import User
from deployments.models import Template
User.objects.create_superuser("operator", password="{PASSWORD}")
Template.objects.create(slug="broken", name="Broken", image="registry.invalid/broken:1", position=9)
"""
ROOMY = {"PORTAL_QUOTA": 1000, "PORTAL_OPEN_QUOTA": 1000, "STACK_HEALTH_INTERVAL_SECONDS": 0.2}
EACH_ONE = dict.fromkeys(("projects", "applications", "domains", "services"), 1)
RESUME_SECONDS = 30 + 5  # a lease, and a look for what is due


@dataclass
class Figures:
    """What was killed, how the runs ended, and what must be 0. not_passed: points that a second run did not come by.
    resume: seconds from a process's start, or a worker's death, to the next event of a run that was under way."""

    killed: int = 0
    not_passed: list[str] = field(default_factory=list)
    ended: int = 0
    duplicates: int = 0
    orphans: int = 0
    missing: int = 0
    resume: list[float] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)


class Books(Portal):
    """A portal whose rows can be read, also when it is dead."""

    suffix = "localhost"

    def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        """What it answers; each value stands as ? in it."""
        raise NotImplementedError

    def write(self, statement: str, *values: Any) -> None:
        """By hand, past the portal."""
        raise NotImplementedError

    def operator(self) -> httpx.Client:
        """A browser of an operator's."""
        return operator(self)

    def run_of(self, name: str) -> dict[str, Any]:
        """The newest run of this stack, as it stands in the database."""
        query = (
            "SELECT run.* FROM deployments_deployment run JOIN deployments_stack stack ON stack.id = run.stack_id "
            "WHERE stack.name = ? ORDER BY run.created_at DESC LIMIT 1"
        )
        return self.rows(query, name)[0]

    def ended(self, name: str, seconds: float = 60) -> dict[str, Any]:
        return until(lambda: (run := self.run_of(name))["status"] != "in_progress" and run, seconds, pause=0.05)

    def events_of(self, id: str) -> list[dict[str, Any]]:
        """at: seconds since 1970."""
        query = "SELECT seq, kind, message, at FROM deployments_event WHERE deployment_id = ? ORDER BY seq"
        return [{**row, "at": _seconds(row["at"])} for row in self.rows(query, id)]

    # -- what a person asks for ----------------------------------------------------------------------------------------

    def ask(self, name: str, **more: Any) -> None:
        """Asks for a run; the portal may die of it, here and below."""
        self.send("POST", "/api/deploy", json={"name": name, **more})

    def ask_removal(self, name: str) -> None:
        self.send("DELETE", f"/api/stacks/{name}")

    def send(self, method: str, path: str, **more: Any) -> None:
        with suppress(httpx.TransportError):
            answer = self.http.request(method, path, **more)
            assert answer.status_code == 202, answer.text


class Watched(Books):
    """A portal of a test's own on SQLite, and its person at a browser."""

    def __init__(self, data: Path, **env: Any) -> None:
        data.mkdir(parents=True, exist_ok=True)
        super().__init__(data, **{**ROOMY, **env})
        self.person = browser(self)
        self.person.base_url = httpx.URL(f"http://localhost:{self.port}")
        self.token: dict[str, str] = {}
        self.hand = client(f"http://127.0.0.1:{self.port + 1}/api/")  # somebody else's, at Dokploy

    def start(self) -> "Watched":
        super().start()
        if not self.token:
            self.token = {**new_token(self.person), "Accept": "application/json"}
            self.http.headers.update(self.token)
            self.hand.headers["x-api-key"] = (self.data / "simulator-key").read_text()
        return self

    def close(self) -> None:
        self.person.close()
        self.hand.close()
        super().close()

    def dead(self, seconds: float = 30) -> int:
        """Waits until it has died by itself; with which status."""
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

    def has_room(self, size: int) -> None:
        """The largest file that it may write: with 0 every write of it fails, as on a full disk."""
        self._limit(resource.RLIMIT_FSIZE, size)

    def has_memory(self, size: int) -> None:
        """How many bytes it may have: with 0 it gets no more than it has, and whatever asks for more fails."""
        self._limit(resource.RLIMIT_AS, size)

    def _limit(self, what: int, size: int) -> None:
        assert self.process is not None
        _, hard = resource.prlimit(self.process.pid, what)
        resource.prlimit(self.process.pid, what, (size, hard))

    def by_hand(self, procedure: str, **given: Any) -> Any:
        """What somebody does at Dokploy, past the portal."""
        answer = self.hand.post(procedure, json=given).raise_for_status()
        return answer.json() if answer.content else None


class Apart(Books, ScaledOut):
    """Web process and workers apart, on PostgreSQL and Redis. Who asks need not have signed in, unless `person` has."""

    suffix = "apps.test"

    def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        with psycopg.connect(self.env["DATABASE_URL"], row_factory=dict_row) as database:
            cursor = database.execute(query.replace("?", "%s"), values)
            return cursor.fetchall() if cursor.description else []

    write = rows  # type: ignore[assignment]

    def furnish(self) -> None:
        """Makes an operator, and the template that always fails, as the demo has them."""
        command = [sys.executable, "manage.py", "shell", "-v", "0", "-c", FURNITURE]
        subprocess.run(command, cwd=self.root, env=self.env, check=True)

    def operator(self) -> httpx.Client:
        return sign_in(browser(self), "operator", PASSWORD)


def _seconds(at: datetime | str) -> float:
    """SQLite keeps a time as text, in UTC."""
    return (datetime.fromisoformat(f"{at}+00:00") if isinstance(at, str) else at).timestamp()


def objects(there: Any, name: str, suffix: str = Books.suffix) -> dict[str, int]:
    """How many objects of this stack are at Dokploy."""
    apps = [row["appName"] for row in there["applications"] if row["name"] == name]
    return {
        "project": sum(row["name"] == name for row in there["projects"]),
        "application": len(apps),
        "domain": sum(row["host"] == f"{name}.{suffix}" for row in there["domains"]),
        "service": sum(re.fullmatch(rf"{name}-[^-]+", row["name"]) is not None for row in there["services"]),
    }


def is_told_alike(portal: Books, run: dict[str, Any], figures: Figures) -> None:
    """The events of this run, which is over, have no gap; page, JSON and database say the same."""
    numbers = [event["seq"] for event in portal.events_of(run["id"])]
    figures.missing += len(set(range(1, run["version"] + 1)) - set(numbers))
    assert numbers == list(range(1, run["version"] + 1)), run
    state, told = portal.status(run["id"]), portal.events(run["id"])["events"]
    assert [event["seq"] for event in told] == numbers
    for name in ("phase", "status", "progress", "message", "version"):
        assert state[name] == run[name], (run, name)
    last = told[-1]
    assert (last["phase"], last["status"]) == (run["phase"], run["status"])
    page = portal.person.get(f"/deployments/{run['id']}").text
    assert f'data-version="{run["version"]}" data-done' in page
    assert any(f"It {said}" in page for said in ("is live", "was live", "is gone")) == (run["status"] == "success")


def is_as_it_should_be(portal: Books, names: Sequence[str], expected: int, figures: Figures) -> None:
    """Of each stack's objects as many as expected, and none that no receipt knows."""
    there = portal.dokploy()
    for name in names:
        found = objects(there, name, portal.suffix)
        figures.duplicates += sum(count > expected for count in found.values())
        assert found == dict.fromkeys(found, expected), name
    nobody_is_forgotten(portal, there, figures)


def nobody_is_forgotten(portal: Books, there: Any, figures: Figures, foreign: Sequence[str] = ()) -> None:
    """What is at Dokploy stands in a receipt, by its id, or by its mark where the answer with the id was lost."""
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


def is_one_of_each(portal: Apart, id: str, figures: Figures) -> None:
    """Of each object of this run's stack there is one, and no event of the run is missing."""
    is_as_it_should_be(portal, [portal.status(id)["name"]], 1, figures)
    is_told_whole(portal, id, figures)


def is_told_whole(portal: Apart, id: str, figures: Figures) -> None:
    """No event of this run, which is over, is missing."""
    numbers = [event["seq"] for event in portal.events_of(id)]
    version = portal.status(id)["version"]
    figures.missing += len(set(range(1, version + 1)) - set(numbers))
    figures.ended += 1
    assert sorted(numbers) == list(range(1, version + 1))


def taken_up(portal: Apart, id: str) -> float:
    """Waits until another worker has taken this run up after an interruption; when it said so."""
    notes = until(
        lambda: [event for event in portal.events_of(id) if event["kind"] == "note"], RESUME_SECONDS, pause=0.05
    )
    return float(notes[0]["at"])


def next_event(portal: Apart, id: str, after: int) -> float:
    """When the first event after this one was written."""
    later = until(
        lambda: [event for event in portal.events_of(id) if event["seq"] > after], RESUME_SECONDS + 10, pause=0.05
    )
    return float(later[0]["at"])


def group_of(portal: Apart, id: str) -> str:
    """The channel at Redis through which those who watch this run are told to look."""
    return f"{portal.env['CHANNEL_PREFIX']}__group__run.{id}"


def is_heard(redis: Redis, workers: int = 1) -> None:
    """Waits until so many workers would hear the bell."""
    until(lambda: redis.client.pubsub_numsub(RUNNER_CHANNEL)[0][1] == workers, 20)


def shows(page: ClientConnection, text: str, seconds: float = 20) -> str:
    """Waits until the page gets a frame with this text in it; the frame."""
    deadline = time.monotonic() + seconds
    while text not in (frame := str(page.recv(timeout=deadline - time.monotonic()))):
        pass
    return frame


def is_moved_by_messages(portal: Apart, page: ClientConnection) -> None:
    """Opens the gate of each phase once the page shows it, to the end. By the comparison of versions alone, which comes
    every three seconds, each would take that long."""
    texts = [*(f"{number} of 7" for number in range(2, 8)), "data-done"]

    def step(gate: str, text: str) -> None:
        portal.open_gate(gate)
        shows(page, text)

    took = [timed(partial(step, gate, text)) for gate, text in zip(GATES.values(), texts, strict=True)]
    assert median(took) < 2


def lasts(seconds: float) -> None:
    """The fault takes so long."""
    end = time.monotonic() + seconds
    until(lambda: time.monotonic() > end, seconds + 1)
