"""The figures of the fault tests: each test hands in its own, and the sums are printed at the end."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from ..process_pool import Forge
from ..processes import Simulator
from ..services import PostgreSQL, Redis
from .assertions import Apart, Figures

HERE = Path(__file__).parent
KEPT = "faults/figures"


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


@pytest.fixture(scope="session")
def forge() -> Iterator[Forge]:
    forge = Forge()
    yield forge
    forge.close()


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


@contextmanager
def standing(data: Path, postgres_url: str, redis_url: str) -> Iterator[Apart]:
    (data / "simulator").mkdir()
    simulator = Simulator(data / "simulator")
    portal = Apart(data, simulator, postgres_url, redis_url)
    portal.env["RUNNER_SWEEP_SECONDS"] = "1"
    yield portal.start()
    portal.close()
    simulator.close()


@pytest.fixture
def scaled_out(tmp_path: Path, postgres: str, redis: str) -> Iterator[Apart]:
    """A web process, and no worker yet."""
    with standing(tmp_path, postgres, redis) as portal:
        yield portal


@pytest.fixture
def scaled_out_alone(tmp_path: Path, own_postgres: PostgreSQL, own_redis: Redis) -> Iterator[Apart]:
    """The same, on a PostgreSQL and a Redis of the test's own."""
    with standing(tmp_path, own_postgres.url, own_redis.url) as portal:
        yield portal


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
    if total.not_passed:
        say(f"points not passed again: {', '.join(total.not_passed)}")
    if total.seeds:
        say(f"seeds: {', '.join(map(str, total.seeds))}")
    if total.resume:
        say(f"time to resume: median {median(total.resume):.1f} s, worst {max(total.resume):.1f} s")
