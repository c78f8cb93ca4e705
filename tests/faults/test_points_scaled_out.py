"""Scaled out: kill -9 of a worker at every point of every phase and undo. The web process and other workers live on."""

import signal
from collections.abc import Iterator
from contextlib import closing

import pytest

from deployments.worker import failpoints

from ..process_pool import Forge
from ..processes import until
from ..users import new_token
from .assertions import Apart, Figures, is_as_it_should_be, is_told_alike
from .cases import ASKED_FOR_LATER, RUNS, most_of, points_file, points_of, runs_what_ran

CASES = {**RUNS, **ASKED_FOR_LATER}
WORKERS = 8


@pytest.fixture
def portal(scaled_out: Apart, forge: Forge) -> Iterator[Apart]:
    scaled_out.forge = forge
    scaled_out.furnish()
    with closing(scaled_out.operator()) as scaled_out.person:
        scaled_out.http.headers.update(new_token(scaled_out.person))
        scaled_out.http.headers["Accept"] = "application/json"
        yield scaled_out


class Crew:
    """Workers that take one run at a time, so that who dies takes no other run along. Who has died is replaced."""

    def __init__(self, portal: Apart) -> None:
        self.died = 0
        self._portal = portal
        self._alive = [portal.work() for _ in range(WORKERS)]

    def is_whole(self) -> bool:
        for dead in [worker for worker in self._alive if worker.poll() is not None]:
            assert dead.returncode == -signal.SIGKILL
            self.died += 1
            self._alive.remove(dead)
            self._alive.append(self._portal.work())
        return True


@pytest.mark.parametrize("kind", CASES)
def test_a_run_goes_on_elsewhere_from_whatever_point_its_worker_died_at(
    portal: Apart, kind: str, figures: Figures
) -> None:
    case = CASES[kind]
    portal.env.update(case.env, FAULT=f"record:{points_file(portal)}")
    recorder = portal.work()
    victims = {f"{kind}-{number}": point for number, point in enumerate(points_of(portal, case))}
    names = list(victims)
    case.before(portal, names)
    recorder.terminate()
    assert recorder.wait(15) == 0
    portal.env.update(FAULT=" ".join(f"{name}/{point}" for name, point in victims.items()), RUNNER_LIMIT="1")
    markers = {name: portal.data / failpoints.marker_file(f"{name}/{point}").name for name, point in victims.items()}

    def are_dead_or_over(names: list[str]) -> bool:
        killed, under_way = {name for name in markers if markers[name].exists()}, running(portal)
        return crew.is_whole() and crew.died == len(killed) and {*names} <= killed | ({*names} - under_way)

    crew = Crew(portal)
    for first in range(0, len(names), WORKERS):
        some = names[first : first + WORKERS]
        case.ask(portal, some)
        until(lambda some=some: are_dead_or_over(some), 60, pause=0.1)
    until(lambda: crew.is_whole() and not running(portal), 90, pause=0.1)
    figures.killed += crew.died
    figures.not_passed += [victims[name] for name in names if not markers[name].exists()]
    assert crew.died >= most_of(len(names))
    is_as_it_should_be(portal, names, case.objects, figures)
    for name in names:
        run = portal.run_of(name)
        assert (run["phase"], run["status"]) == case.end, (victims[name], run["message"])
        figures.ended += 1
        is_told_alike(portal, run, figures)
        if case.objects:
            assert portal.router.get("/", headers={"Host": f"{name}.{portal.suffix}"}).status_code == 200
            runs_what_ran(portal, name)


def running(portal: Apart) -> set[str]:
    """The stacks that have a run which has not ended."""
    runs = "SELECT stack_id FROM deployments_deployment WHERE status = 'in_progress'"
    return {row["name"] for row in portal.rows(f"SELECT name FROM deployments_stack WHERE id IN ({runs})")}
