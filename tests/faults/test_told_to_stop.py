"""A worker that is told to stop while what it stands on is away ends in time, and another goes on with its run."""

import time

from ..machines import PostgreSQL, Redis
from ..processes import ScaledOut, until
from ..test_live import held
from .conftest import Figures
from .look import RESUME_SECONDS, is_heard, is_one_of_each, rows

STOP_SECONDS, AT_ONCE_SECONDS = 15, 2


def test_without_its_database_a_worker_that_is_told_to_stop_ends_in_time(
    scaled_out: ScaledOut, own_postgres: PostgreSQL, own_redis: Redis, figures: Figures
) -> None:
    worker = scaled_out.work()
    with held(scaled_out, "job"):
        id = scaled_out.deploy("stopped")
        scaled_out.wait_at("job")
        scaled_out.work()
        is_heard(own_redis, 2)
        own_postgres.stop()
        worker.terminate()
        assert worker.wait(STOP_SECONDS) == 0
        own_postgres.start()
    assert scaled_out.finished(id, RESUME_SECONDS + 30)["phase"] == "completed"
    is_one_of_each(scaled_out, id, figures)


def test_with_redis_frozen_a_worker_that_is_told_to_stop_ends_in_time_and_another_goes_on_at_once(
    scaled_out: ScaledOut, own_redis: Redis, figures: Figures
) -> None:
    worker = scaled_out.work()
    with held(scaled_out, "job"):
        id = scaled_out.deploy("stopped")
        scaled_out.wait_at("job")
        until(lambda: scaled_out.status(id)["phase"] == "deploying")
        scaled_out.work()
        is_heard(own_redis, 2)
        own_redis.freeze()
        worker.terminate()
        assert worker.wait(STOP_SECONDS) == 0
        ended = time.time()
        note = "SELECT extract(epoch FROM at) AS at FROM deployments_event WHERE deployment_id = %s AND kind = 'note'"
        taken_up = until(lambda: rows(scaled_out, note, id), RESUME_SECONDS)
        assert float(taken_up[0]["at"]) - ended < AT_ONCE_SECONDS
    assert scaled_out.finished(id)["phase"] == "completed"
    is_one_of_each(scaled_out, id, figures)
