"""What the portal stands on gives way: a locked database, a full disk, Dokploy, yesterday's backup."""

import resource
import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from ..integration.test_live import held
from ..processes import until
from .assertions import Figures, Watched, is_as_it_should_be, is_told_alike, objects

LOCKED_SECONDS = 10.0
STARVED_SECONDS = 10.0
NONE, ONE = (dict.fromkeys(("project", "application", "domain", "service"), count) for count in (0, 1))


@pytest.fixture
def portal(tmp_path: Path) -> Iterator[Watched]:
    portal = Watched(tmp_path / "portal", STACK_HEALTH_TIMEOUT_SECONDS=8).start()
    yield portal
    portal.close()


def is_over(portal: Watched, name: str, expected: int, figures: Figures) -> None:
    is_told_alike(portal, portal.ended(name), figures)
    is_as_it_should_be(portal, [name], expected, figures)
    figures.ended += 1


# -- the database ------------------------------------------------------------------------------------------------------


def test_a_database_that_another_process_locks_for_ten_seconds_is_waited_for(portal: Watched, figures: Figures) -> None:
    with held(portal, "application.create"):
        portal.ask("locked-out")
        portal.wait_at("application.create")
        database = sqlite3.connect(portal.data / "portal.sqlite3", isolation_level=None)
        database.execute("BEGIN IMMEDIATE")
    since = time.monotonic()
    version = portal.run_of("locked-out")["version"]
    try:
        while time.monotonic() - since < LOCKED_SECONDS:  # pages are shown meanwhile, and nothing is claimed
            began = time.monotonic()
            assert portal.status(portal.run_of("locked-out")["id"])["version"] == version
            assert time.monotonic() - began < 2
    finally:
        database.execute("ROLLBACK")
        database.close()
    assert portal.ended("locked-out")["phase"] == "completed"
    is_over(portal, "locked-out", 1, figures)


@pytest.mark.parametrize("seconds", [4, 25])  # 25: the lease is given up meanwhile
def test_a_full_disk_gives_no_false_success_and_the_run_goes_on_when_there_is_room(
    portal: Watched, figures: Figures, seconds: int
) -> None:
    with held(portal, "application.create"):
        portal.ask("no-room")
        portal.wait_at("application.create")
        portal.has_room(0)
    version = portal.run_of("no-room")["version"]
    refused = portal.http.post("/api/deploy", json={"name": "not-taken"})
    assert refused.status_code >= 500
    since = time.monotonic()
    while time.monotonic() - since < seconds:
        run = portal.run_of("no-room")
        assert (run["status"], run["version"]) == ("in_progress", version)
    portal.has_room(resource.RLIM_INFINITY)
    assert portal.ended("no-room", 60)["phase"] == "completed"
    is_over(portal, "no-room", 1, figures)
    assert portal.rows("SELECT id FROM deployments_stack WHERE name = 'not-taken'") == []


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["application.create", "application.delete"])
def test_a_portal_that_gets_no_more_memory_ends_its_run_when_there_is_some_or_when_it_is_started_again(
    portal: Watched, figures: Figures, place: str
) -> None:
    """It may die of it, and it may refuse what it is asked; what it says is true."""
    broken = place == "application.delete"
    with held(portal, place):
        portal.ask("starved", template="broken" if broken else "web-page")
        portal.wait_at(place)
        portal.has_memory(0)
    ends = time.monotonic() + STARVED_SECONDS
    while time.monotonic() < ends and portal.process.poll() is None:
        with suppress(httpx.HTTPError):
            portal.http.get("/", timeout=1)
    if portal.process.poll() is None:
        portal.has_memory(resource.RLIM_INFINITY)
    until(lambda: portal.process.poll() is not None or portal.run_of("starved")["completed_at"], 90, pause=0.05)
    if portal.process.poll() is not None:
        until(portal.ports_are_free, 10)
        portal.start()
    assert portal.ended("starved")["phase"] == ("rolling_back" if broken else "completed")
    is_over(portal, "starved", int(not broken), figures)


# -- Dokploy -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("application.create", "project"),
        ("application.saveDockerProvider", "application"),
        ("domain.create", "application"),
        ("application.deploy", "application"),
    ],
)
def test_what_somebody_deletes_by_hand_under_a_run_ends_it_in_time_and_leaves_nothing(
    portal: Watched, figures: Figures, place: str, kind: str
) -> None:
    with held(portal, place):
        portal.ask("deleted")
        portal.wait_at(place)
        row = next(row for row in portal.dokploy()[f"{kind}s"] if row["name"] == "deleted")
        procedure = {"project": "project.remove", "application": "application.delete"}[kind]
        portal.by_hand(procedure, **{f"{kind}Id": row[f"{kind}Id"]})
    run = portal.ended("deleted")
    assert (run["status"], run["phase"], run["message"]) == ("failure", "rolling_back", "Rollback completed")
    is_over(portal, "deleted", 0, figures)
    portal.ask("deleted")
    assert portal.ended("deleted")["phase"] == "completed"
    is_over(portal, "deleted", 1, figures)


