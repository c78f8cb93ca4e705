"""Repeated and malformed channel messages neither double nor noticeably delay a deployment."""

import signal

import msgpack
import pytest

from deployments.realtime.pubsub import RUNNER_CHANNEL

from ..gates import GATES, held, socket
from ..processes import until
from ..services import Redis
from .assertions import (
    Figures,
    ScaledOutPortal,
    assert_one_of_each,
    assert_updated_by_messages,
    group_key,
    wait_for_frame,
    wait_for_subscribers,
)

COUNT, WAKES, WORKERS = 12, 200, 3
TEN_MEGABYTES = "x" * 10_000_000
POISONS = {
    "no type": msgpack.packb({"topic": 7}),
    "unknown type": msgpack.packb({"type": "sleep", "topic": "run.unknown"}),
    "a type that is no text": msgpack.packb({"type": 7, "topic": ["run"]}),
    "no mapping": msgpack.packb(["wake", "changed"]),
    "nothing": msgpack.packb(None),
    "ten megabytes": msgpack.packb({"type": TEN_MEGABYTES, "topic": TEN_MEGABYTES}),
    "garbage": b"\xc1\xff no message at all",
}


@pytest.fixture
def portal(scaled_out_alone: ScaledOutPortal) -> ScaledOutPortal:
    """Return a portal whose sweep is off: only messages start deployments."""
    scaled_out_alone.env["RUNNER_SWEEP_SECONDS"] = "0"
    return scaled_out_alone


def test_however_many_notifications_arrive_each_deployment_is_claimed_once(
    portal: ScaledOutPortal, own_redis: Redis, figures: Figures
) -> None:
    workers = [portal.work() for _ in range(WORKERS)]
    wait_for_subscribers(own_redis, WORKERS)
    for worker in workers:
        worker.send_signal(signal.SIGSTOP)
    ids = [portal.deploy(f"doubled-{number}") for number in range(COUNT)]
    for _ in range(WAKES):
        own_redis.client.publish(RUNNER_CHANNEL, msgpack.packb({"type": "wake"}))
    for worker in workers:
        worker.send_signal(signal.SIGCONT)
    for id in ids:
        assert portal.finished(id, 60)["phase"] == "completed"
        assert_one_of_each(portal, id, figures)
    claims = portal.rows("SELECT lease_token, crashes FROM deployments_deployment")
    assert claims == [{"lease_token": 1, "crashes": 0}] * COUNT


@pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS)
def test_a_message_after_a_malformed_one_is_still_received(
    portal: ScaledOutPortal, own_redis: Redis, poison: bytes, figures: Figures
) -> None:
    portal.work()
    wait_for_subscribers(own_redis)
    with held(portal, *GATES.values()):
        id = portal.deploy("poisoned")
        with socket(portal, id) as page:
            wait_for_frame(page, "1 of 7")
            for channel in (RUNNER_CHANNEL, group_key(portal, id)):
                until(lambda channel=channel: own_redis.client.pubsub_numsub(channel)[0][1] == 1)
                assert own_redis.client.publish(channel, poison) == 1
            assert_updated_by_messages(portal, page)
    for deployment in (id, portal.deploy("heard")):
        assert portal.finished(deployment)["phase"] == "completed"
        assert_one_of_each(portal, deployment, figures)
