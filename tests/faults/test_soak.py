"""Chaos soak: deployments, redeployments and removals under faults drawn from a seed, then the invariants are counted.

Choose a seed with make soak SEED=…
"""

import os
import random
import resource
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from ..processes import until
from .assertions import Figures, OneMachinePortal, assert_all_recorded, assert_same_everywhere, let_last, objects

SEED = int(os.environ.get("SOAK_SEED") or random.SystemRandom().randrange(1_000_000))
COUNT = int(os.environ.get("SOAK_COUNT") or 40)
MINUTES = float(os.environ.get("SOAK_MINUTES") or 2)
AT_ONCE = 15
DRAIN_SECONDS = 15
ENDING_SECONDS = 180  # for the last deployments, once the faults are over

CALLS = (
    "project.all",
    "project.create",
    "environment.byProjectId",
    "application.create",
    "application.saveDockerProvider",
    "application.saveEnvironment",
    "application.update",
    "domain.byApplicationId",
    "domain.create",
    "application.deploy",
    "deployment.all",
    "deployment.queueList",
    "application.cleanQueues",
    "domain.delete",
    "application.delete",
    "project.remove",
)
ANSWERS = (
    "error500",
    "error500_done",
    "error400",
    "error400_done",
    "unauthorized",
    "too_many",
    "html502_done",
    "empty200",
    "empty200_done",
    "garbage200_done",
    "wrong_types",
    "reset_before",
    "reset_after",
    "hang",
    "slow_bytes",
    "huge",
    "redirect",
)


