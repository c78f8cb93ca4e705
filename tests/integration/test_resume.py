"""The whole portal is killed with kill -9 and restarted: every deployment resumes once, and every client sees it."""

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from ..gates import held
from ..processes import ROOT, Portal, until

# Each phase, before Dokploy has done the work and after it (the answer never arrives). The last place comes first, so
# that each further deployment is held in front of the gates that are already closed.
PLACES = [
    "container",
    "job",
    "application.deploy:answer",
    "application.deploy",
    "domain.create:answer",
    "domain.create",
    "application.saveEnvironment:answer",
    "application.saveDockerProvider",
    "application.create:answer",
    "application.create",
    "environment.byProjectId",
    "project.create:answer",
    "project.create",
    "project.all",
]
UNDO_PLACES = ["project.remove:answer", "project.remove", "application.delete:answer", "domain.delete"]
KINDS = ("projects", "applications", "domains", "services")


def hold_one_deployment_at_each(portal: Portal, places: list[str], holding: ExitStack) -> dict[str, str]:
    """Hold one deployment at each place; return their ids by name."""
    ids = {}
    for number, place in enumerate(places):
        holding.enter_context(held(portal, place))
        name = f"held-{number}"
        ids[name] = portal.deploy(name)
        if place == "container":
            until(lambda id=ids[name]: portal.status(id)["phase"] == "verifying_health")
        else:
            portal.wait_at(place)
    return ids


def assert_no_event_missing(portal: Portal, id: str) -> list[Any]:
    state, events = portal.status(id), portal.events(id)["events"]
    assert [event["seq"] for event in events] == list(range(1, state["version"] + 1))
    return list(events)


def test_every_deployment_resumes_after_kill_9_in_every_phase(own_portal: Any) -> None:
    portal = own_portal().start()
    with ExitStack() as holding:
        ids = hold_one_deployment_at_each(portal, PLACES, holding)
        before = portal.http.get(f"/deployments/{ids['held-0']}").text
        portal.kill()
    portal.start()
    for name, id in ids.items():
        state = portal.finished(id)
        assert state["phase"] == "completed", (name, state)
        assert_no_event_missing(portal, id)
        assert portal.router.get("/", headers={"Host": f"{name}.localhost"}).status_code == 200
    there = portal.dokploy()
    assert {kind: len(there[kind]) for kind in KINDS} == dict.fromkeys(KINDS, len(PLACES))
    assert len({project["name"] for project in there["projects"]}) == len(PLACES)
    after = portal.http.get(f"/deployments/{ids['held-0']}").text
    assert "of 7" in before
    assert "The stack is live" in after


def test_every_undo_resumes_after_kill_9_in_every_phase(own_portal: Any) -> None:
    portal = own_portal().start()
    portal.turn(pull_error="no space left on device")
    with ExitStack() as holding:
        ids = hold_one_deployment_at_each(portal, UNDO_PLACES, holding)
        portal.kill()
    portal.start()
    for name, id in ids.items():
        state = portal.finished(id)
        assert (state["phase"], state["message"]) == ("rolling_back", "Rollback completed"), name
        assert (state["error"]["phase"], state["error"]["code"]) == ("deploying", "SERVER_DISK_FULL")
        assert_no_event_missing(portal, id)
        assert portal.has_free(name)
    there = portal.dokploy()
    assert {kind: there[kind] for kind in KINDS} == {kind: [] for kind in KINDS}


def test_sigterm_during_a_deployment_releases_it_and_exits_with_0(own_portal: Any) -> None:
    portal = own_portal().start()
    with held(portal, "application.create"):
        id = portal.deploy("drained")
        portal.wait_at("application.create")
        portal.process.send_signal(signal.SIGTERM)
    assert portal.process.wait(30) == 0
    until(portal.ports_are_free)
    portal.start()
    assert portal.finished(id)["phase"] == "completed"
    there = portal.dokploy()
    assert {kind: len(there[kind]) for kind in KINDS} == dict.fromkeys(KINDS, 1)
    notes = [event for event in assert_no_event_missing(portal, id) if event["kind"] == "note"]
    assert [note["message"] for note in notes] == ["Resumed after an interruption"]


OUTLIVES_THE_LOOP = """
import asyncio, threading
import django
django.setup()
from asgiref.sync import sync_to_async
from deployments.realtime import pubsub
stopped = threading.Event()
def commit():
    stopped.wait()
    pubsub.notify_worker()
async def serve():
    pubsub.bind_loop()
    asyncio.ensure_future(sync_to_async(commit)())
    await asyncio.sleep(0)
loop = asyncio.new_event_loop()
loop.run_until_complete(serve())
stopped.set()
"""


def test_a_thread_that_publishes_after_the_loop_has_stopped_does_not_block_the_exit(tmp_path: Path) -> None:
    env = {**os.environ, "DATA_DIR": str(tmp_path), "DJANGO_SETTINGS_MODULE": "deployportal.settings"}
    process = subprocess.run([sys.executable, "-c", OUTLIVES_THE_LOOP], cwd=ROOT, env=env, timeout=20)
    assert process.returncode == 0


QUICK_SIGNS_OF_LIFE = """
import sys
from django.core.management import execute_from_command_line
from deployments.engine import retry
retry.HEARTBEAT_SECONDS = 0.2
execute_from_command_line(["manage.py", "serve", "--no-sample"])
"""


def test_sigterm_lets_a_long_call_finish_and_records_its_result(own_portal: Any) -> None:
    """The call takes longer than a heartbeat and less than the eight seconds after which it is given up."""
    portal = own_portal()
    env = {**portal.env, "DJANGO_SETTINGS_MODULE": "deployportal.settings"}
    with portal.output.open("a") as output:
        command = [sys.executable, "-c", QUICK_SIGNS_OF_LIFE]
        portal.process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=output, stderr=output, text=True)
    until(portal.answers, 30, pause=0.05)
    with held(portal, "application.create:answer"):
        id = portal.deploy("in-hand")
        portal.wait_at("application.create:answer")
        seen = portal.status(id)["version"]
        until(lambda: portal.status(id)["version"] > seen)  # a heartbeat during the call
        portal.process.send_signal(signal.SIGTERM)
        until(lambda: "Stopping." in portal.output.read_text())
        portal.open_gate("application.create:answer")
        assert portal.process.wait(30) == 0
    with closing(sqlite3.connect(portal.data / "portal.sqlite3")) as database:
        query = "SELECT state FROM deployments_receipt WHERE kind = 'application'"
        assert database.execute(query).fetchall() == [("made",)]
        assert database.execute("SELECT lease_until FROM deployments_deployment").fetchall() == [(None,)]


def test_sigterm_ends_in_time_while_another_process_locks_the_database(own_portal: Any) -> None:
    portal = own_portal().start()
    with held(portal, "application.create"):
        id = portal.deploy("locked")
        portal.wait_at("application.create")
        with closing(sqlite3.connect(portal.data / "portal.sqlite3", isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            portal.open_gate("application.create")
            portal.process.send_signal(signal.SIGTERM)
            assert portal.process.wait(18) == 0  # SQLite would wait 20 s for the lock
    until(portal.ports_are_free)
    portal.start()
    assert portal.finished(id)["phase"] == "completed"
    assert_no_event_missing(portal, id)
    there = portal.dokploy()
    assert {kind: len(there[kind]) for kind in KINDS} == dict.fromkeys(KINDS, 1)
