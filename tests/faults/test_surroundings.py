"""The portal's environment fails: a locked database, a full disk, no memory, Dokploy, an old backup."""

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

from ..gates import held
from ..processes import until
from .assertions import Figures, OneMachinePortal, assert_objects, assert_same_everywhere, objects

LOCKED_SECONDS = 10.0
STARVED_SECONDS = 10.0
NONE, ONE = (dict.fromkeys(("project", "application", "domain", "service"), count) for count in (0, 1))


@pytest.fixture
def portal(tmp_path: Path) -> Iterator[OneMachinePortal]:
    portal = OneMachinePortal(tmp_path / "portal", STACK_HEALTH_TIMEOUT_SECONDS=8).start()
    yield portal
    portal.close()


def assert_over(portal: OneMachinePortal, name: str, expected: int, figures: Figures) -> None:
    assert_same_everywhere(portal, portal.wait_until_ended(name), figures)
    assert_objects(portal, [name], expected, figures)
    figures.ended += 1


# -- the database ------------------------------------------------------------------------------------------------------


def test_a_deployment_waits_for_a_database_that_is_locked_for_ten_seconds(
    portal: OneMachinePortal, figures: Figures
) -> None:
    with held(portal, "application.create"):
        portal.request("locked-out")
        portal.wait_at("application.create")
        database = sqlite3.connect(portal.data / "portal.sqlite3", isolation_level=None)
        database.execute("BEGIN IMMEDIATE")
    since = time.monotonic()
    version = portal.newest_deployment("locked-out")["version"]
    try:
        while time.monotonic() - since < LOCKED_SECONDS:  # pages work meanwhile; nothing can be claimed
            began = time.monotonic()
            assert portal.status(portal.newest_deployment("locked-out")["id"])["version"] == version
            assert time.monotonic() - began < 2
    finally:
        database.execute("ROLLBACK")
        database.close()
    assert portal.wait_until_ended("locked-out")["phase"] == "completed"
    assert_over(portal, "locked-out", 1, figures)


@pytest.mark.parametrize("seconds", [4, 25])  # 25: longer than the worker keeps its lease
def test_a_full_disk_causes_no_false_success_and_the_deployment_resumes_when_space_is_free(
    portal: OneMachinePortal, figures: Figures, seconds: int
) -> None:
    with held(portal, "application.create"):
        portal.request("no-room")
        portal.wait_at("application.create")
        portal.limit_file_size(0)
    version = portal.newest_deployment("no-room")["version"]
    refused = portal.http.post("/api/deploy", json={"name": "not-taken"})
    assert refused.status_code >= 500
    since = time.monotonic()
    while time.monotonic() - since < seconds:
        deployment = portal.newest_deployment("no-room")
        assert (deployment["status"], deployment["version"]) == ("in_progress", version)
    portal.limit_file_size(resource.RLIM_INFINITY)
    assert portal.wait_until_ended("no-room", 60)["phase"] == "completed"
    assert_over(portal, "no-room", 1, figures)
    assert portal.rows("SELECT id FROM deployments_stack WHERE name = 'not-taken'") == []


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["application.create", "application.delete"])
def test_a_portal_out_of_memory_completes_its_deployment_when_memory_is_free_or_after_a_restart(
    portal: OneMachinePortal, figures: Figures, place: str
) -> None:
    """The portal may die and may refuse requests, but its deployment ends with the right state."""
    broken = place == "application.delete"
    with held(portal, place):
        portal.request("starved", template="broken" if broken else "web-page")
        portal.wait_at(place)
        portal.limit_memory(0)
    ends = time.monotonic() + STARVED_SECONDS
    while time.monotonic() < ends and portal.process.poll() is None:
        with suppress(httpx.HTTPError):
            portal.http.get("/", timeout=1)
    if portal.process.poll() is None:
        portal.limit_memory(resource.RLIM_INFINITY)
    until(
        lambda: portal.process.poll() is not None or portal.newest_deployment("starved")["completed_at"], 90, pause=0.05
    )
    if portal.process.poll() is not None:
        until(portal.ports_are_free, 10)
        portal.start()
    assert portal.wait_until_ended("starved")["phase"] == ("rolling_back" if broken else "completed")
    assert_over(portal, "starved", int(not broken), figures)


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
def test_a_deployment_whose_object_is_deleted_by_hand_ends_in_time_and_leaves_nothing(
    portal: OneMachinePortal, figures: Figures, place: str, kind: str
) -> None:
    with held(portal, place):
        portal.request("deleted")
        portal.wait_at(place)
        row = next(row for row in portal.dokploy()[f"{kind}s"] if row["name"] == "deleted")
        procedure = {"project": "project.remove", "application": "application.delete"}[kind]
        portal.change_by_hand(procedure, **{f"{kind}Id": row[f"{kind}Id"]})
    deployment = portal.wait_until_ended("deleted")
    assert (deployment["status"], deployment["phase"], deployment["message"]) == (
        "failure",
        "rolling_back",
        "Rollback completed",
    )
    assert_over(portal, "deleted", 0, figures)
    portal.request("deleted")
    assert portal.wait_until_ended("deleted")["phase"] == "completed"
    assert_over(portal, "deleted", 1, figures)


