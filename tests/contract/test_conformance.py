"""`manage.py conformance` against the simulator: a server that behaves as expected, and servers that differ."""

import asyncio
import io
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from deployments.engine import conformance, containers, deploy, retry
from deployments.engine import reporter as reporter_module
from deployments.engine.conformance import cleanup, expectations, scenarios
from deployments.engine.dokploy import Dokploy, transport
from deployments.engine.dokploy import client as client_module
from deployments.engine.resources import application

from ..processes import IMAGE, KEY, ROOT, Simulator, until

LISTS = ("projects", "applications", "domains", "routes", "services", "queue")
NOTHING = dict.fromkeys(LISTS, 0)
Ended = tuple[int, str]


@pytest.fixture
def conform(simulator: Simulator, settings: Any, short_pauses: None) -> Callable[..., Ended]:
    """Return a function that runs the command in this process and returns its exit code and its output."""
    settings.DEMO = False
    for name, value in environment(simulator).items():
        setattr(settings, name, value)
    settings.STACK_HEALTH_INTERVAL_SECONDS, settings.STACK_HEALTH_TIMEOUT_SECONDS = 0.02, 0.5

    def conform(*options: str, **more: Any) -> Ended:
        stdout = more.pop("stdout", None) or io.StringIO()
        for name, value in more.items():
            setattr(settings, name, value)
        try:
            call_command("conformance", "--yes", *options, stdout=stdout)
        except SystemExit as exit:
            return int(str(exit.code)), stdout.getvalue()
        except CommandError as error:
            return error.returncode, str(error)
        raise AssertionError("the command ended without an exit code")

    return conform


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleanup, "SEARCH_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(retry, "LANDING_SECONDS", 0.05)
    monkeypatch.setattr(retry, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(application, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(containers, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(deploy, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(application, "SETTLE_SECONDS", 3.0)
    monkeypatch.setattr(reporter_module, "LOG_SECONDS", 0.01)
    monkeypatch.setattr(transport, "SECOND_TRY_SECONDS", 0.01)
    monkeypatch.setattr(client_module, "QUEUE_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(retry, "MAX_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(expectations, "EVENTUALLY_SECONDS", 0.3)


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that limits the command to some scenarios, for tests in which the others add nothing."""

    def only(*names: str) -> None:
        chosen = tuple(scenario for scenario in scenarios.SCENARIOS if scenario.name in names)
        assert len(chosen) == len(names)
        monkeypatch.setattr(scenarios, "SCENARIOS", chosen)

    return only


def environment(simulator: Simulator) -> dict[str, Any]:
    return {
        "DOKPLOY_URL": f"http://127.0.0.1:{simulator.port}",
        "DOKPLOY_API_KEY": KEY,
        "STACK_IMAGE": IMAGE,
        "STACK_DOMAIN_SUFFIX": "apps.test",
        "STACK_URL": "http://{name}.apps.test",
        "STACK_CERTIFICATE": "none",
        "STACK_ROUTER_ADDRESS": f"127.0.0.1:{simulator.router.base_url.port}",
    }


def start(tmp_path: Path, *options: str, stdin: int = subprocess.DEVNULL, **env: Any) -> "subprocess.Popen[str]":
    """Start the command as an operator does."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "REDIS_URL")}
    return subprocess.Popen(
        [sys.executable, "manage.py", "conformance", *options],
        cwd=ROOT,
        env={**inherited, "DATA_DIR": str(tmp_path), **{name: str(value) for name, value in env.items()}},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(process: "subprocess.Popen[str]") -> Ended:
    output, _ = process.communicate(timeout=60)
    assert "Traceback" not in output
    return process.returncode, output


def object_counts(simulator: Simulator) -> dict[str, int]:
    state = simulator.state()
    return {name: len(state[name]) for name in LISTS}


def differences(output: str) -> list[str]:
    return re.findall(r"^  differs  (.*)$", output.rpartition("expectations met")[2], re.MULTILINE)


# -- a server as expected ----------------------------------------------------------------------------------------------


def test_a_server_as_expected_meets_all_expectations_and_nothing_is_left(simulator: Simulator, tmp_path: Path) -> None:
    simulator.turn(pull=0.3)
    foreign = simulator.application(simulator.project("foreign")[1])
    code, output = end(start(tmp_path, "--yes", "--second-image", "registry.test/shop/web:2", **environment(simulator)))
    assert code == 0, output
    assert " differs  " not in output
    for scenario in scenarios.SCENARIOS:
        assert f"{scenario.name}: {scenario.title}" in output
    assert "source and image: docker registry.test/shop/web:2" in output
    assert "ok  d  waits in Dokploy's queue when it is stopped: yes" in output
    assert "REGISTRY_UNREACHABLE" in output
    assert re.search(r"\n\d{3} expectations met, 0 differ, 0 skipped, nothing left in Dokploy, in \d+ s\.\n", output)
    assert KEY not in output
    assert "throwaway #" not in output, "the output must not contain the value of a variable"
    assert [row["applicationId"] for row in simulator.state()["applications"]] == [foreign["applicationId"]]


def test_a_queue_in_which_nothing_waits_is_skipped_and_not_a_difference(
    simulator: Simulator, conform: Any, only: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    only("cancel")
    monkeypatch.setattr(scenarios, "FILLERS", 0)
    code, output = conform()
    assert code == 0, output
    assert "0 differ, 1 skipped, nothing left" in output
    assert "skipped  cancel: no deployment waited in Dokploy's queue: it started too soon" in output
    assert object_counts(simulator) == NOTHING


def test_the_cancellation_is_tested_even_if_dokploy_runs_several_deployments_at_a_time(
    simulator: Simulator, conform: Any, only: Any
) -> None:
    only("deploy", "cancel")
    simulator.turn(pull=0.4)
    simulator.do("settings.updateBuildsConcurrency", buildsConcurrency=3)
    code, output = conform()
    assert code == 0, output
    assert "waits in Dokploy's queue when it is stopped: yes" in output
    assert object_counts(simulator) == NOTHING


def test_the_command_continues_after_its_output_is_closed(simulator: Simulator, conform: Any, only: Any) -> None:
    class ClosedOutput(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    only("deploy")
    assert conform(stdout=ClosedOutput())[0] == 0
    assert simulator.state()["calls"]["project.create"] > 0
    assert object_counts(simulator) == NOTHING


# -- servers that differ -----------------------------------------------------------------------------------------------


def test_stacks_that_never_answer_are_a_difference_and_are_removed(
    simulator: Simulator, conform: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenarios, "FILLERS", 0)  # a deployment that waits would be stopped before its health check
    simulator.turn(container_status="Exited (1) 2 seconds ago")
    code, output = conform()
    assert code == 1
    different = differences(output)
    assert [line.partition(":")[0] for line in different] == ["deploy", "undo", "cancel", "concurrent"]
    assert all("expected no failure, got HEALTH_NO_ANSWER in verifying_health" in line for line in different)
    assert "Exited (1) 2 seconds ago" in different[0]
    assert "skipped  redeploy: no stack" in output
    assert "4 differ" in output
    assert "nothing left in Dokploy" in output
    assert object_counts(simulator) == NOTHING


def test_objects_that_cannot_be_removed_are_listed(simulator: Simulator, conform: Any, only: Any) -> None:
    only("missing image", "undo")
    simulator.fault("application.delete", "error500", times=None)
    code, output = conform()
    assert code == 1
    assert "b  left after the undo: expected none, got the application (" in output
    assert "4 left in Dokploy" in output
    state = simulator.state()
    for resource_type in ("project", "application"):
        rows = state[f"{resource_type}s"]
        assert len(rows) == 2
        for row in rows:
            assert f"     left  {resource_type} {row['name']} ({row[f'{resource_type}Id']})" in output


def test_an_image_that_cannot_be_pulled_is_a_difference_with_its_reason(
    simulator: Simulator, conform: Any, only: Any
) -> None:
    only("deploy", "missing image")
    simulator.turn(pull_error="the registry is on strike")
    code, output = conform()
    assert code == 1
    [different] = differences(output)
    assert different.startswith("deploy: completes: expected no failure, got IMAGE_PULL_FAILED in deploying")
    assert object_counts(simulator) == NOTHING


def test_an_address_at_which_another_server_answers_is_a_difference(
    simulator: Simulator, conform: Any, only: Any
) -> None:
    only("deploy", "remove")
    elsewhere = f"127.0.0.1:{simulator.port}"
    code, output = conform("--health-path", "/api/health", STACK_ROUTER_ADDRESS=elsewhere)
    assert code == 1
    assert differences(output) == [
        "deploy: a  address answers before the deployment: expected no, got yes",
        "remove: a  address answers: expected no, got yes",
    ]
    assert object_counts(simulator) == NOTHING


def test_a_procedure_that_fails_is_a_difference(simulator: Simulator, conform: Any, only: Any) -> None:
    only("deploy")
    simulator.fault("application.one", "error500", times=None, text="it's me again")
    code, output = conform()
    assert code == 1
    [different] = differences(output)
    assert "Dokploy answers: expected an answer, got DOKPLOY_UNAVAILABLE" in different
    assert object_counts(simulator) == NOTHING


async def test_a_container_that_outlives_its_stack_is_a_difference(
    tmp_path: Path, short_pauses: None, only: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dokploy reports that a deletion succeeded even if its container engine did not answer."""
    only("undo")
    monkeypatch.setattr(containers, "STOP_SECONDS", 0.2)
    simulator = Simulator(tmp_path)
    lines: list[str] = []
    dokploy = Dokploy(f"http://127.0.0.1:{simulator.port}", KEY)
    try:
        router = f"127.0.0.1:{simulator.router.base_url.port}"
        config = conformance.StackConfig(IMAGE, IMAGE, 8080, "http://{name}.apps.test", router_address=router)
        session = conformance.Session(dokploy, config, lines.append, key=KEY)
        simulator.close_gate("application.delete")
        running = asyncio.create_task(conformance.run(session, asyncio.Event(), limit=30))
        assert await asyncio.to_thread(simulator.wait_at, "application.delete") == 1
        simulator.turn(engine="down")
        simulator.open_gate("application.delete")
        await asyncio.to_thread(until, lambda: "container engine does not answer" in str(lines))
        simulator.turn(engine="up")
        assert await running is False
        [service] = simulator.state()["services"]
    finally:
        await dokploy.aclose()
        simulator.close()
    assert f"docker service rm {service['name']}" in session.differences[0]
    assert session.differences[-1].startswith(f"undo: c  containers: expected none, got {service['name']}.1.")
    assert session.leftovers == []


def test_the_time_limit_ends_the_command_and_a_deployment_that_hangs_is_listed(
    simulator: Simulator, conform: Any, only: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    only("deploy", "redeploy")
    monkeypatch.setattr(application, "SETTLE_SECONDS", 0.2)
    simulator.close_gate("stall")
    code, output = conform("--minutes", "0.05")
    assert code == 1
    assert differences(output) == ["deploy: completes: expected yes, got no (the time limit of 3 s is reached)"]
    assert "skipped  redeploy: not started" in output
    state = simulator.state()
    assert f"left  project {state['projects'][0]['name']}" in output
    assert "left  a deployment in the queue (deployportal/conformance-" in output
    assert "3 left in Dokploy" in output


# -- stopped by a signal -----------------------------------------------------------------------------------------------


def test_a_signal_during_a_deployment_leaves_nothing(simulator: Simulator, tmp_path: Path) -> None:
    simulator.close_gate("pull")
    process = start(tmp_path, "--yes", **environment(simulator))
    until(lambda: simulator.wait_at("pull"))
    process.send_signal(signal.SIGTERM)
    read_until(process, "Waiting for Dokploy to finish the running deployment")
    simulator.open_gate("pull")
    code, output = end(process)
    assert code == 1
    assert "deploy: completes: expected yes, got no (a signal arrived)" in output
    assert "skipped  remove: not started" in output
    assert "nothing left in Dokploy" in output
    assert object_counts(simulator) == NOTHING


def test_an_object_that_a_cancelled_call_creates_later_is_found(simulator: Simulator, tmp_path: Path) -> None:
    simulator.close_gate("project.create")
    process = start(tmp_path, "--yes", **environment(simulator))
    until(lambda: simulator.wait_at("project.create"))
    searches = simulator.state()["calls"]["project.all"]
    process.send_signal(signal.SIGINT)
    until(lambda: simulator.state()["calls"]["project.all"] > searches, 20)  # after the pending call has timed out
    simulator.open_gate("project.create")
    until(lambda: simulator.state()["projects"])
    code, output = end(process)
    assert code == 1
    assert "Stopping: everything that was created is removed first." in output
    assert "a  Removing the project" in output
    assert "nothing left in Dokploy" in output
    assert object_counts(simulator) == NOTHING


def read_until(process: "subprocess.Popen[str]", words: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if words in line:
            return
    raise AssertionError(f"The output does not contain {words!r}.")


# -- not started -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "changed", "text"),
    [
        ((), {"DEMO": True}, "Set DOKPLOY_URL and DOKPLOY_API_KEY for a real server"),
        ((), {"DOKPLOY_API_KEY": ""}, "DOKPLOY_API_KEY is not"),
        ((), {"DOKPLOY_API_KEY": "key-canary"}, "Dokploy refuses the key"),
        ((), {"DOKPLOY_URL": "http://127.0.0.1:9"}, "connection to 127.0.0.1, port 9, failed"),
        ((), {"STACK_URL": "http://apps.test"}, "does not give each stack its own address"),
        (("--second-image", "No Image"), {}, "'No Image' is not an image"),
        (("--port", "0"), {}, "0 is not a port"),
    ],
)
def test_a_wrong_setting_or_option_is_reported_and_nothing_starts(
    simulator: Simulator, conform: Any, options: tuple[str, ...], changed: dict[str, Any], text: str
) -> None:
    code, output = conform(*options, **changed)
    assert code == 2
    assert text in output
    assert "key-canary" not in output


def test_a_version_with_known_vulnerabilities_gets_no_stack(simulator: Simulator, conform: Any) -> None:
    simulator.turn(version="v0.29.2")
    code, output = conform()
    assert code == 2
    assert "Dokploy v0.29.2 has known vulnerabilities" in output


def test_nothing_is_created_without_a_confirmation(simulator: Simulator, tmp_path: Path) -> None:
    before = simulator.state()["calls"].get("project.create", 0)
    code, output = end(start(tmp_path, **environment(simulator)))
    assert code == 2
    assert "add --yes" in output
    assert "marked deployportal/conformance-" in output

    terminal, stdin = pty.openpty()
    process = start(tmp_path, stdin=stdin, **environment(simulator))
    os.write(terminal, b"no\n")
    code, output = end(process)
    os.close(terminal)
    os.close(stdin)
    assert code == 2
    assert "Type yes to start" in output
    assert "Nothing was done." in output
    assert simulator.state()["calls"].get("project.create", 0) == before
