"""A frozen worker wakes up after another has taken over: it writes nothing, and the deployment completes."""

import signal
import subprocess
from pathlib import Path
from typing import Any

import psycopg
import pytest

from ..gates import held
from ..processes import until
from .assertions import ONE_OF_EACH, RESUME_SECONDS, Figures, ScaledOutPortal, assert_one_of_each, wait_for_next_event

GATE = 7  # an advisory lock; writing an event waits for it inside the transaction
STANDS_STILL = f"""
CREATE FUNCTION is_frozen() RETURNS trigger LANGUAGE plpgsql
AS $$ BEGIN PERFORM pg_advisory_xact_lock_shared({GATE}); RETURN NEW; END $$;
CREATE TRIGGER is_frozen BEFORE INSERT ON deployments_event FOR EACH ROW EXECUTE FUNCTION is_frozen();
"""


@pytest.fixture
def portal(scaled_out: ScaledOutPortal) -> ScaledOutPortal:
    return scaled_out


def written_rows(portal: ScaledOutPortal) -> Any:
    """Return every row that a worker could write."""
    deployments = portal.rows("SELECT id, version, status, phase, lease_token FROM deployments_deployment ORDER BY id")
    return (
        deployments,
        portal.rows("SELECT id, seq FROM deployments_event ORDER BY id"),
        portal.rows("SELECT id, state, external_id FROM deployments_receipt ORDER BY id"),
    )


@pytest.mark.parametrize("place", ["application.create", "application.create:answer", "job"])
def test_a_frozen_worker_writes_nothing_after_another_took_over(
    portal: ScaledOutPortal, place: str, figures: Figures
) -> None:
    worker = portal.work()
    with held(portal, place):
        id = portal.deploy("frozen")
        portal.wait_at(place)
        worker.send_signal(signal.SIGSTOP)
        portal.work()
    assert portal.finished(id, RESUME_SECONDS + 30)["phase"] == "completed"
    there, before = portal.dokploy(), written_rows(portal)
    sent = {name: count for name, count in there["calls"].items() if not name.startswith("settings.")}
    worker.send_signal(signal.SIGCONT)
    other = portal.deploy("after")  # once it starts, the woken worker has had its chance to write
    assert portal.finished(other)["phase"] == "completed"
    assert worker.poll() is None
    woken = written_rows(portal)
    for were, are in zip(before, woken, strict=True):
        assert [row for row in are if row["id"] in {old["id"] for old in were}] == were
    assert sent["application.create"] + 1 == portal.dokploy()["calls"]["application.create"]
    now = portal.dokploy()
    assert {kind: len(now[kind]) for kind in ONE_OF_EACH} == dict.fromkeys(ONE_OF_EACH, 2)
    figures.ended += 2


def is_frozen(process: "subprocess.Popen[str]") -> bool:
    """Return whether the signal has stopped every thread of the process."""
    threads = Path(f"/proc/{process.pid}/task").glob("*/stat")
    return all(thread.read_text().rpartition(") ")[2].startswith("T") for thread in threads)


def frozen_in_a_transaction(portal: ScaledOutPortal, worker: "subprocess.Popen[str]") -> str:
    """Freeze the worker while it writes an event; return the deployment's id."""
    with held(portal, "application.create"):
        id = portal.deploy("locked")
        portal.wait_at("application.create")
        portal.rows(STANDS_STILL)
        with psycopg.connect(portal.env["DATABASE_URL"]) as gate:
            gate.execute(f"SELECT pg_advisory_xact_lock({GATE})")
            portal.open_gate("application.create")
            until(lambda: portal.rows("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"))
            worker.send_signal(signal.SIGSTOP)
            until(lambda: is_frozen(worker))
    return id


def test_a_worker_repeats_a_transaction_that_the_server_has_ended(portal: ScaledOutPortal, figures: Figures) -> None:
    worker = portal.work()
    id = frozen_in_a_transaction(portal, worker)
    open_ones = "SELECT 1 FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = current_database()"
    until(lambda: portal.rows(open_ones), 5)
    until(lambda: not portal.rows(open_ones), 20)  # the server has ended the transaction
    worker.send_signal(signal.SIGCONT)
    assert portal.finished(id, RESUME_SECONDS + 30)["phase"] == "completed"
    assert_one_of_each(portal, id, figures)


def test_a_worker_frozen_in_a_transaction_blocks_no_other_worker(portal: ScaledOutPortal, figures: Figures) -> None:
    """Without a limit its locks would last as long as it is frozen."""
    id = frozen_in_a_transaction(portal, portal.work())
    portal.work()
    seen = portal.status(id)["version"]
    other = portal.deploy("beside")
    wait_for_next_event(portal, id, seen)
    assert portal.finished(other)["phase"] == portal.finished(id)["phase"] == "completed"
    there = portal.dokploy()
    assert {kind: len(there[kind]) for kind in ONE_OF_EACH} == dict.fromkeys(ONE_OF_EACH, 2)
    figures.ended += 2


def test_a_deployment_survives_cut_database_connections_in_every_phase(
    portal: ScaledOutPortal, figures: Figures
) -> None:
    portal.work()
    places = ["project.create", "application.create", "domain.create", "job", "container"]
    with held(portal, *places):
        id = portal.deploy("cut-off")
        for place in places:
            if place == "container":
                until(lambda: portal.status(id)["phase"] == "verifying_health")
            else:
                portal.wait_at(place)
            portal.rows(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
                "AND pid <> pg_backend_pid()",
            )
            portal.open_gate(place)
    assert portal.finished(id, 60)["phase"] == "completed"
    assert_one_of_each(portal, id, figures)
