"""PostgreSQL restarts, goes, and is full: runs wait and go on, people are told so, and no success is a false one."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress

import httpx
import psycopg
import pytest

from deployments.worker.claimed_deployment import SELF_STOP_SECONDS

from ..integration.test_live import held, socket
from ..processes import until
from ..services import PostgreSQL
from .assertions import RESUME_SECONDS, Apart, Figures, is_one_of_each, lasts, shows

ANSWER_SECONDS = 20  # a request waits ten for a connection
PLACES = ["project.create", "application.create:answer", "domain.create", "job", "container"]


@pytest.fixture
def portal(scaled_out_alone: Apart) -> Apart:
    return scaled_out_alone


def is_refused(portal: Apart, id: str) -> None:
    """Who asks for something now is told that it does not work, in time, and not how the portal is made."""
    asks = [("GET", f"/deployments/{id}"), ("GET", f"/api/deployments/{id}"), ("POST", "/api/deploy")]

    def ask(method: str, path: str) -> httpx.Response:
        body = {"name": "refused"} if method == "POST" else None
        return httpx.request(method, f"{portal.url}{path}", json=body, timeout=ANSWER_SECONDS)

    with ThreadPoolExecutor(len(asks)) as pool:
        page, *answers = pool.map(ask, *zip(*asks, strict=True))
    assert page.status_code == 500
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "PAUSED")
    for answer in (page, *answers):
        assert "Try again in a minute." in answer.text
        assert "Traceback" not in answer.text


def is_over(portal: Apart, id: str, figures: Figures) -> None:
    """The run has worked, people get what they ask for again, and what was refused has left nothing."""
    portal.http.get(f"/deployments/{id}").raise_for_status()
    assert portal.finished(portal.deploy("afterwards"), RESUME_SECONDS)["phase"] == "completed"
    assert portal.finished(id, RESUME_SECONDS + 30)["phase"] == "completed"
    is_one_of_each(portal, id, figures)
    assert portal.rows("SELECT 1 FROM deployments_stack WHERE name = 'refused'") == []


def test_a_run_outlives_a_database_that_restarts_in_every_phase(
    portal: Apart, own_postgres: PostgreSQL, figures: Figures
) -> None:
    portal.work()
    with held(portal, *PLACES):
        id = portal.deploy("restarted")
        for place in PLACES:
            if place == "container":
                until(lambda: portal.status(id)["phase"] == "verifying_health", 20)
            else:
                portal.wait_at(place)
            own_postgres.restart()
            portal.open_gate(place)
    is_over(portal, id, figures)


@pytest.mark.parametrize("seconds", [5, SELF_STOP_SECONDS + 12])  # an attempt to connect may go on for ten
@pytest.mark.parametrize("place", ["application.create", "job"])
def test_a_run_goes_on_after_a_database_was_away_and_nothing_is_done_twice(
    portal: Apart, own_postgres: PostgreSQL, seconds: float, place: str, figures: Figures
) -> None:
    portal.work()
    with held(portal, place), ExitStack() as pages:
        id = portal.deploy("away")
        portal.wait_at(place)
        page = pages.enter_context(socket(portal, id))
        shows(page, "of 7")
        own_postgres.stop()
        since = time.monotonic()
        portal.open_gate(place)
        if seconds > ANSWER_SECONDS:
            is_refused(portal, id)
        lasts(since + seconds - time.monotonic())
        own_postgres.start()
        shows(page, "data-done", RESUME_SECONDS + 30)
    is_over(portal, id, figures)
    claims = portal.rows("SELECT lease_token FROM deployments_deployment WHERE id = ?", id)[0]["lease_token"]
    assert (claims > 1) == (seconds > SELF_STOP_SECONDS), "only one that was away so long is taken up anew"


def test_a_run_waits_for_a_database_that_takes_no_more_connections(
    portal: Apart, own_postgres: PostgreSQL, figures: Figures
) -> None:
    portal.work()
    with held(portal, "application.create"):
        id = portal.deploy("crowded-out")
        portal.wait_at("application.create")
        with all_connections(own_postgres) as mine:
            run = "SELECT status, phase, version FROM deployments_deployment"
            before = mine.execute(run).fetchall()
            portal.open_gate("application.create")
            is_refused(portal, id)
            assert mine.execute(run).fetchall() == before
            assert before[0][0] == "in_progress"
    is_over(portal, id, figures)


@contextmanager
def all_connections(postgres: PostgreSQL) -> Iterator[psycopg.Connection]:
    """Takes every connection that there is, everybody else's too; one of them."""
    others = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE backend_type = 'client backend' AND NOT pid = ANY(%s)"
    )
    with ExitStack() as held:
        taken = [held.enter_context(psycopg.connect(postgres.url, autocommit=True))]

        def fill() -> bool:
            with suppress(psycopg.OperationalError):
                while True:
                    taken.append(held.enter_context(psycopg.connect(postgres.url, autocommit=True)))
            return not taken[0].execute(others, [[mine.info.backend_pid for mine in taken]]).fetchall()

        until(fill, 20)
        yield taken[0]
