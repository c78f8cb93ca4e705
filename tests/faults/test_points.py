"""One machine: kill -9 of the whole portal at every point of every phase and undo."""

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from zlib import crc32

import pytest

from ..process_pool import ProcessPool
from ..processes import IMAGE, until
from .assertions import RESUME_SECONDS, Figures, OneMachinePortal, assert_objects, assert_same_everywhere
from .cases import (
    COMMON,
    ONE_MACHINE_ONLY,
    Case,
    assert_runs_configured_image,
    points_file,
    record_points,
    required_passes,
)

CASES = {**COMMON, **ONE_MACHINE_ONLY}
PARTS = 3  # the number of tests that share the points of a kind
DIES_SECONDS = 2  # how long after the deployment's end the last point can kill the portal


@pytest.fixture
def portal(tmp_path: Path, process_pool: ProcessPool) -> Iterator[OneMachinePortal]:
    portal = OneMachinePortal(tmp_path / "portal", STACK_IMAGE=IMAGE)
    portal.process_pool = process_pool
    yield portal
    portal.close()


@pytest.mark.parametrize(
    ("kind", "part", "parts"),
    [(kind, part, PARTS) for kind in COMMON for part in range(PARTS)] + [(kind, 0, 1) for kind in ONE_MACHINE_ONLY],
)
def test_a_deployment_resumes_from_every_point_at_which_it_died(
    portal: OneMachinePortal, kind: str, part: int, parts: int, figures: Figures
) -> None:
    case = CASES[kind]
    portal.env.update(case.env, FAULT=f"record:{points_file(portal)}")
    portal.start()
    points = [point for point in record_points(portal, case) if crc32(point.encode()) % parts == part]
    victims = {f"{kind}-{number}": point for number, point in enumerate(points)}
    case.before(portal, list(victims))
    portal.kill()
    seen: dict[str, int] = {}
    killed = 0
    for name, point in [*victims.items(), ("", "")]:
        portal.env["FAULT"] = f"{name}/{point}" if name else ""
        started = time.time()
        portal.start()
        for dead in list(seen):
            assert_resumes(portal, dead, victims[dead], case, seen.pop(dead), started, figures)
        if name:
            case.ask(portal, [name])
            if died_at_point(portal, name):
                killed += 1
                seen[name] = portal.newest_deployment(name)["version"]
            else:
                figures.not_passed.append(point)
                portal.kill()
    figures.killed += killed
    assert killed >= required_passes(len(victims))
    assert_objects(portal, list(victims), case.objects, figures)
    for name in victims:
        assert_same_everywhere(portal, portal.newest_deployment(name), figures)
        if case.objects:
            assert portal.router.get("/", headers={"Host": f"{name}.localhost"}).status_code == 200
            assert_runs_configured_image(portal, name)


def died_at_point(portal: OneMachinePortal, name: str) -> bool:
    """Wait until the portal is dead or the deployment has ended, and return whether it died at its point.

    A later deployment need not pass every recorded point: Dokploy is polled, and only changes are reported.
    """
    process = portal.process
    assert process is not None
    until(lambda: process.poll() is not None or portal.newest_deployment(name)["completed_at"], 30, pause=0.02)
    with suppress(subprocess.TimeoutExpired):
        process.wait(DIES_SECONDS)
    if process.poll() is None:
        return False
    assert portal.wait_until_dead() == -signal.SIGKILL
    return True


def assert_resumes(
    portal: OneMachinePortal, name: str, point: str, case: Case, version: int, started: float, figures: Figures
) -> None:
    """Assert that the resumed deployment ends as expected and resumes in time.

    version: the number of its last event before the portal died. started: when the portal was started again.
    """
    deployment = portal.wait_until_ended(name)
    assert (deployment["phase"], deployment["status"]) == case.end, (point, deployment["message"])
    figures.ended += 1
    later = [event["at"] for event in portal.stored_events(deployment["id"]) if event["seq"] > version]
    if later:
        figures.resume.append(later[0] - started)
        assert figures.resume[-1] < RESUME_SECONDS, point
