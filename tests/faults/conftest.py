"""The figures of the fault tests: each test hands in its own, and the sums are printed at the end."""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from ..machines import PostgreSQL, Redis
from ..processes import ScaledOut, Simulator

HERE = Path(__file__).parent
KEPT = "faults/figures"


@dataclass
class Figures:
    """What was killed, how the runs ended, and what must be 0. resume: seconds from a process's start, or a worker's
    death, to the next event of a run that was under way."""

    killed: int = 0
    ended: int = 0
    duplicates: int = 0
    orphans: int = 0
    missing: int = 0
    resume: list[float] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.faults)


@pytest.fixture
def figures(record_property: Any) -> Iterator[Figures]:
    figures = Figures()
    yield figures
    record_property("figures", asdict(figures))
    assert (figures.duplicates, figures.orphans, figures.missing) == (0, 0, 0)


@pytest.fixture
def own_postgres() -> Iterator[PostgreSQL]:
    cluster = PostgreSQL()
    yield cluster
    cluster.close()


@pytest.fixture
def own_redis() -> Iterator[Redis]:
    server = Redis()
    yield server
    server.close()


@pytest.fixture
def scaled_out(tmp_path: Path, own_postgres: PostgreSQL, own_redis: Redis) -> Iterator[ScaledOut]:
    """A web process, and no worker yet, on a PostgreSQL and a Redis of the test's own."""
    (tmp_path / "simulator").mkdir()
    simulator = Simulator(tmp_path / "simulator")
    portal = ScaledOut(tmp_path, simulator, own_postgres.url, own_redis.url)
    portal.env["RUNNER_SWEEP_SECONDS"] = "1"
    yield portal.start()
    portal.close()
    simulator.close()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    entries = [entry for kind in terminalreporter.stats.values() for entry in kind]
    reports = [entry for entry in entries if isinstance(entry, pytest.TestReport)]
    total, cache = Figures(), terminalreporter.config.cache
    handed_in = {r.nodeid: dict(r.user_properties).get("figures") for r in reports if r.when == "teardown"}
    if not any(handed_in.values()):
        return
    if os.environ.get("FIGURES_SO_FAR"):  # of the call before, which belongs to this one
        handed_in[""] = cache.get(KEPT, None)
    for one in filter(None, handed_in.values()):
        for name, value in one.items():
            setattr(total, name, getattr(total, name) + value)
    cache.set(KEPT, asdict(total))
    say = terminalreporter.write_line
    say(f"points killed {total.killed}, runs ended {total.ended}")
    say(f"duplicates {total.duplicates}, orphans {total.orphans}, events missing {total.missing}")
    if total.seeds:
        say(f"seeds: {', '.join(map(str, total.seeds))}")
    if total.resume:
        say(f"time to resume: median {median(total.resume):.1f} s, worst {max(total.resume):.1f} s")
