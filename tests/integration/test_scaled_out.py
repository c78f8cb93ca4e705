"""Several processes: pages of one process show what another process commits."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from websockets.sync.client import ClientConnection

from ..gates import GATES, SECONDS, held, long_poller, poller, socket, streamer, walk
from ..processes import ScaledOut, Simulator, until
from ..services import Proxied, timed


@pytest.fixture
def scaled_out(tmp_path: Path, postgres: str, redis: str) -> Iterator[ScaledOut]:
    (tmp_path / "simulator").mkdir()
    simulator = Simulator(tmp_path / "simulator")
    portal = ScaledOut(tmp_path, simulator, postgres, redis).start()
    yield portal
    portal.close()
    simulator.close()


def test_another_process_carries_out_the_deployment_and_every_client_sees_each_phase(scaled_out: ScaledOut) -> None:
    """The sweep is off, so only messages start deployments and update pages."""
    scaled_out.work()
    for client in (poller, long_poller, streamer):
        with held(scaled_out, *GATES.values()):
            id = scaled_out.deploy(f"gate-{client.__name__.replace('_', '-')}")
            walk(scaled_out, client(scaled_out, id))
        assert scaled_out.finished(id)["phase"] == "completed"
    with held(scaled_out, "job"):
        id = scaled_out.deploy("gate-socket")
        with socket(scaled_out, id) as page:
            frame = ""
            while "6 of 7" not in frame:
                frame = page.recv(timeout=SECONDS)
            scaled_out.open_gate("job")
            while "data-done" not in frame:
                frame = page.recv(timeout=SECONDS)
    assert "The stack is live" in frame


def test_the_channels_worker_carries_out_a_deployment_that_only_a_message_announces(scaled_out: ScaledOut) -> None:
    scaled_out.work("runworker", "runner")
    with held(scaled_out, "project.all"):
        # Messages sent before the worker has subscribed are lost: request one deployment per attempt until one starts.
        for attempt in range(50):
            id = scaled_out.deploy(f"bell-{attempt}")
            answer = scaled_out.switches.get("gates/project.all", params={"wait": 0.5})
            if answer.json()["waiting"]:
                break
    assert scaled_out.finished(id)["phase"] == "completed"


def test_a_worker_that_receives_sigterm_releases_its_deployment_to_another(scaled_out: ScaledOut) -> None:
    first = scaled_out.work()
    with held(scaled_out, "job"):
        id = scaled_out.deploy("handed-over")
        scaled_out.wait_at("job")
        second = scaled_out.work()
        first.terminate()
        assert first.wait(15) == 0
    assert second.poll() is None
    assert scaled_out.finished(id)["phase"] == "completed"
    there = scaled_out.dokploy()
    assert [len(there[kind]) for kind in ("projects", "applications", "domains", "services")] == [1, 1, 1, 1]


def wait_until_shown(page: ClientConnection, text: str) -> None:
    while text not in str(page.recv(timeout=SECONDS)):
        pass


POOL_SIZE = 2  # connections to the database
STARVED = 8  # seconds; a request without a free connection waits for ten


@pytest.fixture
def small_pool(tmp_path: Path, postgres: str, redis: str) -> Iterator[ScaledOut]:
    (tmp_path / "simulator").mkdir()
    simulator = Simulator(tmp_path / "simulator")
    portal = ScaledOut(tmp_path, simulator, postgres, redis)
    portal.env["DATABASE_POOL"] = str(POOL_SIZE)
    yield portal.start()
    portal.close()
    simulator.close()


def test_waiting_clients_hold_no_database_connection(small_pool: ScaledOut) -> None:
    portal = small_pool
    portal.work()
    with held(portal, "job"), ExitStack() as watching:
        id = portal.deploy("watched")
        portal.wait_at("job")
        for _ in range(2 * POOL_SIZE):
            stream = watching.enter_context(portal.http.stream("GET", f"/api/status/{id}", timeout=60))
            next(stream.iter_raw())
        version = portal.status(id)["version"]
        with ThreadPoolExecutor(2 * POOL_SIZE) as pool:
            polls = [pool.submit(portal.events, id, version, 20) for _ in range(2 * POOL_SIZE)]
            assert timed(lambda: portal.http.get(f"/deployments/{id}").raise_for_status()) < STARVED
            portal.open_gate("job")
            assert all(poll.result()["events"] for poll in polls)
    assert portal.finished(id)["phase"] == "completed"


def test_clients_that_received_events_hold_no_database_connection(small_pool: ScaledOut) -> None:
    portal = small_pool
    portal.work()
    with held(portal, "job", "container"), ExitStack() as watching:
        streams = []
        for number in range(2 * POOL_SIZE):
            id = portal.deploy(f"watched-{number}")
            until(lambda id=id: portal.status(id)["phase"] == "deploying", 20)
            stream = watching.enter_context(portal.http.stream("GET", f"/api/status/{id}", timeout=60))
            streams.append(stream.iter_lines())
            next(streams[-1])
        portal.open_gate("job")
        for lines in streams:
            assert any("verifying_health" in line for line in lines)
        assert timed(lambda: portal.http.get(f"/deployments/{id}").raise_for_status()) < STARVED
        portal.open_gate("container")
        for lines in streams:
            assert any("event: complete" in line for line in lines)


@pytest.fixture
def proxied(tmp_path: Path, postgres: str, redis: str) -> Iterator[Proxied]:
    """Yield two web processes behind HAProxy that are not started yet."""
    (tmp_path / "simulator").mkdir()
    simulator = Simulator(tmp_path / "simulator")
    portal = Proxied(tmp_path, simulator, postgres, redis)
    yield portal
    portal.close()
    simulator.close()


def test_behind_the_proxy_every_client_sees_each_phase_whichever_process_serves_it(proxied: Proxied) -> None:
    proxied.start().work()
    for number, client in enumerate((long_poller, streamer, streamer)):
        with held(proxied, *GATES.values()):
            id = proxied.deploy(f"proxied-{number}")
            walk(proxied, client(proxied, id))
        assert proxied.finished(id)["phase"] == "completed"
    with held(proxied, "job"):
        id = proxied.deploy("proxied-socket")
        with socket(proxied, id) as one, socket(proxied, id) as other:
            proxied.open_gate("job")
            for page in (one, other):
                while "data-done" not in page.recv(timeout=SECONDS):
                    pass


def test_the_proxy_ignores_the_address_that_a_client_claims(proxied: Proxied) -> None:
    proxied.env["PORTAL_QUOTA"] = "1"  # stacks per address of an anonymous client
    proxied.start()
    proxied.deploy("first")
    claims = {"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Proto": "https"}
    answer = proxied.http.post("/api/deploy", json={"name": "second"}, headers=claims)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "QUOTA")


def test_the_proxy_continues_with_the_remaining_web_process(proxied: Proxied) -> None:
    proxied.start().work()
    with held(proxied, "job"):
        id = proxied.deploy("one-left")
        proxied.webs[0].kill()
        for _ in range(6):  # at once: the proxy skips a server that refuses connections
            assert proxied.status(id)["status"] == "in_progress"
        with socket(proxied, id) as page:
            proxied.open_gate("job")
            while "data-done" not in page.recv(timeout=SECONDS):
                pass
