"""The clock jumps an hour ahead or back during a deployment: its worker keeps it and completes it."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deployments.models.deployment import LEASE_SECONDS

from ..gates import held
from ..processes import until
from ..services import Clock
from .assertions import (
    ONE_OF_EACH,
    Figures,
    OneMachinePortal,
    ScaledOutPortal,
    assert_no_event_missing,
    assert_objects,
    assert_same_everywhere,
)

HOUR = 3600
BEAT = 20  # seconds: a lease is renewed at least this often
JUMPS = pytest.mark.parametrize("jump", [HOUR, -HOUR], ids=["ahead", "back"])


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path)


@pytest.fixture
def portal(tmp_path: Path, clock: Clock) -> Iterator[OneMachinePortal]:
    portal = OneMachinePortal(tmp_path / "portal", **clock.env).start()
    yield portal
    portal.close()


def assert_clock_was_used(last: float, jump: int) -> None:
    """Assert that the last event has the time of the clock that jumped; otherwise the test proves nothing."""
    assert abs(last - time.time() - jump) < HOUR / 2


@JUMPS
def test_on_one_machine_a_deployment_survives_a_clock_jump(
    portal: OneMachinePortal, clock: Clock, jump: int, figures: Figures
) -> None:
    """On one machine the database has the same clock, so a lease expires at once or an hour late."""

    def lease() -> Any:
        return portal.newest_deployment("first")["lease_until"]

    with held(portal, "application.create"):
        portal.request("first")
        portal.wait_at("application.create")
        clock.jump(jump)
        before = lease()
        until(lambda: lease() != before, BEAT)
        portal.request("second")  # claimed after the jump: the runner has by then looked for due deployments
        until(lambda: portal.switches.get("gates").json()["application.create"] == 2, 20)
    for name in ("first", "second"):
        deployment = portal.wait_until_ended(name)
        assert (deployment["phase"], deployment["lease_token"], deployment["crashes"]) == ("completed", 1, 0)
        assert_clock_was_used(portal.stored_events(deployment["id"])[-1]["at"], jump)
        assert_same_everywhere(portal, deployment, figures)
        figures.ended += 1
    assert_objects(portal, ["first", "second"], 1, figures)


@JUMPS
def test_scaled_out_a_worker_whose_clock_jumps_keeps_its_deployment_and_takes_no_other(
    scaled_out: ScaledOutPortal, clock: Clock, jump: int, figures: Figures
) -> None:
    """A worker that claims the newer deployment has looked for due ones, so it could have claimed the older one."""

    def stored(id: str) -> dict[str, Any]:
        query = "SELECT lease_owner, lease_token, extract(epoch FROM lease_until - now()) AS lease, lease_until"
        return scaled_out.rows(f"{query} FROM deployments_deployment WHERE id = ?", id)[0]

    def claimed_by(id: str) -> str:
        return str(until(lambda: stored(id)["lease_owner"], 20))

    scaled_out.env["RUNNER_LIMIT"] = "1"
    with held(scaled_out, "application.create"):
        true, scaled_out.env = scaled_out.env, {**scaled_out.env, **clock.env}
        scaled_out.work()
        scaled_out.env = true
        first = scaled_out.deploy("first")
        scaled_out.wait_at("application.create", 20)
        with held(scaled_out, "project.create"):
            before = stored(first)
            clock.jump(jump)
            until(lambda: stored(first)["lease_until"] != before["lease_until"], BEAT)
            assert 0 < stored(first)["lease"] <= LEASE_SECONDS  # by the database's clock
            scaled_out.work()
            second = scaled_out.deploy("second")
            assert claimed_by(second) != before["lease_owner"]
            third = scaled_out.deploy("third")
            scaled_out.open_gate("application.create")
            assert claimed_by(third) == before["lease_owner"]
    for id in (first, second, third):
        assert scaled_out.finished(id)["phase"] == "completed"
        assert stored(id)["lease_token"] == 1
        assert_no_event_missing(scaled_out, id, figures)
    there = scaled_out.dokploy()
    found = {kind: len(there[kind]) for kind in ONE_OF_EACH}
    figures.duplicates += sum(count > 3 for count in found.values())
    assert found == dict.fromkeys(ONE_OF_EACH, 3)
    assert_clock_was_used(scaled_out.stored_events(third)[-1]["at"], jump)
