"""On one machine: kill -9 of the whole portal at every point of every phase and undo."""

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from zlib import crc32

import pytest

from ..process_pool import Forge
from ..processes import IMAGE, until
from .assertions import RESUME_SECONDS, Figures, Watched, is_as_it_should_be, is_told_alike
from .cases import ONE_BY_ONE, RUNS, Case, most_of, points_file, points_of, runs_what_ran

CASES = {**RUNS, **ONE_BY_ONE}
PARTS = 3  # the points of a kind are shared out among so many tests
DIES_SECONDS = 2  # one that has come to its end dies at its last point at once, or never


@pytest.fixture
def portal(tmp_path: Path, forge: Forge) -> Iterator[Watched]:
    portal = Watched(tmp_path / "portal", STACK_IMAGE=IMAGE)
    portal.forge = forge
    yield portal
    portal.close()


@pytest.mark.parametrize(
    ("kind", "part", "parts"),
    [(kind, part, PARTS) for kind in RUNS for part in range(PARTS)] + [(kind, 0, 1) for kind in ONE_BY_ONE],
)
def test_a_run_goes_on_from_whatever_point_it_died_at(
    portal: Watched, kind: str, part: int, parts: int, figures: Figures
) -> None:
    case = CASES[kind]
    portal.env.update(case.env, FAULT=f"record:{points_file(portal)}")
    portal.start()
    points = [point for point in points_of(portal, case) if crc32(point.encode()) % parts == part]
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
            goes_on(portal, dead, victims[dead], case, seen.pop(dead), started, figures)
        if name:
            case.ask(portal, [name])
            if dies(portal, name):
                killed += 1
                seen[name] = portal.run_of(name)["version"]
            else:
                figures.not_passed.append(point)
                portal.kill()
    figures.killed += killed
    assert killed >= most_of(len(victims))
    is_as_it_should_be(portal, list(victims), case.objects, figures)
    for name in victims:
        is_told_alike(portal, portal.run_of(name), figures)
        if case.objects:
            assert portal.router.get("/", headers={"Host": f"{name}.localhost"}).status_code == 200
            runs_what_ran(portal, name)


def dies(portal: Watched, name: str) -> bool:
    """Whether it died there. What the pilot passed another run may not pass: Dokploy is asked again and again, and what
    it says is reported where it is news."""
    process = portal.process
    assert process is not None
    until(lambda: process.poll() is not None or portal.run_of(name)["completed_at"], 30, pause=0.02)
    with suppress(subprocess.TimeoutExpired):
        process.wait(DIES_SECONDS)
    if process.poll() is None:
        return False
    assert portal.dead() == -signal.SIGKILL
    return True


def goes_on(portal: Watched, name: str, point: str, case: Case, seen: int, started: float, figures: Figures) -> None:
    """After the start the run comes to its end, soon; `seen`: the number of its last event before it died."""
    run = portal.ended(name)
    assert (run["phase"], run["status"]) == case.end, (point, run["message"])
    figures.ended += 1
    later = [event["at"] for event in portal.events_of(run["id"]) if event["seq"] > seen]
    if later:
        figures.resume.append(later[0] - started)
        assert figures.resume[-1] < RESUME_SECONDS, point
