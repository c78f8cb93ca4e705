import asyncio
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from asgiref.sync import sync_to_async
from django.db import connections

from . import environment
from .processes import Portal, Simulator

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
REQUIRED = bool(os.environ.get("CI"))  # whether a missing requirement is a failure, not a skip


def pytest_sessionstart() -> None:
    os.makedirs(environment.DATA, exist_ok=True)  # a process may hold several sessions, as in `make mutants`


def pytest_sessionfinish() -> None:
    shutil.rmtree(environment.DATA, ignore_errors=True)


def need(what: Any, why: str) -> None:
    """Skip the test if a requirement is missing; fail it in CI."""
    if not what:
        if REQUIRED:
            pytest.fail(f"{why}, but CI must have it")
        pytest.skip(why)


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None) -> Iterator[None]:
    """Close the database connections of the async tests' thread before the test database is dropped."""
    yield
    asyncio.run(sync_to_async(connections.close_all)())


@pytest.fixture
def postgres() -> Iterator[str]:
    """Yield the URL of an empty PostgreSQL database that only this test uses."""
    url = os.environ.get("DATABASE_URL", "")
    need(url.startswith("postgres"), "DATABASE_URL is not set to a PostgreSQL server")
    import psycopg

    name = f"portal_{secrets.token_hex(6)}"
    with psycopg.connect(url, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
    yield urlsplit(url)._replace(path=f"/{name}").geturl()
    with psycopg.connect(url, autocommit=True) as server:
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def redis() -> str:
    url = os.environ.get("REDIS_URL", "")
    need(url, "REDIS_URL is not set")
    return url


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    simulator = Simulator(tmp_path_factory.mktemp("dokploy"))
    yield simulator
    assert simulator.close() == 0


@pytest.fixture
def simulator(running: Simulator) -> Iterator[Simulator]:
    """Yield the module's simulator, and afterwards restore its settings and delete all objects."""
    settings = running.state()["settings"]
    yield running
    running.clear(settings)


@pytest.fixture(scope="session")
def shared_portal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Portal]:
    # A sweep could consume a fault that a test has set for its own deployment.
    portal = Portal(tmp_path_factory.mktemp("portal"), STACK_HEALTH_INTERVAL_SECONDS=0.3, SWEEPER_SECONDS=0).start()
    yield portal
    portal.close()


@pytest.fixture
def portal(shared_portal: Portal) -> Iterator[Portal]:
    """Yield a real portal with its simulator, shared within a session: names must differ."""
    yield shared_portal
    shared_portal.reset()


@pytest.fixture
def own_portal(tmp_path: Path) -> Iterator[Any]:
    """Yield a function that creates a portal with this environment."""
    made: list[Portal] = []

    def make(**env: Any) -> Portal:
        data = tmp_path / f"portal-{len(made)}"
        data.mkdir()
        made.append(Portal(data, **env))
        return made[-1]

    yield make
    for portal in made:
        portal.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    need(CHROMIUM, "there is no Chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield opened
        opened.close()
