"""kill -9 at every point of every phase and undo. The points are those that the code itself passes (FAULT=record:…)."""

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from ..processes import until
from .conftest import Figures
from .look import RESUME_SECONDS, Watched, is_as_it_should_be, is_told_alike

BROKEN = {"template": "broken"}
PARTS = 3


@dataclass(frozen=True)
class Case:
    """A run that dies: how it is asked for, whether the stack runs before, how it ends, what of each is there then.

    except_for: the points of another run that this one passes too, and that are tried there.
    """

    ask: Callable[[Watched, str], None]
    end: tuple[str, str]
    objects: int
    runs_before: bool = False
    except_for: Callable[[Watched, str], None] | None = None


def deploy(portal: Watched, name: str) -> None:
    portal.ask(name, template="web-page")


CASES = {
    "deploy": Case(deploy, ("completed", "success"), 1),
    "undo": Case(lambda portal, name: portal.ask(name, **BROKEN), ("rolling_back", "failure"), 0, except_for=deploy),
    "redeploy": Case(lambda portal, name: portal.ask(name, **BROKEN), ("rolling_back", "failure"), 1, runs_before=True),
    "removal": Case(lambda portal, name: portal.ask_removal(name), ("completed", "success"), 0, runs_before=True),
}


@pytest.fixture
def portal(tmp_path: Path) -> Iterator[Watched]:
    portal = Watched(tmp_path / "portal")
    yield portal
    portal.close()


def passed(portal: Watched, name: str) -> list[str]:
    """The points that the work on this stack has passed, each once, in order."""
    lines = (portal.data / "points").read_text().splitlines()
    return list(dict.fromkeys(line.partition("/")[2] for line in lines if line.startswith(f"{name}/")))


def points_of(portal: Watched, case: Case) -> list[str]:
    """What the code says: the points of a run of this kind."""
    spared: list[str] = []
    if case.runs_before:
        deploy(portal, "pilot")
        portal.ended("pilot")
        (portal.data / "points").unlink()
    if case.except_for:
        case.except_for(portal, "other")
        portal.ended("other")
        spared = passed(portal, "other")
    case.ask(portal, "pilot")
    run = portal.ended("pilot")
    assert (run["phase"], run["status"]) == case.end
    return [point for point in passed(portal, "pilot") if point not in spared]


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("kind", CASES)
def test_a_run_goes_on_from_whatever_point_it_died_at(portal: Watched, kind: str, part: int, figures: Figures) -> None:
    case = CASES[kind]
    portal.env["FAULT"] = f"record:{portal.data / 'points'}"
    portal.start()
    points = [point for point in points_of(portal, case) if crc32(point.encode()) % PARTS == part]
    victims = {f"{kind}-{number}": point for number, point in enumerate(points)}
    if case.runs_before:
        for name in victims:
            deploy(portal, name)
        for name in victims:
            portal.ended(name)
    portal.kill()
    seen: dict[str, int] = {}
    for name, point in [*victims.items(), ("", "")]:
        portal.env["FAULT"] = f"{name}/{point}" if name else ""
        started = time.time()
        portal.start()
        for dead in list(seen):
            goes_on(portal, dead, victims[dead], case, seen.pop(dead), started, figures)
        if name:
            case.ask(portal, name)
            if dies(portal, name, point):
                figures.killed += 1
                seen[name] = portal.run_of(name)["version"]
            else:
                portal.kill()
    is_as_it_should_be(portal, list(victims), case.objects, figures)
    for name in victims:
        is_told_alike(portal, portal.run_of(name), figures)
        if case.objects:
            assert portal.router.get("/", headers={"Host": f"{name}.localhost"}).status_code == 200
            runs_what_ran(portal, name)


def dies(portal: Watched, name: str, point: str) -> bool:
    """Whether it died there. What is passed the second time on one way of the pilot may be passed once on another's:
    Dokploy is asked again and again, and what it says is reported where it is news."""
    process = portal.process
    assert process is not None
    until(lambda: process.poll() is not None or ("#" in point and portal.run_of(name)["completed_at"]), 30)
    if process.poll() is None:
        return False
    assert portal.dead() == -signal.SIGKILL, f"{name} did not die at {point}"
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


def runs_what_ran(portal: Watched, name: str) -> None:
    """The image that was asked for last with success is set at Dokploy, and is what the service is made of."""
    there: Any = portal.dokploy()
    application = next(row for row in there["applications"] if row["name"] == name)
    service = next(row for row in there["services"] if row["name"] == application["appName"])
    assert application["dockerImage"] == service["image"]
    assert service["image"].partition("@")[0] == "docker.io/library/caddy:2"  # brought back, it is pinned by digest