class Soak:
    """Chooses one action or fault at a time at random, and remembers the requested deployments."""

    def __init__(self, portal: OneMachinePortal, draw: random.Random, figures: Figures) -> None:
        self.portal, self.draw, self.figures = portal, draw, figures
        self.names: list[str] = []
        self.requested: list[str] = []
        # Stacks of which an object was deleted by hand; if that happens during a deploy, a container remains.
        self.touched: set[str] = set()

    def step(self) -> None:
        actions: dict[Callable[[], None], int] = {
            self.deploy: 10,
            self.redeploy: 4,
            self.remove: 4,
            self.cancel: 3,
            self.retry: 3,
            self.answer_wrongly: 8,
            self.restart_dokploy: 1,
            self.stop_the_engine: 1,
            self.deploy_by_hand: 1,
            self.delete_by_hand: 1,
            self.kill: 1,
            self.stop: 1,
            self.freeze: 1,
            self.lock_the_database: 1,
            self.fill_the_disk: 1,
        }
        until(lambda: self.under_way() < AT_ONCE, 120)
        self.draw.choices(list(actions), list(actions.values()))[0]()

    def under_way(self) -> int:
        return int(
            self.portal.rows("SELECT count(*) AS n FROM deployments_deployment WHERE status = 'in_progress'")[0]["n"]
        )

    def deploy(self) -> None:
        self.names.append(f"soak-{len(self.names)}")
        self.ask("POST", "/api/deploy", {"name": self.names[-1], "template": self.template()})

    def redeploy(self) -> None:
        if self.names:
            self.ask("POST", "/api/deploy", {"name": self.draw.choice(self.names), "template": self.template()})

    def remove(self) -> None:
        if self.names:
            self.ask("DELETE", f"/api/stacks/{self.draw.choice(self.names)}", None)

    def cancel(self) -> None:
        self.again("cancel")

    def retry(self) -> None:
        self.again("retry")

    def again(self, what: str) -> None:
        if self.requested:
            self.ask("POST", f"/api/deployments/{self.draw.choice(self.requested[-AT_ONCE:])}/{what}", None)

    def template(self) -> str:
        return self.draw.choices(["web-page", "broken"], [4, 1])[0]

    def ask(self, method: str, address: str, body: Any) -> None:
        answer = self.portal.http.request(method, address, json=body)
        assert answer.status_code in (202, 404, 409), answer.text  # 404: removed, 409: busy
        if answer.status_code == 202 and (id := answer.json()["deploymentId"]) not in self.requested:
            self.requested.append(id)  # a second removal returns the first one's id

    def answer_wrongly(self) -> None:
        self.portal.fault(self.draw.choice(CALLS), self.draw.choice(ANSWERS), times=self.draw.choice([1, 1, 2, 4]))

    def restart_dokploy(self) -> None:
        self.portal.switches.post("restart", json={"seconds": self.draw.random() * 2}).raise_for_status()

    def stop_the_engine(self) -> None:
        self.portal.turn(engine="down")
        let_last(self.draw.random() * 2)
        self.portal.turn(engine="up")

    def deploy_by_hand(self) -> None:
        if row := self.one_of("applications"):
            self.change_by_hand("application.deploy", applicationId=row["applicationId"], title="by hand")

    def delete_by_hand(self) -> None:
        kind = self.draw.choice(["project", "application", "domain"])
        if row := self.one_of(f"{kind}s"):
            self.touched.add(row["name"] if kind != "domain" else row["host"].partition(".")[0])
            procedure = "project.remove" if kind == "project" else f"{kind}.delete"
            self.change_by_hand(procedure, **{f"{kind}Id": row[f"{kind}Id"]})

    def change_by_hand(self, procedure: str, **given: Any) -> None:
        with suppress(httpx.HTTPError):  # Dokploy may be restarting or answer wrongly here too
            self.portal.change_by_hand(procedure, **given)

    def one_of(self, kind: str) -> dict[str, Any] | None:
        there = [row for row in self.portal.dokploy()[kind] if row.get("name") != "theirs"]
        return self.draw.choice(there) if there else None

    def kill(self) -> None:
        self.portal.kill()
        self.figures.killed += 1
        self.portal.start()

    def stop(self) -> None:
        began = time.monotonic()
        assert self.portal.stop(signal.SIGTERM) == 0
        assert time.monotonic() - began < DRAIN_SECONDS
        until(self.portal.ports_are_free, 10)
        self.portal.start()

    def freeze(self) -> None:
        assert self.portal.process is not None
        self.portal.process.send_signal(signal.SIGSTOP)
        let_last(self.draw.random() * 2)
        self.portal.process.send_signal(signal.SIGCONT)

    def lock_the_database(self) -> None:
        with closing(sqlite3.connect(self.portal.data / "portal.sqlite3", timeout=20, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            let_last(self.draw.random() * 2)
            other.execute("ROLLBACK")

    def fill_the_disk(self) -> None:
        self.portal.limit_file_size(0)
        let_last(self.draw.random() * 2)
        self.portal.limit_file_size(resource.RLIM_INFINITY)


@pytest.fixture
def portal(tmp_path: Path) -> Iterator[OneMachinePortal]:
    portal = OneMachinePortal(tmp_path / "portal", DOKPLOY_PATIENCE_SECONDS=20).start()
    yield portal
    portal.close()


def test_under_random_faults_every_deployment_ends_and_nothing_is_doubled_lost_or_left(
    portal: OneMachinePortal, figures: Figures
) -> None:
    print(f"SEED={SEED}")
    figures.seeds = [SEED]
    theirs = portal.change_by_hand("project.create", name="theirs", description="somebody's")
    environment = theirs["environment"]["environmentId"]
    portal.change_by_hand("application.create", name="theirs", appName="theirs", environmentId=environment)
    before = foreign(portal)
    soak = Soak(portal, random.Random(SEED), figures)
    deadline = time.monotonic() + MINUTES * 60
    while len(soak.requested) < COUNT and time.monotonic() < deadline:
        soak.step()
    portal.reset()
    until(lambda: soak.under_way() == 0, ENDING_SECONDS)
    portal.env["SWEEPER_SECONDS"] = "0"  # no cleanup while leftovers are counted
    soak.stop()
    until(lambda: soak.under_way() == 0, ENDING_SECONDS)
    deployments = portal.rows("SELECT * FROM deployments_deployment")
    assert {deployment["id"] for deployment in deployments if deployment["via"] != "sweeper"} == set(soak.requested)
    figures.ended = len(deployments)
    for deployment in deployments:
        assert_same_everywhere(portal, deployment, figures)
        assert deployment["phase"] in ("completed", "rolling_back", "failed")
        assert "DEPLOYMENT_FAILED" not in str(deployment["error"]), deployment
    there = portal.dokploy()
    for stack in portal.rows("SELECT * FROM deployments_stack"):
        if stack["state"] == "gone":  # another stack may have its name
            assert stack["id"] not in str(there["projects"] + there["applications"]), stack
        else:
            assert_stack(portal, stack, objects(there, stack["name"]), stack["name"] in soak.touched, figures)
    known = [id for row in before for id in row.values() if isinstance(id, str)]
    left_by_hand = [row["name"] for row in there["services"] if row["name"].rpartition("-")[0] in soak.touched]
    assert_all_recorded(portal, there, figures, [*known, *left_by_hand])
    assert foreign(portal) == before
    key = (portal.data / "simulator-key").read_text()
    assert key not in portal.output.read_text() + str(portal.rows("SELECT message, data FROM deployments_event"))


def assert_stack(
    portal: OneMachinePortal, stack: dict[str, Any], found: dict[str, int], touched: bool, figures: Figures
) -> None:
    """Assert the objects of one stack: one each if live and untouched, at most one each if broken."""
    if touched:
        del found["service"]
    figures.duplicates += sum(count > 1 for count in found.values())
    if stack["state"] == "live" and touched:
        assert max(found.values()) <= 1, stack
    elif stack["state"] == "live":
        assert found == dict.fromkeys(found, 1), stack
        assert portal.router.get("/", headers={"Host": stack["host"]}).status_code == 200
    else:
        assert stack["state"] == "broken"
        assert max(found.values()) <= 1, stack
        query = "SELECT * FROM deployments_receipt WHERE stack_id = ? AND state != 'gone'"
        assert portal.rows(query, stack["id"]), stack


def foreign(portal: OneMachinePortal) -> list[dict[str, Any]]:
    there = portal.dokploy()
    return [row for kind in ("projects", "applications") for row in there[kind] if row["name"] == "theirs"]
