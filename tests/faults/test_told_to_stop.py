"""A worker that is told to stop while what it stands on is away ends in time, and another goes on with its run."""

import time

import pytest

from ..integration.test_live import held
from ..processes import until
from ..services import PostgreSQL, Redis
from .assertions import RESUME_SECONDS, Apart, Figures, is_heard, is_one_of_each, taken_up

STOP_SECONDS, AT_ONCE_SECONDS = 15, 2


@pytest.fixture
def portal(scaled_out_alone: Apart) -> Apart:
    return scaled_out_alone


def test_without_its_database_a_worker_that_is_told_to_stop_ends_in_time(
    portal: Apart, own_postgres: PostgreSQL, own_redis: Redis, figures: Figures
) -> None:
    worker = portal.work()
    with held(portal, "job"):
        id = portal.deploy("stopped")
        portal.wait_at("job")
        portal.work()
        is_heard(own_redis, 2)
        own_postgres.stop()
        worker.terminate()
        assert worker.wait(STOP_SECONDS) == 0
        own_postgres.start()
    assert portal.finished(id, RESUME_SECONDS + 30)["phase"] == "completed"
    is_one_of_each(portal, id, figures)


def test_with_redis_frozen_a_worker_that_is_told_to_stop_ends_in_time_and_another_goes_on_at_once(
    portal: Apart, own_redis: Redis, figures: Figures
) -> None:
    worker = portal.work()
    with held(portal, "job"):
        id = portal.deploy("stopped")
        portal.wait_at("job")
        until(lambda: portal.status(id)["phase"] == "deploying")
        portal.work()
        is_heard(own_redis, 2)
        own_redis.freeze()
        worker.terminate()
        assert worker.wait(STOP_SECONDS) == 0
        ended = time.time()
        assert taken_up(portal, id) - ended < AT_ONCE_SECONDS
    assert portal.finished(id)["phase"] == "completed"
    is_one_of_each(portal, id, figures)
