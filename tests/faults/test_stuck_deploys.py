"""Dokploy reports a deploy as running without end: the deployment fails in time, says why, and loses no container."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from deployments.engine import failures
from deployments.engine.resources.application import SETTLE_SECONDS

from ..gates import held
from ..processes import until
from ..users import operator
from .assertions import Figures, OneMachinePortal, assert_objects, assert_same_everywhere, objects

LIMIT = 10  # seconds for one deploy
IN_QUEUE = f"The deployment did not end within {LIMIT} s. It is still waiting in Dokploy's queue."
ENTRY = failures.BY_CODE["TIMEOUT"]


@pytest.fixture
def portal(tmp_path: Path) -> Iterator[OneMachinePortal]:
    portal = OneMachinePortal(tmp_path / "portal", DOKPLOY_DEPLOY_SECONDS=LIMIT, SWEEPER_SECONDS=1).start()
    yield portal
    portal.close()


def wait_until_gathered(portal: OneMachinePortal, gate: str, count: int) -> None:
    until(lambda: portal.switches.get("gates").json()[gate] == count, 30)


def failed(portal: OneMachinePortal, name: str, seconds: float, figures: Figures) -> dict[str, Any]:
    deployment = portal.wait_until_ended(name, seconds)
    assert deployment["status"] == "failure"
    assert_same_everywhere(portal, deployment, figures)
    figures.ended += 1
    return deployment


def completed(portal: OneMachinePortal, name: str, expected: int, figures: Figures) -> dict[str, Any]:
    deployment = portal.wait_until_ended(name)
    assert deployment["phase"] == "completed", deployment["message"]
    assert_same_everywhere(portal, deployment, figures)
    assert_objects(portal, [name], expected, figures)
    figures.ended += 1
    return deployment


def assert_tells_that_it_hangs(portal: OneMachinePortal, deployment: dict[str, Any]) -> None:
    """Assert that the error names the state “running”, and that the page tells how to end it."""
    error = portal.status(deployment["id"])["error"]
    assert (error["phase"], error["code"]) == ("deploying", "TIMEOUT")
    assert error["message"] == f"The deployment did not end within {LIMIT} s. Dokploy still reports it as “running”."
    page = unescape(portal.user.get(f"/deployments/{deployment['id']}").text)
    assert error["message"] in page
    assert ENTRY.advice[0] in page
    with closing(operator(portal)) as other:
        assert ENTRY.operator in unescape(other.get(f"/deployments/{deployment['id']}").text)


def assert_named_as_left(portal: OneMachinePortal, deployment: dict[str, Any]) -> None:
    """Assert that the application stays while its job runs, and that it and its project are named as left."""
    name = next(
        row["name"] for row in portal.rows("SELECT * FROM deployments_stack") if row["id"] == deployment["stack_id"]
    )
    assert objects(portal.dokploy(), name) == {"project": 1, "application": 1, "domain": 0, "service": 0}
    assert "Left at Dokploy: the application (Dokploy still reports a running deployment" in deployment["message"]
    query = "SELECT kind, external_id, why FROM deployments_receipt WHERE stack_id = ? AND state = 'left' ORDER BY id"
    left = portal.rows(query, deployment["stack_id"])
    assert [receipt["kind"] for receipt in left] == ["project", "application"]
    assert all(receipt["external_id"] and receipt["why"] for receipt in left)


def end_pause(portal: OneMachinePortal, deployment: dict[str, Any]) -> None:
    """Make the failed deployment an hour old, so that the sweeper tries again."""
    with closing(sqlite3.connect(portal.data / "portal.sqlite3", timeout=20)) as database, database:
        earlier = "UPDATE deployments_deployment SET completed_at = datetime(completed_at, '-1 hour') WHERE id = ?"
        database.execute(earlier, (deployment["id"],))


def images(portal: OneMachinePortal) -> set[str]:
    """Return the images that Dokploy has configured and runs, without the digest of a restored one."""
    there = portal.dokploy()
    found = [row["dockerImage"] for row in there["applications"]] + [row["image"] for row in there["services"]]
    return {image.partition("@")[0] for image in found}


def test_a_deploy_that_stays_running_fails_in_time_and_its_leftovers_are_removed_after_it_ends(
    portal: OneMachinePortal, figures: Figures
) -> None:
    portal.change_by_hand("settings.updateBuildsConcurrency", buildsConcurrency=2)
    with held(portal, "pull"):
        for name in ("hangs", "hangs-too"):
            portal.request(name)
        wait_until_gathered(portal, "pull", 2)
        portal.request("behind")  # it waits in the queue behind the hanging deploy
        deployment = failed(portal, "behind", LIMIT + 30, figures)
        assert IN_QUEUE in deployment["error"]
        assert_objects(portal, ["behind"], 0, figures)
        hung = [failed(portal, name, LIMIT + SETTLE_SECONDS + 60, figures) for name in ("hangs", "hangs-too")]
        for deployment in hung:
            assert_tells_that_it_hangs(portal, deployment)
            assert_named_as_left(portal, deployment)
    until(lambda: not portal.dokploy()["queue"])
    # Deleting the application earlier would have left this container behind.
    assert objects(portal.dokploy(), "hangs")["service"] == 1
    portal.request_removal("hangs")
    completed(portal, "hangs", 0, figures)
    end_pause(portal, hung[1])
    until(lambda: portal.newest_deployment("hangs-too")["kind"] == "remove", 20)
    assert completed(portal, "hangs-too", 0, figures)["via"] == "sweeper"
    portal.request("behind")
    completed(portal, "behind", 1, figures)


def end_deploys(portal: OneMachinePortal) -> None:
    """Let the hanging deploy end, and then the queued deploy of the previous settings."""
    portal.open_gate("job")
    until(lambda: not portal.dokploy()["queue"], 20)


def restart_dokploy(portal: OneMachinePortal) -> None:
    """Restart Dokploy, as the page tells operators to do."""
    portal.switches.post("restart").raise_for_status()
    assert not portal.dokploy()["queue"]


@pytest.mark.parametrize("resolve", [end_deploys, restart_dokploy])
def test_a_redeploy_that_stays_running_keeps_the_former_application(
    portal: OneMachinePortal, resolve: Callable[[OneMachinePortal], None], figures: Figures
) -> None:
    portal.request("former", template="web-page")
    completed(portal, "former", 1, figures)
    [ran] = images(portal)
    with held(portal, "job"):
        portal.request("former", template="stack")
        wait_until_gathered(portal, "job", 1)
        deployment = failed(portal, "former", 2 * LIMIT + 30, figures)
        assert_tells_that_it_hangs(portal, deployment)
        assert f"the previous version ({IN_QUEUE})" in deployment["message"]
        assert_objects(portal, ["former"], 1, figures)
        resolve(portal)
    assert portal.router.get("/", headers={"Host": "former.localhost"}).status_code == 200
    assert_objects(portal, ["former"], 1, figures)
    assert images(portal) == {ran}
    portal.request("former", template="stack")
    completed(portal, "former", 1, figures)
    assert ran not in images(portal)
