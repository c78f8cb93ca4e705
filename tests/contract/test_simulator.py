"""The parts of the simulator that no recording covers: its process, router, API keys and control API."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.sync.client import connect

from ..processes import IMAGE, KEY, ROOT, Simulator, command, until


@pytest.fixture
def simulator(tmp_path: Path) -> Iterator[Simulator]:
    """Yield a simulator of the test's own, because these tests count its calls, restart it and break its settings."""
    running = Simulator(tmp_path)
    yield running
    assert running.close() == 0


# The process.


def test_it_requires_an_api_key(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "SIMULATOR_API_KEY"}
    ended = subprocess.run(
        [sys.executable, *command(tmp_path)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=10
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "Set SIMULATOR_API_KEY to the API key that the simulator accepts.\n"


def test_a_port_in_use_is_reported_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = subprocess.run(
            [sys.executable, *command(tmp_path), "--router", f"127.0.0.1:{port}"],
            cwd=ROOT,
            env={**os.environ, "SIMULATOR_API_KEY": KEY},
            capture_output=True,
            text=True,
            timeout=10,
        )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"The simulator cannot listen on 127.0.0.1:{port}: ")
    assert ended.stderr.count("\n") == 1


def test_it_ends_when_its_parent_process_ends(tmp_path: Path) -> None:
    simulator = Simulator(tmp_path, "--until-stdin-closes", stdin=subprocess.PIPE)
    assert simulator.process.stdin is not None
    simulator.process.stdin.close()
    assert simulator.wait() == 0
    simulator.close()


def test_sigint_ends_it_while_a_gate_holds_a_call(tmp_path: Path) -> None:
    simulator = Simulator(tmp_path)
    simulator.close_gate("project.all")
    with ThreadPoolExecutor() as pool:
        held = pool.submit(simulator.get, "project.all")
        assert simulator.wait_at("project.all") == 1
        simulator.process.send_signal(signal.SIGINT)
        assert simulator.wait() == 0
        with pytest.raises(httpx.TransportError):
            held.result()
    simulator.close()


def test_it_imports_nothing_of_the_portal() -> None:
    code = (
        "import sys, deployments.simulator.__main__;"
        "print([name for name in sys.modules if name.startswith(('django', 'deployportal', 'deployments.'))"
        " and not name.startswith('deployments.simulator')])"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"


def test_the_database_survives_a_kill_and_the_queue_does_not(tmp_path: Path) -> None:
    simulator = Simulator(tmp_path)
    running, waiting = simulator.application(), simulator.application()
    domain = {"host": "kept.example.test", "port": 80, "domainType": "application"}
    simulator.do("domain.create", applicationId=running["applicationId"], **domain)
    simulator.deploy(running)
    simulator.close_gate("job")
    simulator.do("application.deploy", applicationId=running["applicationId"], title="cut off")
    simulator.do("application.deploy", applicationId=waiting["applicationId"])
    assert simulator.wait_at("job") == 1
    simulator.do("settings.updateBuildsConcurrency", buildsConcurrency=2)
    simulator.process.kill()
    simulator.wait()
    simulator.close()

    simulator = Simulator(tmp_path)
    row = simulator.ask("deployment.all", applicationId=running["applicationId"])[0]
    assert (row["title"], row["status"], row["finishedAt"]) == ("cut off", "cancelled", None)
    assert simulator.status(running) == "idle"
    assert simulator.ask("deployment.all", applicationId=waiting["applicationId"]) == []
    assert simulator.ask("deployment.queueList") == []
    assert simulator.ask("settings.getWebServerSettings")["buildsConcurrency"] == 2
    assert simulator.visit("kept.example.test").status_code == 200
    assert simulator.close() == 0


# The router and the containers.


def test_the_router_answers_404_then_502_then_the_page(simulator: Simulator) -> None:
    host = "shop.example.test"
    application = simulator.application(name="<b>shop</b>")
    key = {"applicationId": application["applicationId"]}
    nowhere = simulator.visit(host)
    assert (nowhere.status_code, nowhere.text) == (404, "404 page not found\n")
    assert nowhere.headers["content-type"] == "text/plain; charset=utf-8"
    simulator.do("domain.create", **key, host=host, https=True)
    missing = simulator.visit(host)
    assert (missing.status_code, missing.text) == (502, "Bad Gateway")
    simulator.close_gate("container")
    simulator.deploy(application)
    assert simulator.wait_at("container") == 1
    assert simulator.visit(host).status_code == 502
    simulator.open_gate("container")
    page = until(lambda: (answer := simulator.visit("SHOP.Example.Test:8443", "/any")).status_code == 200 and answer)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert IMAGE in page.text
    assert "&lt;b&gt;shop&lt;/b&gt;" in page.text
    assert "<b>shop" not in page.text
    simulator.do("application.update", **key, replicas=0)
    simulator.deploy(application)
    assert simulator.visit(host).status_code == 502


def test_the_old_image_is_served_until_the_new_one_is_up(simulator: Simulator) -> None:
    application = simulator.application()
    key = {"applicationId": application["applicationId"]}
    simulator.do("domain.create", **key, host="u.example.test")
    simulator.deploy(application)
    until(lambda: simulator.visit("u.example.test").status_code == 200)
    simulator.close_gate("container")
    simulator.do("application.update", **key, dockerImage="registry.test/shop/web:2")
    simulator.deploy(application)
    assert simulator.wait_at("container") == 1
    assert IMAGE in simulator.visit("u.example.test").text
    assert len(simulator.ask("docker.getContainersByAppNameMatch", appName=application["appName"])) == 2
    simulator.open_gate("container")
    until(lambda: "registry.test/shop/web:2" in simulator.visit("u.example.test").text)


def test_an_image_of_a_registry_without_a_host_cannot_be_pulled(simulator: Simulator) -> None:
    row = simulator.deploy(simulator.application(image="registry.invalid/x:1"))
    assert simulator.log(row) == (
        "Initializing deployment\nPulling registry.invalid/x:1\nError response from daemon: Get"
        ' "https://registry.invalid/v2/": dial tcp: lookup registry.invalid: no such host\n'
        "❌ Pulling image failed\n\nError occurred ❌, check the logs for details.\n"
    )


def test_a_removed_project_leaves_its_routes_and_a_deleted_application_does_not(simulator: Simulator) -> None:
    project_id, environment_id = simulator.project()
    application, other = simulator.application(environment_id), simulator.application()
    for made, host in ((application, "left.example.test"), (other, "gone.example.test")):
        simulator.do("domain.create", applicationId=made["applicationId"], host=host)
        simulator.deploy(made)
        until(lambda host=host: simulator.visit(host).status_code == 200)
    simulator.do("project.remove", projectId=project_id)
    simulator.do("application.delete", applicationId=other["applicationId"])
    assert simulator.visit("left.example.test").status_code == 200
    assert simulator.visit("gone.example.test").status_code == 404
    state = simulator.state()
    assert [state[name] for name in ("applications", "domains", "deployments")] == [[]] * 3
    assert [service["name"] for service in state["services"]] == [application["appName"]]


def test_an_engine_that_is_down_lists_no_containers_and_no_service_is_healthy(simulator: Simulator) -> None:
    application = simulator.application()
    simulator.deploy(application)
    assert len(simulator.ask("docker.getContainersByAppNameMatch", appName=application["appName"])) == 1
    assert simulator.ask("settings.checkInfrastructureHealth")["traefik"] == {"status": "healthy"}
    simulator.turn(engine="down")
    assert simulator.ask("docker.getContainersByAppNameMatch", appName=application["appName"]) == []
    for part in simulator.ask("settings.checkInfrastructureHealth").values():
        assert part == {"status": "unhealthy", "message": "connect ENOENT /var/run/docker.sock"}


# API keys.


def test_a_member_has_another_role_and_is_refused_admin_procedures(simulator: Simulator) -> None:
    simulator.switches.post("keys", json={"key": "a-member's", "role": "member"}).raise_for_status()
    member = {"x-api-key": "a-member's"}
    [organization] = simulator.bare.get("/api/organization.all", headers=member).json()
    assert [membership["role"] for membership in organization["members"]] == ["member"]
    assert simulator.ask("organization.all")[0]["members"][0]["role"] == "owner"
    assert simulator.bare.get("/api/settings.getWebServerSettings", headers=member).status_code == 200
    refused = simulator.bare.get("/api/settings.checkInfrastructureHealth", headers=member)
    assert (refused.status_code, refused.json()["message"]) == (401, "UNAUTHORIZED")
    assert refused.json()["data"]["path"] == "settings.checkInfrastructureHealth"
    changed = {"json": {"buildsConcurrency": 2}, "headers": member}
    assert simulator.bare.post("/api/settings.updateBuildsConcurrency", **changed).status_code == 401
    assert simulator.ask("settings.getWebServerSettings")["buildsConcurrency"] == 1


def test_a_key_that_is_not_valid_is_rejected(simulator: Simulator) -> None:
    for wrong in (
        {},
        {"key": ""},
        {"key": "k", "role": 1},
        {"key": "k", "rate_limit": -1},
        {"key": 1},
    ):
        assert simulator.switches.post("keys", json=wrong).status_code == 400


def test_an_exhausted_key_is_refused_by_a_call_and_by_the_log(simulator: Simulator) -> None:
    simulator.switches.post("keys", json={"key": "k", "rate_limit": 1}).raise_for_status()
    given = {"x-api-key": "k"}
    assert simulator.bare.get("/api/project.all", headers=given).json()["data"]["path"] == "project.all"
    url = f"ws://127.0.0.1:{simulator.port}/listen-deployment"
    with (
        connect(url, additional_headers=given, compression=None, proxy=None) as socket,
        pytest.raises(ConnectionClosed) as closed,
    ):
        socket.recv(timeout=5)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == CloseCode.NO_STATUS_RCVD


# The log of a deployment.


def test_a_restart_ends_a_followed_log_and_a_ping_is_answered(simulator: Simulator) -> None:
    row = simulator.deploy(simulator.application())
    url = f"ws://127.0.0.1:{simulator.port}/listen-deployment?logPath={row['logPath']}"
    with connect(url, additional_headers={"x-api-key": KEY}, compression=None, proxy=None) as socket:
        assert socket.recv(timeout=5)
        assert socket.ping().wait(5)
        simulator.switches.post("restart").raise_for_status()
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=5)


# The control API.


def test_the_control_api_does_not_exist_without_its_key(tmp_path: Path, simulator: Simulator) -> None:
    unknown = simulator.bare.get("/unknown")
    for headers in ({}, {"X-Simulator-Key": "wrong"}):
        answer = simulator.bare.get("/_simulator/state", headers=headers)
        assert (answer.status_code, answer.content) == (unknown.status_code, unknown.content)
    locked = Simulator(tmp_path / "locked", switch_key="")
    for headers in ({}, {"X-Simulator-Key": ""}):
        answer = locked.bare.get("/_simulator/state", headers=headers)
        assert (answer.status_code, answer.content) == (unknown.status_code, unknown.content)
    locked.close()


def test_the_state_has_all_tables_and_what_was_set(simulator: Simulator) -> None:
    simulator.project()
    assert set(simulator.state()) == {
        *("projects", "environments", "applications", "domains", "deployments", "services", "routes", "queue"),
        *("calls", "faults", "gates", "settings"),
    }
    assert simulator.state()["calls"] == {"project.create": 1}


def test_a_gate_holds_a_call_before_its_execution_or_its_response_after_it(simulator: Simulator) -> None:
    with ThreadPoolExecutor() as pool:
        for name, executed in (("project.create", 0), ("project.create:answer", 2)):
            simulator.close_gate(name)
            held = [pool.submit(simulator.post, "project.create", name="x") for _ in range(2)]
            simulator.gather_at(name, 2)
            assert len(simulator.state()["projects"]) - (2 if executed else 0) == executed
            assert simulator.state()["gates"] == {name: 2}
            simulator.open_gate(name)
            assert [answer.result().status_code for answer in held] == [200, 200]
    assert simulator.switches.put("gates/nope").status_code == 400


def test_a_call_is_executed_though_its_client_disconnects(simulator: Simulator) -> None:
    simulator.close_gate("project.create")
    with pytest.raises(httpx.ReadTimeout):
        simulator.api.post("project.create", json={"name": "ghost"}, timeout=0.2)
    assert simulator.wait_at("project.create") == 1
    simulator.open_gate("project.create")
    until(lambda: [row["name"] for row in simulator.state()["projects"]] == ["ghost"])


@pytest.mark.parametrize(
    ("what", "status", "done"),
    [
        ("error500", 500, False),
        ("error500_done", 500, True),
        ("error400_done", 400, True),
        ("unauthorized", 401, False),
        ("too_many", 429, False),
        ("html502", 502, False),
        ("empty200", 200, False),
        ("empty200_done", 200, True),
        ("garbage200", 200, False),
        ("wrong_types", 200, True),
        ("redirect", 302, False),
    ],
)
def test_a_fault_changes_one_response(simulator: Simulator, what: str, status: int, done: bool) -> None:
    simulator.fault("project.create", what)
    answer = simulator.post("project.create", name="x")
    assert answer.status_code == status
    assert len(simulator.state()["projects"]) == done
    if what.startswith("empty200"):
        assert answer.content == b""
    if what == "garbage200":
        with pytest.raises(ValueError):
            answer.json()
    if what == "wrong_types":
        assert answer.json()["project"]["projectId"] == 7
    if what == "unauthorized":
        assert answer.json() == {"message": "Unauthorized"}
    assert simulator.post("project.create", name="x").status_code == 200


@pytest.mark.parametrize(("what", "done"), [("reset_before", 0), ("reset_after", 1)])
def test_a_connection_can_be_reset(simulator: Simulator, what: str, done: int) -> None:
    simulator.fault("*", what, times=None)
    for _ in range(2):
        with pytest.raises(httpx.ReadError):
            simulator.post("project.create", name="x")
    simulator.switches.delete("faults")
    assert len(simulator.ask("project.all")) == 2 * done


def test_a_response_can_be_missing_slow_or_huge(simulator: Simulator) -> None:
    simulator.fault("project.all", "hang")
    with pytest.raises(httpx.ReadTimeout):
        simulator.api.get("project.all", timeout=0.2)
    simulator.fault("project.all", "slow_bytes", seconds=0.01)
    with simulator.api.stream("GET", "project.all") as answer:
        assert [len(piece) for piece in answer.iter_raw()] == [1, 1]
    simulator.fault("project.all", "huge")
    assert len(simulator.get("project.all").content) > 50_000_000


def test_a_change_of_the_rate_limit_starts_a_new_window(simulator: Simulator) -> None:
    simulator.turn(rate_limit=6)
    assert [simulator.get("project.all").status_code for _ in range(4)] == [200, 200, 200, 401]
    simulator.turn(rate_limit=5)
    answers = [simulator.post("project.create", name="x") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 401, 401]
    assert answers[2].json()["data"]["path"] == "project.create"
    assert answers[3].json() == {"message": "Unauthorized"}
    assert len(simulator.state()["projects"]) == 2
    simulator.turn(rate_limit=None)
    assert simulator.get("project.all").status_code == 200


def test_a_fault_for_every_call_does_not_change_the_health_check(simulator: Simulator) -> None:
    simulator.fault("*", "unauthorized", times=None)
    assert simulator.get("project.all").status_code == 401
    assert simulator.bare.get("/api/trpc/settings.health").status_code == 200
    simulator.fault("settings.health", "error500")
    assert simulator.bare.get("/api/trpc/settings.health").status_code == 500
    assert simulator.bare.get("/api/trpc/settings.health").status_code == 200


def test_a_stalled_job_runs_until_a_restart_cancels_it(simulator: Simulator) -> None:
    first, second = simulator.application(), simulator.application()
    simulator.switches.post("stall", json={"running": True}).raise_for_status()
    for application in (first, second):
        simulator.do("application.deploy", applicationId=application["applicationId"])
    until(lambda: "stall" in simulator.state()["gates"] and simulator.state()["gates"]["stall"] == 1)
    simulator.switches.post("stall", json={"running": False}).raise_for_status()
    until(lambda: simulator.status(second) == "done")
    simulator.switches.post("stall", json={"running": True}).raise_for_status()
    simulator.do("application.deploy", applicationId=first["applicationId"])
    until(lambda: simulator.state()["gates"]["stall"] == 1)
    simulator.switches.post("restart").raise_for_status()
    row = simulator.ask("deployment.all", applicationId=first["applicationId"])[0]
    assert (row["status"], row["finishedAt"], simulator.status(first)) == ("cancelled", None, "idle")
    assert simulator.ask("deployment.queueList") == []
    simulator.switches.post("restart", json={"seconds": 60}).raise_for_status()
    with pytest.raises(httpx.ReadError):
        simulator.get("project.all")


def test_settings_and_faults_that_are_not_valid_are_rejected(simulator: Simulator) -> None:
    for wrong in ({"pull": -1}, {"nope": 1}, {"database": "sideways"}, {"infrastructure": "down"}, {"version": None}):
        assert simulator.switches.post("settings", json=wrong).status_code == 400
    assert simulator.switches.post("faults", json={"procedure": "nope", "what": "hang"}).status_code == 400
    assert simulator.switches.post("faults", json={"procedure": "*", "what": "nope"}).status_code == 400