def test_a_stack_whose_application_was_deleted_can_be_retried_until_it_works(
    portal: OneMachinePortal, figures: Figures
) -> None:
    portal.request("again")
    portal.wait_until_ended("again")
    row = next(row for row in portal.dokploy()["applications"] if row["name"] == "again")
    with held(portal, "application.saveDockerProvider"):
        portal.request("again")
        portal.wait_at("application.saveDockerProvider")
        portal.change_by_hand("application.delete", applicationId=row["applicationId"])
    deployment = portal.wait_until_ended("again")
    assert deployment["status"] == "failure"
    portal.http.post(f"/api/deployments/{deployment['id']}/retry").raise_for_status()
    assert portal.wait_until_ended("again")["phase"] == "completed"
    assert_over(portal, "again", 1, figures)


def test_a_stack_without_its_domain_never_becomes_live(portal: OneMachinePortal, figures: Figures) -> None:
    with held(portal, "job"):
        portal.request("nowhere")
        portal.wait_at("job")
        domain = next(row for row in portal.dokploy()["domains"] if row["host"] == "nowhere.localhost")
        portal.change_by_hand("domain.delete", domainId=domain["domainId"])
    assert portal.wait_until_ended("nowhere")["status"] == "failure"
    assert_over(portal, "nowhere", 0, figures)


def test_a_key_refused_during_a_deployment_leaves_named_objects_that_can_be_removed_later(
    portal: OneMachinePortal, figures: Figures
) -> None:
    with held(portal, "domain.create"):
        portal.request("refused-key")
        portal.wait_at("domain.create")
        portal.fault("*", "unauthorized", times=None)
    deployment = portal.wait_until_ended("refused-key")
    assert deployment["status"] == "failure"
    assert deployment["message"].startswith("Left at Dokploy: ")
    assert_same_everywhere(portal, deployment, figures)
    left = portal.rows("SELECT kind FROM deployments_receipt WHERE state = 'left' ORDER BY id")
    assert {row["kind"] for row in left} >= {"project", "application"}
    assert objects(portal.dokploy(), "refused-key")["application"] == 1
    portal.switches.delete("faults")
    portal.request_removal("refused-key")
    assert portal.wait_until_ended("refused-key")["phase"] == "completed"
    assert_over(portal, "refused-key", 0, figures)


@pytest.mark.parametrize("gate", ["job", "pull"])
def test_a_dokploy_restart_deploys_each_waiting_and_running_deploy_once_more(
    portal: OneMachinePortal, figures: Figures, gate: str
) -> None:
    names = [f"restarted-{number}" for number in range(3)]
    with held(portal, gate):
        for name in names:  # the first runs, the others wait
            portal.request(name)
        portal.wait_at(gate)
        until(lambda: portal.dokploy()["calls"].get("application.deploy") == len(names), 20)
        portal.switches.post("restart", json={"seconds": 1}).raise_for_status()
    for name in names:
        assert portal.wait_until_ended(name)["phase"] == "completed"
        assert_over(portal, name, 1, figures)


# -- the portal -------------------------------------------------------------------------------------------------------


def test_after_an_old_backup_is_restored_unknown_objects_are_neither_used_nor_deleted(
    portal: OneMachinePortal, tmp_path: Path, figures: Figures
) -> None:
    portal.request("yesterday")
    portal.wait_until_ended("yesterday")
    stop(portal)
    shutil.copy(portal.data / "portal.sqlite3", tmp_path / "backup")
    portal.start()
    portal.request("today")
    portal.wait_until_ended("today")
    stop(portal)
    before = (tmp_path / "backup").read_bytes()
    (portal.data / "portal.sqlite3").write_bytes(before)
    portal.start()
    unknown = objects(portal.dokploy(), "today")
    portal.request("today")  # the name is free in the portal but not at Dokploy
    deployment: Any = portal.wait_until_ended("today")
    assert (deployment["status"], deployment["phase"]) == ("failure", "failed")
    assert "LEFTOVER_AT_DOKPLOY" in deployment["error"]
    assert_same_everywhere(portal, deployment, figures)
    assert objects(portal.dokploy(), "today") == unknown == ONE
    assert portal.router.get("/", headers={"Host": "today.localhost"}).status_code == 200
    portal.request_removal("yesterday")
    assert portal.wait_until_ended("yesterday")["phase"] == "completed"
    assert objects(portal.dokploy(), "yesterday") == NONE
    figures.ended += 3


def stop(portal: OneMachinePortal) -> None:
    assert portal.stop(signal.SIGTERM) == 0
    until(portal.ports_are_free, 10)
