from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from deployments.engine import containers, deploy, retry
from deployments.engine import reporter as reporter_module
from deployments.engine.dokploy import Dokploy, transport
from deployments.engine.dokploy import client as client_module
from deployments.engine.resources import application, project

from ...processes import KEY, Simulator


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def dokploy(running: Simulator) -> AsyncIterator[Dokploy]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client_module, "QUEUE_PAUSE_SECONDS", 0.0)
        client = Dokploy(f"http://127.0.0.1:{running.port}", KEY)
    yield client
    await client.aclose()


@pytest.fixture
def impatient(request: pytest.FixtureRequest, dokploy: Dokploy, monkeypatch: pytest.MonkeyPatch) -> Dokploy:
    """Return a client with a short time limit for faults that never answer. Other answers may be late under load."""
    if request.node.callspec.params.get("fault", "hang").startswith("hang"):
        monkeypatch.setattr(transport, "CALL_SECONDS", 1.0)
    return dokploy


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def unreachable() -> AsyncIterator[Dokploy]:
    """Yield a client of a port that refuses connections."""
    client = Dokploy("http://127.0.0.1:9", KEY)
    yield client
    await client.aclose()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "LANDING_SECONDS", 0.02)
    monkeypatch.setattr(retry, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(project, "HALF_CREATED_SECONDS", 0.02)
    monkeypatch.setattr(application, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(containers, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(deploy, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(application, "SETTLE_SECONDS", 5.0)
    monkeypatch.setattr(reporter_module, "LOG_SECONDS", 0.01)
    monkeypatch.setattr(transport, "SECOND_TRY_SECONDS", 0.01)
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(retry, "MAX_PAUSE_SECONDS", 0.02)
