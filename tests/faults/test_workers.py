"""Workers die or receive SIGTERM: their deployments resume in time, elsewhere or after the restart."""

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ..gates import GATES, held
from ..processes import until
from .assertions import (
    RESUME_SECONDS,
    Figures,
    OneMachinePortal,
    ScaledOutPortal,
    assert_objects,
    assert_one_of_each,
    assert_same_everywhere,
    wait_for_next_event,
    wait_until_resumed,
)


@pytest.fixture
def portal(scaled_out: ScaledOutPortal) -> ScaledOutPortal:
    return scaled_out


def test_deployments_of_killed_workers_resume_within_a_lease(portal: ScaledOutPortal, figures: Figures) -> None:
    portal.env["RUNNER_LIMIT"] = "1"
    killed = []
    with ExitStack() as gates:
        for number, place in enumerate(
            ("job", "domain.create", "project.create:answer")
        ):  # the last place first in the queue
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
        figures.resume.append(wait_for_next_event(portal, id, version) - died)
        assert figures.resume[-1] < RESUME_SECONDS
        assert portal.finished(id)["phase"] == "completed"
    for id in seen:
        assert_one_of_each(portal, id, figures)


def test_a_drained_workers_deployment_resumes_elsewhere_within_two_seconds(
    portal: ScaledOutPortal, figures: Figures
) -> None:
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
        assert wait_until_resumed(portal, id) - ended < 2
    assert portal.finished(id)["phase"] == "completed"
    assert_one_of_each(portal, id, figures)


@pytest.fixture
def one_machine(tmp_path: Path) -> Iterator[OneMachinePortal]:
    portal = OneMachinePortal(tmp_path / "portal").start()
    yield portal
    portal.close()


# For each phase and the undo: where SIGTERM comes, the template, the phase at the end.
STOPS = [
    *(
        (place, "web-page", "completed")
        for place in (*GATES.values(), "project.create:answer", "application.deploy:answer")
    ),
    *((place, "broken", "rolling_back") for place in ("domain.delete", "application.delete:answer", "project.remove")),
]


@pytest.mark.parametrize(("place", "template", "end"), STOPS)
def test_on_one_machine_a_deployment_resumes_within_two_seconds_of_an_orderly_restart(
    one_machine: OneMachinePortal, place: str, template: str, end: str, figures: Figures
) -> None:
    portal = one_machine
    with held(portal, place):
        portal.request("restarted", template=template)
        if place == "container":
            until(lambda: portal.newest_deployment("restarted")["phase"] == "verifying_health")
        else:
            portal.wait_at(place)
        portal.process.send_signal(signal.SIGTERM)
    assert portal.process.wait(15) == 0
    until(portal.ports_are_free, 10)
    seen, started = portal.newest_deployment("restarted"), time.time()
    portal.start()
    answers = time.time()
    assert portal.wait_until_ended("restarted")["phase"] == end
    later = [event["at"] for event in portal.stored_events(seen["id"]) if event["seq"] > seen["version"]]
    figures.resume.append(later[0] - started)
    assert later[0] - answers < 2  # from the first answer: loading the process does not count
    figures.ended += 1
    assert_same_everywhere(portal, portal.newest_deployment("restarted"), figures)
    assert_objects(portal, ["restarted"], int(end == "completed"), figures)
