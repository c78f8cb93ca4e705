"""Two hundred deployments at once behind the proxy, while workers die or drain and Redis and PostgreSQL restart."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from websockets.exceptions import WebSocketException

from ..gates import socket
from ..processes import ROOT, Simulator, until
from ..services import PostgreSQL, Proxied, Redis
from .assertions import SEED_DATA, Figures

COUNT, SECONDS, WORKERS = 200, 300, 3
SEEN_SECONDS = 10  # pages show the end within this time


@pytest.fixture
def portal(tmp_path: Path, own_postgres: PostgreSQL, own_redis: Redis) -> Iterator[Proxied]:
    (tmp_path / "simulator").mkdir()
    simulator = Simulator(tmp_path / "simulator", "--pull", "0.02")
    simulator.do("settings.updateBuildsConcurrency", buildsConcurrency=4)
    portal = Proxied(tmp_path, simulator, own_postgres.url, own_redis.url, STACK_HEALTH_TIMEOUT_SECONDS=120)
    portal.env["RUNNER_SWEEP_SECONDS"] = "1"
    portal.start()
    subprocess.run(
        [sys.executable, "manage.py", "shell", "-v", "0", "-c", SEED_DATA], cwd=ROOT, env=portal.env, check=True
    )
    yield portal
    portal.close()
    simulator.close()


def test_two_hundred_simultaneous_deployments_all_end_whatever_is_killed(
    portal: Proxied, own_postgres: PostgreSQL, own_redis: Redis, figures: Figures
) -> None:
    seed = int(os.environ.get("SOAK_SEED") or random.randrange(10**6))
    figures.seeds.append(seed)
    chance = random.Random(seed)
    portal.simulator.application(portal.simulator.project("theirs")[1], name="theirs", appName="theirs")
    before = foreign_objects(portal)
    for _ in range(WORKERS):
        portal.work()
    names = {f"many-{number}": chance.random() < 0.15 for number in range(COUNT)}
    with ThreadPoolExecutor(20) as pool:
        ids = dict(zip(names, pool.map(lambda name: start(portal, name, names[name]), names), strict=True))
    watched = [ids[name] for name in chance.sample(sorted(ids), 5)]
    with ThreadPoolExecutor(2 * len(watched)) as pool:
        ends = [pool.submit(follow, portal, id) for id in watched]
        pages = [pool.submit(watch, portal, id) for id in watched]
        cause_faults(portal, own_postgres, own_redis, chance, figures)
        until(lambda: not running(own_postgres), SECONDS)
        for end, page in zip(ends, pages, strict=True):
            state, numbers = end.result(60)
            assert state["status"] != "in_progress"
            assert numbers == sorted(set(numbers)), "every event once, and in order"
            assert f'data-version="{state["version"]}" data-done' in page.result(SEEN_SECONDS)
    assert_invariants(portal, own_postgres, names, ids, figures)
    assert foreign_objects(portal) == before


def foreign_objects(portal: Proxied) -> list[dict[str, Any]]:
    there = portal.dokploy()
    return [row for kind in ("projects", "applications") for row in there[kind] if row["name"] == "theirs"]


def start(portal: Proxied, name: str, broken: bool) -> str:
    return portal.deploy(name, **({"template": "broken"} if broken else {}))


def follow(portal: Proxied, id: str) -> tuple[Any, list[int]]:
    """Follow the stream to its end, reconnecting whenever it breaks; return the last state and the event numbers."""
    numbers: list[int] = []
    state: Any = {"status": "in_progress"}
    deadline = time.monotonic() + SECONDS
    while state["status"] == "in_progress" and time.monotonic() < deadline:
        last = {"Last-Event-ID": str(numbers[-1])} if numbers else {}
        with suppress(httpx.TransportError, AssertionError):
            for event in portal.stream(id, **last):
                numbers.append(int(event["id"]))
                state = event["data"]
    return state, numbers


def watch(portal: Proxied, id: str) -> str:
    """Watch the page to its end, reconnecting whenever the socket breaks; return the last frame."""
    frame, deadline = "", time.monotonic() + SECONDS
    while "data-done" not in frame and (left := deadline - time.monotonic()) > 0:
        with suppress(OSError, WebSocketException), socket(portal, id) as page:
            frame = page.recv(timeout=left)
            while "data-done" not in frame:
                frame = page.recv(timeout=deadline - time.monotonic())
    return frame


def cause_faults(portal: Proxied, postgres: PostgreSQL, redis: Redis, chance: random.Random, figures: Figures) -> None:
    """Cause each fault once, in random order, whenever more deployments have ended or two seconds have passed."""

    def kill() -> None:
        worker = portal.workers.pop(chance.randrange(len(portal.workers)))
        worker.kill()
        worker.wait(10)
        figures.killed += 1
        portal.work()

    def drain() -> None:
        worker = portal.workers.pop(0)
        worker.terminate()
        assert worker.wait(15) == 0
        portal.work()

    def restart_redis() -> None:
        redis.stop()
        redis.start()

    acts = [kill, kill, kill, kill, drain, redis.flush, restart_redis, postgres.restart]
    chance.shuffle(acts)
    for act in acts:
        left = running(postgres)
        with suppress(AssertionError):
            until(lambda left=left: running(postgres) <= left - 5, 2)
        act()


def running(postgres: PostgreSQL) -> int:
    with suppress(psycopg.OperationalError):  # it may be restarting
        return int(postgres.ask("SELECT count(*) FROM deployments_deployment WHERE status = 'in_progress'")[0][0])
    return COUNT


def assert_invariants(
    portal: Proxied, postgres: PostgreSQL, names: dict[str, bool], ids: dict[str, str], figures: Figures
) -> None:
    """Assert the invariants by counting."""
    rows = dict(postgres.ask("SELECT id, status FROM deployments_deployment"))
    why = dict(postgres.ask("SELECT id, error->>'code' FROM deployments_deployment"))
    figures.ended += len(rows)
    assert sorted(rows) == sorted(ids.values())
    there = portal.dokploy()
    for name, broken in names.items():
        lives = rows[ids[name]] == "success"
        assert lives is not broken or why[ids[name]] == "TOO_MANY_CRASHES", (name, why[ids[name]])
        found = {
            "projects": sum(row["name"] == name for row in there["projects"]),
            "applications": sum(row["name"] == name for row in there["applications"]),
            "domains": sum(row["host"] == f"{name}.apps.test" for row in there["domains"]),
            "services": sum(row["name"].rpartition("-")[0] == name for row in there["services"]),
        }
        figures.duplicates += sum(count > lives for count in found.values())
        assert found == dict.fromkeys(found, int(lives)), name
        if lives:
            assert portal.router.get("/", headers={"Host": f"{name}.apps.test"}).status_code == 200
    receipts = dict(postgres.ask("SELECT external_id, kind FROM deployments_receipt WHERE state <> 'gone'"))
    made = {row[f"{kind}Id"] for kind in ("project", "application", "domain") for row in there[f"{kind}s"]}
    made -= {id for row in foreign_objects(portal) for id in row.values() if isinstance(id, str)}
    figures.orphans += len(made - receipts.keys())
    gaps = postgres.ask(
        "SELECT run.id FROM deployments_deployment run "
        "LEFT JOIN deployments_event event ON event.deployment_id = run.id "
        "GROUP BY run.id HAVING count(event.seq) <> run.version OR max(event.seq) <> run.version"
    )
    figures.missing += len(gaps)
    assert (made - receipts.keys(), gaps) == (set(), [])
    for name in list(ids)[:5]:
        state = portal.status(ids[name])
        assert state["status"] == rows[ids[name]]
        page = portal.http.get(f"/deployments/{ids[name]}").text
        assert f'data-version="{state["version"]}" data-done' in page
    said = portal.output.read_text()
    assert portal.env["DOKPLOY_API_KEY"] not in said
