"""A worker receives SIGTERM while PostgreSQL or Redis is away: it ends in time, and another resumes its deployment."""

import time

import pytest

from ..gates import held
from ..processes import until
from ..services import PostgreSQL, Redis
from .assertions import (
    RESUME_SECONDS,
    Figures,
    ScaledOutPortal,
    assert_one_of_each,
    wait_for_subscribers,
    wait_until_resumed,
)

STOP_SECONDS, AT_ONCE_SECONDS = 15, 2


@pytest.fixture
def portal(scaled_out_alone: ScaledOutPortal) -> ScaledOutPortal:
    return scaled_out_alone


def test_sigterm_ends_a_worker_in_time_while_the_database_is_away(
    portal: ScaledOutPortal, own_postgres: PostgreSQL, own_redis: Redis, figures: Figures
) -> None:
    worker = portal.work()
    with held(portal, "job"):
        id = portal.deploy("stopped")
        portal.wait_at("job")
        portal.work()
        wait_for_subscribers(own_redis, 2)
        own_postgres.stop()
        worker.terminate()
        assert worker.wait(STOP_SECONDS) == 0
        own_postgres.start()
    assert portal.finished(id, RESUME_SECONDS + 30)["phase"] == "completed"
    assert_one_of_each(portal, id, figures)


def test_sigterm_ends_a_worker_in_time_while_redis_is_frozen_and_another_resumes_at_once(
    portal: ScaledOutPortal, own_redis: Redis, figures: Figures
) -> None:
    worker = portal.work()
    with held(portal, "job"):
        id = portal.deploy("stopped")
        portal.wait_at("job")
        until(lambda: portal.status(id)["phase"] == "deploying")
        portal.work()
        wait_for_subscribers(own_redis, 2)
        own_redis.freeze()
        worker.terminate()
        assert worker.wait(STOP_SECONDS) == 0
        ended = time.time()
        assert wait_until_resumed(portal, id) - ended < AT_ONCE_SECONDS
    assert portal.finished(id)["phase"] == "completed"
    assert_one_of_each(portal, id, figures)
