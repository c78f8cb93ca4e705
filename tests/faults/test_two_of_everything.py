"""Clients or workers act at the same moment: one succeeds, the others are refused or get the same answer."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from ..gates import held
from ..processes import ROOT, Portal, client, until
from .assertions import Figures, OneMachinePortal, ScaledOutPortal, assert_objects, assert_same_everywhere, objects

RACES, SWEEPERS = 12, 3
ROUNDS = 300
CREATE_DEPLOYMENTS = f"""
from deployments import identity
from deployments.models import Deployment, Stack, Template
owner, template, names = identity.open_user(), Template.objects.first(), [f"race-{{n:03}}" for n in range({ROUNDS})]
stacks = [Stack(name=name, owner=owner, template=template, host=name, url="http://" + name) for name in names]
Stack.objects.bulk_create(stacks)
deployments = [Deployment(stack=stack, template=template, requested_by=owner, version=1) for stack in stacks]
Deployment.objects.bulk_create(deployments)
"""


@pytest.fixture
def portal(tmp_path: Path) -> Iterator[OneMachinePortal]:
    portal = OneMachinePortal(tmp_path / "portal").start()
    yield portal
    portal.close()


def test_a_cancel_that_races_the_end_takes_effect_or_is_refused(portal: OneMachinePortal, figures: Figures) -> None:
    names = [f"race-{number}" for number in range(RACES)]
    with held(portal, "container"):
        for name in names:
            portal.request(name)
        for name in names:
            until(lambda name=name: portal.newest_deployment(name)["phase"] == "verifying_health", 30)
    ids = {name: portal.newest_deployment(name)["id"] for name in names}

    def cancel(name: str) -> int:
        return httpx.post(f"{portal.url}/api/deployments/{ids[name]}/cancel", headers=portal.token).status_code

    with ThreadPoolExecutor(RACES) as pool:
        answers = dict(zip(names, pool.map(cancel, names), strict=True))
    for name in names:
        deployment = portal.wait_until_ended(name)
        cancelled = deployment["status"] == "failure" and "CANCELLED" in deployment["error"]
        assert answers[name] == (202 if cancelled else 409)
        assert cancelled or deployment["phase"] == "completed"
        assert_same_everywhere(portal, deployment, figures)
        assert_objects(portal, [name], int(not cancelled), figures)
        figures.ended += 1


def test_simultaneous_requests_for_one_name_create_one_stack_for_one_user(
    portal: OneMachinePortal, figures: Figures
) -> None:
    def ask(number: int) -> int:
        headers = {} if number % 2 else portal.token  # an anonymous user, and the demo user
        return clients[number].post("/api/deploy", json={"name": "wanted"}, headers=headers).status_code

    with ExitStack() as open_ones:
        clients = [open_ones.enter_context(client(portal.url)) for _ in range(RACES)]
        with held(portal, "project.all"), ThreadPoolExecutor(RACES) as pool:  # a request after the end would redeploy
            answers = sorted(pool.map(ask, range(RACES)))
    assert answers == [202] + [409] * (RACES - 1)
    assert portal.wait_until_ended("wanted")["phase"] == "completed"
    assert objects(portal.dokploy(), "wanted") == dict.fromkeys(("project", "application", "domain", "service"), 1)
    assert len(portal.rows("SELECT id FROM deployments_deployment")) == 1
    figures.ended += 1


def test_several_sweepers_request_one_removal_of_leftovers(scaled_out: ScaledOutPortal, figures: Figures) -> None:
    scaled_out.env["SWEEPER_SECONDS"] = "0.1"
    scaled_out.turn(pull_error="no space left on device")
    scaled_out.fault("application.delete", "unauthorized", times=None)
    for _ in range(SWEEPERS):
        scaled_out.work()
    id = scaled_out.deploy("left")
    assert scaled_out.finished(id, 60)["status"] == "failure"
    assert len(scaled_out.dokploy()["applications"]) == 1
    scaled_out.switches.delete("faults")
    scaled_out.rows(
        "UPDATE deployments_deployment SET completed_at = completed_at - interval '1 hour'"
    )  # the pause before the sweeper tries again is over
    until(lambda: scaled_out.rows("SELECT 1 FROM deployments_stack WHERE state = 'gone'"), 30)
    removals = scaled_out.rows("SELECT via, status FROM deployments_deployment WHERE kind = 'remove'")
    assert removals == [{"via": "sweeper", "status": "success"}]
    there = scaled_out.dokploy()
    assert [there[kind] for kind in ("projects", "applications", "domains", "services")] == [[]] * 4
    figures.ended += 2


def claims_of_three_workers(env: dict[str, str]) -> list[list[str]]:
    """Let three processes claim ROUNDS deployments at once; return the ids that each got."""

    def python(*arguments: str, **more: Any) -> Any:
        return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=env, text=True, **more)

    assert python("manage.py", "setup").wait(60) == 0
    assert python("manage.py", "shell", "-v", "0", "-c", CREATE_DEPLOYMENTS).wait(60) == 0
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    workers = [python("-m", "tests.faults.claimer", **pipes) for _ in range(3)]
    for worker in workers:
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    first = [worker.stdout.readline().strip() for worker in workers]
    return [[id, *worker.communicate("go\n", 60)[0].split()] for id, worker in zip(first, workers, strict=True)]


def assert_claimed_once(claims: list[list[str]]) -> None:
    got = [id for worker in claims for id in worker]
    assert len(got) == ROUNDS
    assert len(set(got)) == ROUNDS
    assert all(claims), "each worker must have claimed a deployment, or there was no race"


def test_each_deployment_is_claimed_once_on_sqlite(tmp_path: Path) -> None:
    portal = Portal(tmp_path, PORTAL_OPEN_QUOTA=1000, PORTAL_QUOTA=1000)
    assert_claimed_once(claims_of_three_workers(portal.env))
    portal.close()


def test_each_deployment_is_claimed_once_on_postgresql(tmp_path: Path, postgres: str) -> None:
    portal = Portal(tmp_path, DATABASE_URL=postgres, PORTAL_OPEN_QUOTA=1000, PORTAL_QUOTA=1000)
    assert_claimed_once(claims_of_three_workers(portal.env))
    portal.close()
