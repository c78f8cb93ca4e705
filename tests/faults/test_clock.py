"""The clock jumps an hour in the middle of a run, ahead or back: who has the run keeps it, and brings it to its end."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deployments.models.deployment import LEASE_SECONDS

from ..integration.test_live import held
from ..processes import until
from ..services import Clock
from .assertions import EACH_ONE, Apart, Figures, Watched, is_as_it_should_be, is_told_alike, is_told_whole

HOUR = 3600
BEAT = 20  # seconds within which a lease is surely renewed
JUMPS = pytest.mark.parametrize("jump", [HOUR, -HOUR], ids=["ahead", "back"])


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path)


@pytest.fixture
def portal(tmp_path: Path, clock: Clock) -> Iterator[Watched]:
    portal = Watched(tmp_path / "portal", **clock.env).start()
    yield portal
    portal.close()


def was_seen(last: float, jump: int) -> None:
    """The last event was written by the clock that jumped, else nothing was tried."""
    assert abs(last - time.time() - jump) < HOUR / 2


@JUMPS
def test_on_one_machine_a_run_outlives_a_clock_that_jumps(
    portal: Watched, clock: Clock, jump: int, figures: Figures
) -> None:
    """Here the database's clock jumps too: a lease is over at once, or never again."""

    def lease() -> Any:
        return portal.run_of("first")["lease_until"]

    with held(portal, "application.create"):
        portal.ask("first")
        portal.wait_at("application.create")
        clock.jump(jump)
        before = lease()
        until(lambda: lease() != before, BEAT)
        portal.ask("second")  # what it begins with after the jump: it has looked for what is due
        until(lambda: portal.switches.get("gates").json()["application.create"] == 2, 20)
    for name in ("first", "second"):
        run = portal.ended(name)
        assert (run["phase"], run["lease_token"], run["crashes"]) == ("completed", 1, 0)
        was_seen(portal.events_of(run["id"])[-1]["at"], jump)
        is_told_alike(portal, run, figures)
        figures.ended += 1
    is_as_it_should_be(portal, ["first", "second"], 1, figures)


@JUMPS
def test_scaled_out_a_worker_whose_clock_jumps_keeps_its_run_and_takes_nobodys(
    scaled_out: Apart, clock: Clock, jump: int, figures: Figures
) -> None:
    """A worker that takes up a newer run has looked for what is due, oldest first: it might have taken an older one."""

    def run(id: str) -> dict[str, Any]:
        query = "SELECT lease_owner, lease_token, extract(epoch FROM lease_until - now()) AS lease, lease_until"
        return scaled_out.rows(f"{query} FROM deployments_deployment WHERE id = ?", id)[0]

    def taken(id: str) -> str:
        return str(until(lambda: run(id)["lease_owner"], 20))

    scaled_out.env["RUNNER_LIMIT"] = "1"
    with held(scaled_out, "application.create"):
        true, scaled_out.env = scaled_out.env, {**scaled_out.env, **clock.env}
        scaled_out.work()
        scaled_out.env = true
        first = scaled_out.deploy("first")
        scaled_out.wait_at("application.create", 20)
        with held(scaled_out, "project.create"):
            before = run(first)
            clock.jump(jump)
            until(lambda: run(first)["lease_until"] != before["lease_until"], BEAT)
            assert 0 < run(first)["lease"] <= LEASE_SECONDS  # by the database's clock
            scaled_out.work()
            second = scaled_out.deploy("second")
            assert taken(second) != before["lease_owner"]
            third = scaled_out.deploy("third")
            scaled_out.open_gate("application.create")
            assert taken(third) == before["lease_owner"]
    for id in (first, second, third):
        assert scaled_out.finished(id)["phase"] == "completed"
        assert run(id)["lease_token"] == 1
        is_told_whole(scaled_out, id, figures)
    there = scaled_out.dokploy()
    found = {kind: len(there[kind]) for kind in EACH_ONE}
    figures.duplicates += sum(count > 3 for count in found.values())
    assert found == dict.fromkeys(EACH_ONE, 3)
    was_seen(scaled_out.events_of(third)[-1]["at"], jump)
