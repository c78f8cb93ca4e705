"""Redis goes: what was asked for runs, pages show the end, no request hangs, and when it is back it is heard again."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import pytest

from ..integration.test_live import GATES, held, socket
from ..processes import until
from ..services import Redis, timed
from .assertions import Apart, Figures, group_of, is_heard, is_moved_by_messages, is_one_of_each, lasts, shows

REQUEST_SECONDS, PAGE_SECONDS, RUN_SECONDS = 2, 10, 20
AWAY_SECONDS = 5  # longer than an attempt to reach it takes
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
def portal(scaled_out_alone: Apart) -> Apart:
    return scaled_out_alone


def deploy(portal: Apart, name: str) -> str:
    """Asks for a run, and is answered quickly; its id."""
    made: list[str] = []
    assert timed(lambda: made.append(portal.deploy(name))) < REQUEST_SECONDS
    return made[0]


def answers_quickly(portal: Apart, id: str) -> None:
    """The page, the state and the first event of the stream."""
    for ask in (
        lambda: portal.http.get(f"/deployments/{id}").raise_for_status(),
        lambda: portal.status(id),
        lambda: next(portal.stream(id)),
    ):
        assert timed(ask) < REQUEST_SECONDS


@pytest.mark.parametrize("goes", [Redis.stop, Redis.freeze])
def test_what_is_asked_for_while_redis_is_away_runs_all_the_same(
    portal: Apart, own_redis: Redis, goes: Act, figures: Figures
) -> None:
    portal.work()
    is_heard(own_redis)
    goes(own_redis)
    for id in [deploy(portal, f"unheard-{number}") for number in range(3)]:
        assert portal.finished(id, RUN_SECONDS)["phase"] == "completed"
        is_one_of_each(portal, id, figures)


@pytest.mark.parametrize("acts", TROUBLE.values(), ids=TROUBLE)
def test_a_run_goes_on_and_its_pages_show_the_end_whatever_redis_does(
    portal: Apart, own_redis: Redis, acts: Sequence[Act], figures: Figures
) -> None:
    portal.work()
    is_heard(own_redis)
    with held(portal, "job"), ExitStack() as pages:
        before = portal.deploy("before")
        portal.wait_at("job")
        watched = [(pages.enter_context(socket(portal, before)), before)]
        acts[0](own_redis)
        during = deploy(portal, "during")
        for id in (before, during):
            answers_quickly(portal, id)
            watched.append((pages.enter_context(socket(portal, id)), id))
        for act in acts[1:]:
            act(own_redis)
        portal.open_gate("job")
        for id in (before, during):
            assert portal.finished(id, RUN_SECONDS)["phase"] == "completed"
        for page, id in watched:
            assert f'data-version="{portal.status(id)["version"]}" ' in shows(page, "data-done", PAGE_SECONDS)
    for id in (before, during):
        is_one_of_each(portal, id, figures)


@gone
def test_messages_move_a_page_again_that_was_opened_while_redis_was_away(
    portal: Apart, own_redis: Redis, goes: Act, comes: Act, figures: Figures
) -> None:
    portal.work()
    is_heard(own_redis)
    goes(own_redis)
    with held(portal, *GATES.values()):
        id = deploy(portal, "opened")
        with socket(portal, id) as page:
            shows(page, "1 of 7", PAGE_SECONDS)
            lasts(AWAY_SECONDS)
            comes(own_redis)
            until(lambda: own_redis.client.pubsub_numsub(group_of(portal, id))[0][1], PAGE_SECONDS)
            is_moved_by_messages(portal, page)
    assert portal.finished(id)["phase"] == "completed"
    is_one_of_each(portal, id, figures)


@gone
@pytest.mark.parametrize("starts", ["before", "meanwhile"])
def test_a_bell_alone_starts_a_run_when_redis_is_back(
    portal: Apart, own_redis: Redis, goes: Act, comes: Act, starts: str, figures: Figures
) -> None:
    portal.env.update(RUNNER_SWEEP_SECONDS="0", PGAPPNAME="the-worker")
    if starts == "before":
        portal.work()
        is_heard(own_redis)
    goes(own_redis)
    if starts == "meanwhile":
        portal.work()
        until(lambda: portal.rows("SELECT 1 FROM pg_stat_activity WHERE application_name = 'the-worker'"), 20)
    lasts(AWAY_SECONDS)
    comes(own_redis)
    is_heard(own_redis)
    id = deploy(portal, "heard")
    assert portal.finished(id, RUN_SECONDS)["phase"] == "completed"
    is_one_of_each(portal, id, figures)
