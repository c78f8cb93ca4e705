"""PostgreSQL restarts, stops or refuses connections: deployments wait, clients are told, no success is false."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress

import httpx
import psycopg
import pytest

from deployments.worker.claimed_deployment import SELF_STOP_SECONDS

from ..gates import held, socket
from ..processes import until
from ..services import PostgreSQL
from .assertions import RESUME_SECONDS, Figures, ScaledOutPortal, assert_one_of_each, let_last, wait_for_frame

ANSWER_SECONDS = 20  # a request waits for a connection for up to ten seconds
PLACES = ["project.create", "application.create:answer", "domain.create", "job", "container"]


@pytest.fixture
def portal(scaled_out_alone: ScaledOutPortal) -> ScaledOutPortal:
    return scaled_out_alone


def assert_refused(portal: ScaledOutPortal, id: str) -> None:
    """Assert that requests fail in time, with a sentence that reveals no internals."""
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


def assert_over(portal: ScaledOutPortal, id: str, figures: Figures) -> None:
    """Assert that the deployment succeeded, requests work again, and refused requests have left nothing."""
    portal.http.get(f"/deployments/{id}").raise_for_status()
    assert portal.finished(portal.deploy("afterwards"), RESUME_SECONDS)["phase"] == "completed"
    assert portal.finished(id, RESUME_SECONDS + 30)["phase"] == "completed"
    assert_one_of_each(portal, id, figures)
    assert portal.rows("SELECT 1 FROM deployments_stack WHERE name = 'refused'") == []


def test_a_deployment_survives_a_database_restart_in_every_phase(
    portal: ScaledOutPortal, own_postgres: PostgreSQL, figures: Figures
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
    assert_over(portal, id, figures)


@pytest.mark.parametrize("seconds", [5, SELF_STOP_SECONDS + 12])  # connecting may take ten seconds
@pytest.mark.parametrize("place", ["application.create", "job"])
def test_a_deployment_resumes_after_a_database_outage_and_does_nothing_twice(
    portal: ScaledOutPortal, own_postgres: PostgreSQL, seconds: float, place: str, figures: Figures
) -> None:
    portal.work()
    with held(portal, place), ExitStack() as pages:
        id = portal.deploy("away")
        portal.wait_at(place)
        page = pages.enter_context(socket(portal, id))
        wait_for_frame(page, "of 7")
        own_postgres.stop()
        since = time.monotonic()
        portal.open_gate(place)
        if seconds > ANSWER_SECONDS:
            assert_refused(portal, id)
        let_last(since + seconds - time.monotonic())
        own_postgres.start()
        wait_for_frame(page, "data-done", RESUME_SECONDS + 30)
    assert_over(portal, id, figures)
    claims = portal.rows("SELECT lease_token FROM deployments_deployment WHERE id = ?", id)[0]["lease_token"]
    assert (claims > 1) == (seconds > SELF_STOP_SECONDS), (
        "the deployment is claimed again only after an outage that ends its worker"
    )


def test_a_deployment_waits_for_a_database_without_free_connections(
    portal: ScaledOutPortal, own_postgres: PostgreSQL, figures: Figures
) -> None:
    portal.work()
    with held(portal, "application.create"):
        id = portal.deploy("crowded-out")
        portal.wait_at("application.create")
        with all_connections(own_postgres) as mine:
            deployment = "SELECT status, phase, version FROM deployments_deployment"
            before = mine.execute(deployment).fetchall()
            portal.open_gate("application.create")
            assert_refused(portal, id)
            assert mine.execute(deployment).fetchall() == before
            assert before[0][0] == "in_progress"
    assert_over(portal, id, figures)


@contextmanager
def all_connections(postgres: PostgreSQL) -> Iterator[psycopg.Connection]:
    """Take every connection that PostgreSQL allows; yield one of them."""
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
