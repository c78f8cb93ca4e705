"""Workers that die or are told to stop: the run goes on elsewhere, or after the restart, and in time."""

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ..integration.test_live import GATES, held
from ..processes import until
from .assertions import (
    RESUME_SECONDS,
    Apart,
    Figures,
    Watched,
    is_as_it_should_be,
    is_one_of_each,
    is_told_alike,
    next_event,
    taken_up,
)


@pytest.fixture
def portal(scaled_out: Apart) -> Apart:
    return scaled_out


def test_the_runs_of_killed_workers_go_on_within_a_lease(portal: Apart, figures: Figures) -> None:
    portal.env["RUNNER_LIMIT"] = "1"
    killed = []
    with ExitStack() as gates:
        for number, place in enumerate(("job", "domain.create", "project.create:answer")):  # each behind the next
            gates.enter_context(held(portal, place))
            killed.append((portal.deploy(f"killed-{number}"), portal.work()))
            portal.wait_at(place)
        for _ in killed:
            portal.work()
        for _, worker in killed:
            worker.kill()
        died, seen = time.time(), {id: portal.status(id)["version"] for id, _ in killed}
        figures.killed += len(killed)
    for id, version in seen.items():
        figures.resume.append(next_event(portal, id, version) - died)
        assert figures.resume[-1] < RESUME_SECONDS
        assert portal.finished(id)["phase"] == "completed"
    for id in seen:
        is_one_of_each(portal, id, figures)


def test_a_drained_workers_run_goes_on_elsewhere_within_two_seconds(portal: Apart, figures: Figures) -> None:
    worker = portal.work()
    with held(portal, "job"):
        id = portal.deploy("drained")
        portal.wait_at("job")
        portal.env["PGAPPNAME"] = "the-other"
        portal.work()
        until(lambda: portal.rows("SELECT 1 FROM pg_stat_activity WHERE application_name = 'the-other'"), 20)
        until(lambda: portal.status(id)["phase"] == "deploying")
        worker.terminate()
        assert worker.wait(15) == 0
        ended = time.time()
        assert taken_up(portal, id) - ended < 2
    assert portal.finished(id)["phase"] == "completed"
    is_one_of_each(portal, id, figures)


@pytest.fixture
def one_machine(tmp_path: Path) -> Iterator[Watched]:
    portal = Watched(tmp_path / "portal").start()
    yield portal
    portal.close()


# In every phase and in the undo: where it is when it is told to stop, the template, the phase that it ends in.
STOPS = [
    *(
        (place, "web-page", "completed")
        for place in (*GATES.values(), "project.create:answer", "application.deploy:answer")
    ),
    *((place, "broken", "rolling_back") for place in ("domain.delete", "application.delete:answer", "project.remove")),
]


@pytest.mark.parametrize(("place", "template", "end"), STOPS)
def test_on_one_machine_a_run_goes_on_within_two_seconds_of_an_orderly_restart(
    one_machine: Watched, place: str, template: str, end: str, figures: Figures
) -> None:
    portal = one_machine
    with held(portal, place):
        portal.ask("restarted", template=template)
        if place == "container":
            until(lambda: portal.run_of("restarted")["phase"] == "verifying_health")
        else:
            portal.wait_at(place)
        portal.process.send_signal(signal.SIGTERM)
    assert portal.process.wait(15) == 0
    until(portal.ports_are_free, 10)
    seen, started = portal.run_of("restarted"), time.time()
    portal.start()
    answers = time.time()
    assert portal.ended("restarted")["phase"] == end
    later = [event["at"] for event in portal.events_of(seen["id"]) if event["seq"] > seen["version"]]
    figures.resume.append(later[0] - started)
    assert later[0] - answers < 2  # how long a process takes to load is the machine's
    figures.ended += 1
    is_told_alike(portal, portal.run_of("restarted"), figures)
    is_as_it_should_be(portal, ["restarted"], int(end == "completed"), figures)
