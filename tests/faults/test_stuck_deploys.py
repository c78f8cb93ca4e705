"""A deploy that Dokploy calls `running` for ever: it fails in time, says so, and loses nobody's container."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from deployments.engine import failures
from deployments.engine.deploy import SETTLE_SECONDS

from ..integration.test_live import held
from ..processes import until
from ..users import operator
from .assertions import Figures, Watched, is_as_it_should_be, is_told_alike, objects

LIMIT = 10  # seconds for one deploy
ENTRY = failures.BY_CODE["TIMEOUT"]


@pytest.fixture
def portal(tmp_path: Path) -> Iterator[Watched]:
    portal = Watched(tmp_path / "portal", DOKPLOY_DEPLOY_SECONDS=LIMIT, SWEEPER_SECONDS=1).start()
    yield portal
    portal.close()


def gather(portal: Watched, gate: str, count: int) -> None:
    until(lambda: portal.switches.get("gates").json()[gate] == count, 30)


def failed(portal: Watched, name: str, seconds: float, figures: Figures) -> dict[str, Any]:
    run = portal.ended(name, seconds)
    assert run["status"] == "failure"
    is_told_alike(portal, run, figures)
    figures.ended += 1
    return run


def completed(portal: Watched, name: str, expected: int, figures: Figures) -> dict[str, Any]:
    run = portal.ended(name)
    assert run["phase"] == "completed", run["message"]
    is_told_alike(portal, run, figures)
    is_as_it_should_be(portal, [name], expected, figures)
    figures.ended += 1
    return run


def says_that_it_hangs(portal: Watched, run: dict[str, Any]) -> None:
    """To the person that Dokploy still says “running”, to the operator how it is ended."""
    error = portal.status(run["id"])["error"]
    assert (error["phase"], error["code"]) == ("deploying", "TIMEOUT")
    assert error["message"] == f"After {LIMIT} s Dokploy still says “running” of it."
    page = unescape(portal.person.get(f"/deployments/{run['id']}").text)
    assert error["message"] in page
    assert ENTRY.advice[0] in page
    with closing(operator(portal)) as other:
        assert ENTRY.operator in unescape(other.get(f"/deployments/{run['id']}").text)


def is_left_by_name(portal: Watched, run: dict[str, Any]) -> None:
    """The application stands as it must while its job runs; it and its project are named, and their receipts say so."""
    name = next(row["name"] for row in portal.rows("SELECT * FROM deployments_stack") if row["id"] == run["stack_id"])
    assert objects(portal.dokploy(), name) == {"project": 1, "application": 1, "domain": 0, "service": 0}
    assert "Left at Dokploy: the application (Dokploy still says “running”" in run["message"]
    query = "SELECT kind, external_id, why FROM deployments_receipt WHERE stack_id = ? AND state = 'left' ORDER BY id"
    left = portal.rows(query, run["stack_id"])
    assert [receipt["kind"] for receipt in left] == ["project", "application"]
    assert all(receipt["external_id"] and receipt["why"] for receipt in left)


def pause_is_over(portal: Watched, run: dict[str, Any]) -> None:
    """As if it had failed an hour ago: the sweeper may try."""
    with closing(sqlite3.connect(portal.data / "portal.sqlite3", timeout=20)) as database, database:
        earlier = "UPDATE deployments_deployment SET completed_at = datetime(completed_at, '-1 hour') WHERE id = ?"
        database.execute(earlier, (run["id"],))


def images(portal: Watched) -> set[str]:
    """What is set at Dokploy, and what runs there; brought back it is pinned by its digest."""
    there = portal.dokploy()
    found = [row["dockerImage"] for row in there["applications"]] + [row["image"] for row in there["services"]]
    return {image.partition("@")[0] for image in found}


def test_a_deploy_that_stays_running_fails_in_time_and_what_it_leaves_goes_once_it_has_ended(
    portal: Watched, figures: Figures
) -> None:
    portal.by_hand("settings.updateBuildsConcurrency", buildsConcurrency=2)
    with held(portal, "pull"):
        for name in ("hangs", "hangs-too"):
            portal.ask(name)
        gather(portal, "pull", 2)
        portal.ask("behind")  # it waits for ever, and says why not
        run = failed(portal, "behind", LIMIT + 30, figures)
        assert f"After {LIMIT} s it still waits in Dokploy's queue." in run["error"]
        is_as_it_should_be(portal, ["behind"], 0, figures)
        hung = [failed(portal, name, LIMIT + SETTLE_SECONDS + 60, figures) for name in ("hangs", "hangs-too")]
        for run in hung:
            says_that_it_hangs(portal, run)
            is_left_by_name(portal, run)
    until(lambda: not portal.dokploy()["queue"])
    assert objects(portal.dokploy(), "hangs")["service"] == 1  # the container that deleting would have left
    portal.ask_removal("hangs")
    completed(portal, "hangs", 0, figures)
    pause_is_over(portal, hung[1])
    until(lambda: portal.run_of("hangs-too")["kind"] == "remove", 20)
    assert completed(portal, "hangs-too", 0, figures)["via"] == "sweeper"
    portal.ask("behind")
    completed(portal, "behind", 1, figures)


def ends(portal: Watched) -> None:
    """What hung goes on, and behind it the former settings."""
    portal.open_gate("job")
    until(lambda: not portal.dokploy()["queue"], 20)


def is_cancelled(portal: Watched) -> None:
    """What operators are told to do."""
    portal.switches.post("restart").raise_for_status()
    assert not portal.dokploy()["queue"]


@pytest.mark.parametrize("over", [ends, is_cancelled])
def test_a_redeploy_that_stays_running_never_costs_the_application_that_ran(
    portal: Watched, over: Callable[[Watched], None], figures: Figures
) -> None:
    portal.ask("former", template="web-page")
    completed(portal, "former", 1, figures)
    [ran] = images(portal)
    with held(portal, "job"):
        portal.ask("former", template="stack")
        gather(portal, "job", 1)
        run = failed(portal, "former", 2 * LIMIT + 30, figures)
        says_that_it_hangs(portal, run)
        assert f"the former version (After {LIMIT} s it still waits in Dokploy's queue.)" in run["message"]
        is_as_it_should_be(portal, ["former"], 1, figures)
        over(portal)
    assert portal.router.get("/", headers={"Host": "former.localhost"}).status_code == 200
    is_as_it_should_be(portal, ["former"], 1, figures)
    assert images(portal) == {ran}
    portal.ask("former", template="stack")
    completed(portal, "former", 1, figures)
    assert ran not in images(portal)