def test_a_stack_whose_application_somebody_deletes_can_be_tried_again_until_it_works(
    portal: Watched, figures: Figures
) -> None:
    portal.ask("again")
    portal.ended("again")
    row = next(row for row in portal.dokploy()["applications"] if row["name"] == "again")
    with held(portal, "application.saveDockerProvider"):
        portal.ask("again")
        portal.wait_at("application.saveDockerProvider")
        portal.by_hand("application.delete", applicationId=row["applicationId"])
    run = portal.ended("again")
    assert run["status"] == "failure"
    portal.http.post(f"/api/deployments/{run['id']}/retry").raise_for_status()
    assert portal.ended("again")["phase"] == "completed"
    is_over(portal, "again", 1, figures)


def test_a_domain_that_somebody_deletes_by_hand_is_never_called_live(portal: Watched, figures: Figures) -> None:
    with held(portal, "job"):
        portal.ask("nowhere")
        portal.wait_at("job")
        domain = next(row for row in portal.dokploy()["domains"] if row["host"] == "nowhere.localhost")
        portal.by_hand("domain.delete", domainId=domain["domainId"])
    assert portal.ended("nowhere")["status"] == "failure"
    is_over(portal, "nowhere", 0, figures)


def test_a_key_that_is_refused_in_the_middle_leaves_what_it_names_and_what_can_be_removed_later(
    portal: Watched, figures: Figures
) -> None:
    with held(portal, "domain.create"):
        portal.ask("refused-key")
        portal.wait_at("domain.create")
        portal.fault("*", "unauthorized", times=None)
    run = portal.ended("refused-key")
    assert run["status"] == "failure"
    assert run["message"].startswith("Left at Dokploy: ")
    is_told_alike(portal, run, figures)
    left = portal.rows("SELECT kind FROM deployments_receipt WHERE state = 'left' ORDER BY id")
    assert {row["kind"] for row in left} >= {"project", "application"}
    assert objects(portal.dokploy(), "refused-key")["application"] == 1
    portal.switches.delete("faults")
    portal.ask_removal("refused-key")
    assert portal.ended("refused-key")["phase"] == "completed"
    is_over(portal, "refused-key", 0, figures)


@pytest.mark.parametrize("gate", ["job", "pull"])
def test_a_dokploy_that_restarts_under_waiting_and_running_deploys_deploys_each_once_more(
    portal: Watched, figures: Figures, gate: str
) -> None:
    names = [f"restarted-{number}" for number in range(3)]
    with held(portal, gate):
        for name in names:  # the first is running, the others wait
            portal.ask(name)
        portal.wait_at(gate)
        until(lambda: portal.dokploy()["calls"].get("application.deploy") == len(names), 20)
        portal.switches.post("restart", json={"seconds": 1}).raise_for_status()
    for name in names:
        assert portal.ended(name)["phase"] == "completed"
        is_over(portal, name, 1, figures)


# -- ourselves ---------------------------------------------------------------------------------------------------------


def test_after_yesterdays_backup_is_restored_nothing_unknown_is_taken_or_deleted(
    portal: Watched, tmp_path: Path, figures: Figures
) -> None:
    portal.ask("yesterday")
    portal.ended("yesterday")
    stop(portal)
    shutil.copy(portal.data / "portal.sqlite3", tmp_path / "backup")
    portal.start()
    portal.ask("today")
    portal.ended("today")
    stop(portal)
    before = (tmp_path / "backup").read_bytes()
    (portal.data / "portal.sqlite3").write_bytes(before)
    portal.start()
    unknown = objects(portal.dokploy(), "today")
    portal.ask("today")  # its name is free here, and not at Dokploy
    run: Any = portal.ended("today")
    assert (run["status"], run["phase"]) == ("failure", "failed")
    assert "LEFTOVER_AT_DOKPLOY" in run["error"]
    is_told_alike(portal, run, figures)
    assert objects(portal.dokploy(), "today") == unknown == ONE
    assert portal.router.get("/", headers={"Host": "today.localhost"}).status_code == 200
    portal.ask_removal("yesterday")
    assert portal.ended("yesterday")["phase"] == "completed"
    assert objects(portal.dokploy(), "yesterday") == NONE
    figures.ended += 3


def stop(portal: Watched) -> None:
    assert portal.stop(signal.SIGTERM) == 0
    until(portal.ports_are_free, 10)
