"""Scaled out: kill -9 of a worker at every point of every phase and undo, while the other processes live."""

import signal
from collections.abc import Iterator
from contextlib import closing

import pytest

from deployments.worker import failpoints

from ..process_pool import ProcessPool
from ..processes import until
from ..users import new_token
from .assertions import Figures, ScaledOutPortal, assert_objects, assert_same_everywhere
from .cases import COMMON, SCALED_OUT_ONLY, assert_runs_configured_image, points_file, record_points, required_passes

CASES = {**COMMON, **SCALED_OUT_ONLY}
WORKERS = 8


@pytest.fixture
def portal(scaled_out: ScaledOutPortal, process_pool: ProcessPool) -> Iterator[ScaledOutPortal]:
    scaled_out.process_pool = process_pool
    scaled_out.seed()
    with closing(scaled_out.operator()) as scaled_out.user:
        scaled_out.http.headers.update(new_token(scaled_out.user))
        scaled_out.http.headers["Accept"] = "application/json"
        yield scaled_out


class WorkerPool:
    """Workers with one deployment each, so that a death affects no other deployment. Dead workers are replaced."""

    def __init__(self, portal: ScaledOutPortal) -> None:
        self.died = 0
        self._portal = portal
        self._alive = [portal.work() for _ in range(WORKERS)]

    def replace_dead(self) -> bool:
        for dead in [worker for worker in self._alive if worker.poll() is not None]:
            assert dead.returncode == -signal.SIGKILL
            self.died += 1
            self._alive.remove(dead)
            self._alive.append(self._portal.work())
        return True


@pytest.mark.parametrize("kind", CASES)
def test_a_deployment_resumes_elsewhere_from_every_point_at_which_its_worker_died(
    portal: ScaledOutPortal, kind: str, figures: Figures
) -> None:
    case = CASES[kind]
    portal.env.update(case.env, FAULT=f"record:{points_file(portal)}")
    recorder = portal.work()
    victims = {f"{kind}-{number}": point for number, point in enumerate(record_points(portal, case))}
    names = list(victims)
    case.before(portal, names)
    recorder.terminate()
    assert recorder.wait(15) == 0
    portal.env.update(FAULT=" ".join(f"{name}/{point}" for name, point in victims.items()), RUNNER_LIMIT="1")
    markers = {name: portal.data / failpoints.marker_file(f"{name}/{point}").name for name, point in victims.items()}

    def are_killed_or_ended(names: list[str]) -> bool:
        killed, under_way = {name for name in markers if markers[name].exists()}, running(portal)
        return workers.replace_dead() and workers.died == len(killed) and {*names} <= killed | ({*names} - under_way)

    workers = WorkerPool(portal)
    for first in range(0, len(names), WORKERS):
        some = names[first : first + WORKERS]
        case.ask(portal, some)
        until(lambda some=some: are_killed_or_ended(some), 60, pause=0.1)
    until(lambda: workers.replace_dead() and not running(portal), 90, pause=0.1)
    figures.killed += workers.died
    figures.not_passed += [victims[name] for name in names if not markers[name].exists()]
    assert workers.died >= required_passes(len(names))
    assert_objects(portal, names, case.objects, figures)
    for name in names:
        deployment = portal.newest_deployment(name)
        assert (deployment["phase"], deployment["status"]) == case.end, (victims[name], deployment["message"])
        figures.ended += 1
        assert_same_everywhere(portal, deployment, figures)
        if case.objects:
            assert portal.router.get("/", headers={"Host": f"{name}.{portal.suffix}"}).status_code == 200
            assert_runs_configured_image(portal, name)


def running(portal: ScaledOutPortal) -> set[str]:
    """Return the stacks whose deployment has not ended."""
    in_progress = "SELECT stack_id FROM deployments_deployment WHERE status = 'in_progress'"
    return {row["name"] for row in portal.rows(f"SELECT name FROM deployments_stack WHERE id IN ({in_progress})")}
