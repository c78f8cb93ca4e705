"""Fixtures of the fault tests. Each test reports its figures; the summary prints their totals."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from ..process_pool import ProcessPool
from ..processes import Simulator
from ..services import PostgreSQL, Redis
from .assertions import Figures, ScaledOutPortal

HERE = Path(__file__).parent
CACHE_KEY = "faults/figures"


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
def process_pool() -> Iterator[ProcessPool]:
    process_pool = ProcessPool()
    yield process_pool
    process_pool.close()


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
def running_portal(data: Path, postgres_url: str, redis_url: str) -> Iterator[ScaledOutPortal]:
    (data / "simulator").mkdir()
    simulator = Simulator(data / "simulator")
    portal = ScaledOutPortal(data, simulator, postgres_url, redis_url)
    portal.env["RUNNER_SWEEP_SECONDS"] = "1"
    yield portal.start()
    portal.close()
    simulator.close()


@pytest.fixture
def scaled_out(tmp_path: Path, postgres: str, redis: str) -> Iterator[ScaledOutPortal]:
    """Start a web process without a worker."""
    with running_portal(tmp_path, postgres, redis) as portal:
        yield portal


@pytest.fixture
def scaled_out_alone(tmp_path: Path, own_postgres: PostgreSQL, own_redis: Redis) -> Iterator[ScaledOutPortal]:
    """Start a web process with a PostgreSQL and a Redis that only this test uses."""
    with running_portal(tmp_path, own_postgres.url, own_redis.url) as portal:
        yield portal


def pytest_terminal_summary(terminalreporter: Any) -> None:
    entries = [entry for kind in terminalreporter.stats.values() for entry in kind]
    reports = [entry for entry in entries if isinstance(entry, pytest.TestReport)]
    total, cache = Figures(), terminalreporter.config.cache
    reported = {r.nodeid: dict(r.user_properties).get("figures") for r in reports if r.when == "teardown"}
    if not any(reported.values()):
        return
    if os.environ.get("FIGURES_SO_FAR"):  # `make faults` calls pytest twice
        reported[""] = cache.get(CACHE_KEY, None)
    for one in filter(None, reported.values()):
        for name, value in one.items():
            setattr(total, name, getattr(total, name) + value)
    cache.set(CACHE_KEY, asdict(total))
    say = terminalreporter.write_line
    say(f"points killed {total.killed}, deployments ended {total.ended}")
    say(f"duplicates {total.duplicates}, orphans {total.orphans}, events missing {total.missing}")
    if total.not_passed:
        say(f"points not passed again: {', '.join(total.not_passed)}")
    if total.seeds:
        say(f"seeds: {', '.join(map(str, total.seeds))}")
    if total.resume:
        say(f"time to resume: median {median(total.resume):.1f} s, worst {max(total.resume):.1f} s")
