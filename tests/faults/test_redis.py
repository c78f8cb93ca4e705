"""Redis stops: deployments continue, pages show the end, no request hangs, and messages work again afterwards."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import pytest

from ..gates import GATES, held, socket
from ..processes import until
from ..services import Redis, timed
from .assertions import (
    Figures,
    ScaledOutPortal,
    assert_one_of_each,
    assert_updated_by_messages,
    group_key,
    let_last,
    wait_for_frame,
    wait_for_subscribers,
)

REQUEST_SECONDS, PAGE_SECONDS, RUN_SECONDS = 2, 10, 20
AWAY_SECONDS = 5  # longer than one attempt to connect
Act = Callable[[Redis], None]
AWAY = {"stopped": (Redis.stop, Redis.start), "frozen": (Redis.freeze, Redis.thaw)}
TROUBLE = {
    "stopped": [Redis.stop],
    "frozen": [Redis.freeze],
    "stopped and started": [Redis.stop, Redis.start],
    "frozen and thawed": [Redis.freeze, Redis.thaw],
    "flushed": [Redis.flush],
}
gone = pytest.mark.parametrize(("goes", "comes"), AWAY.values(), ids=AWAY)


@pytest.fixture
def portal(scaled_out_alone: ScaledOutPortal) -> ScaledOutPortal:
    return scaled_out_alone


def deploy(portal: ScaledOutPortal, name: str) -> str:
    """Request a deployment, assert that the answer is quick, return its id."""
    made: list[str] = []
    assert timed(lambda: made.append(portal.deploy(name))) < REQUEST_SECONDS
    return made[0]


def assert_quick_answers(portal: ScaledOutPortal, id: str) -> None:
    """Assert that the page, the state and the first event of the stream come quickly."""
    for ask in (
        lambda: portal.http.get(f"/deployments/{id}").raise_for_status(),
        lambda: portal.status(id),
        lambda: next(portal.stream(id)),
    ):
        assert timed(ask) < REQUEST_SECONDS


@pytest.mark.parametrize("goes", [Redis.stop, Redis.freeze])
def test_a_deployment_requested_while_redis_is_away_completes(
    portal: ScaledOutPortal, own_redis: Redis, goes: Act, figures: Figures
) -> None:
    portal.work()
    wait_for_subscribers(own_redis)
    goes(own_redis)
    for id in [deploy(portal, f"unheard-{number}") for number in range(3)]:
        assert portal.finished(id, RUN_SECONDS)["phase"] == "completed"
        assert_one_of_each(portal, id, figures)


@pytest.mark.parametrize("acts", TROUBLE.values(), ids=TROUBLE)
def test_a_deployment_completes_and_its_pages_show_the_end_whatever_redis_does(
    portal: ScaledOutPortal, own_redis: Redis, acts: Sequence[Act], figures: Figures
) -> None:
    portal.work()
    wait_for_subscribers(own_redis)
    with held(portal, "job"), ExitStack() as pages:
        before = portal.deploy("before")
        portal.wait_at("job")
        watched = [(pages.enter_context(socket(portal, before)), before)]
        acts[0](own_redis)
        during = deploy(portal, "during")
        for id in (before, during):
            assert_quick_answers(portal, id)
            watched.append((pages.enter_context(socket(portal, id)), id))
        for act in acts[1:]:
            act(own_redis)
        portal.open_gate("job")
        for id in (before, during):
            assert portal.finished(id, RUN_SECONDS)["phase"] == "completed"
        for page, id in watched:
            assert f'data-version="{portal.status(id)["version"]}" ' in wait_for_frame(page, "data-done", PAGE_SECONDS)
    for id in (before, during):
        assert_one_of_each(portal, id, figures)


@gone
def test_messages_update_a_page_that_was_opened_while_redis_was_away(
    portal: ScaledOutPortal, own_redis: Redis, goes: Act, comes: Act, figures: Figures
) -> None:
    portal.work()
    wait_for_subscribers(own_redis)
    goes(own_redis)
    with held(portal, *GATES.values()):
        id = deploy(portal, "opened")
        with socket(portal, id) as page:
            wait_for_frame(page, "1 of 7", PAGE_SECONDS)
            let_last(AWAY_SECONDS)
            comes(own_redis)
            until(lambda: own_redis.client.pubsub_numsub(group_key(portal, id))[0][1], PAGE_SECONDS)
            assert_updated_by_messages(portal, page)
    assert portal.finished(id)["phase"] == "completed"
    assert_one_of_each(portal, id, figures)


@gone
@pytest.mark.parametrize("starts", ["before", "meanwhile"])
def test_a_notification_alone_starts_a_deployment_when_redis_is_back(
    portal: ScaledOutPortal, own_redis: Redis, goes: Act, comes: Act, starts: str, figures: Figures
) -> None:
    portal.env.update(RUNNER_SWEEP_SECONDS="0", PGAPPNAME="the-worker")
    if starts == "before":
        portal.work()
        wait_for_subscribers(own_redis)
    goes(own_redis)
    if starts == "meanwhile":
        portal.work()
        until(lambda: portal.rows("SELECT 1 FROM pg_stat_activity WHERE application_name = 'the-worker'"), 20)
    let_last(AWAY_SECONDS)
    comes(own_redis)
    wait_for_subscribers(own_redis)
    id = deploy(portal, "heard")
    assert portal.finished(id, RUN_SECONDS)["phase"] == "completed"
    assert_one_of_each(portal, id, figures)
