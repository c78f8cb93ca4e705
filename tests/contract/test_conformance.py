"""`manage.py conformance` against the real simulator: as it should be, and where reality differs."""

import asyncio
import io
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from deployments.engine import conformance, containers, deploy, orchestrator
from deployments.engine import reporter as reporter_module
from deployments.engine.dokploy import Dokploy, transport
from deployments.engine.dokploy import client as client_module
from deployments.engine.resources import base

from ..processes import IMAGE, KEY, ROOT, Simulator, until

KINDS = ("projects", "applications", "domains", "routes", "services", "queue")
NOTHING = dict.fromkeys(KINDS, 0)
Ended = tuple[int, str]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    running = Simulator(tmp_path_factory.mktemp("dokploy"))
    yield running
    assert running.close() == 0


@pytest.fixture
def simulator(shared: Simulator) -> Iterator[Simulator]:
    yield shared
    shared.clear()
    shared.turn(version="v0.30.2")
    shared.do("settings.updateBuildsConcurrency", buildsConcurrency=1)


@pytest.fixture
def conform(simulator: Simulator, settings: Any, short_pauses: None) -> Callable[..., Ended]:
    """Runs the command in this process; its exit code and what it says."""
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
        except SystemExit as ended:
            return int(str(ended.code)), stdout.getvalue()
        except CommandError as error:
            return error.returncode, str(error)
        raise AssertionError("it ended without a word")

    return conform


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "RECHECK_SECONDS", 0.05)
    monkeypatch.setattr(containers, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(deploy, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(deploy, "SETTLE_SECONDS", 3.0)
    monkeypatch.setattr(reporter_module, "LOG_SECONDS", 0.01)
    monkeypatch.setattr(transport, "SECOND_TRY_SECONDS", 0.01)
    monkeypatch.setattr(client_module, "QUEUE_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(orchestrator, "FIRST_BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(orchestrator, "MAX_BACKOFF_SECONDS", 0.02)
    monkeypatch.setattr(conformance, "AFTERWARDS_SECONDS", 0.3)


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Fewer rehearsals, where the others add nothing."""

    def only(*names: str) -> None:
        chosen = tuple(rehearsal for rehearsal in conformance.REHEARSALS if rehearsal.name in names)
        assert len(chosen) == len(names)
        monkeypatch.setattr(conformance, "REHEARSALS", chosen)

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
    """The command as an operator starts it."""
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
    said, _ = process.communicate(timeout=60)
    assert "Traceback" not in said
    return process.returncode, said


def there(simulator: Simulator) -> dict[str, int]:
    state = simulator.state()
    return {kind: len(state[kind]) for kind in KINDS}


def differences(said: str) -> list[str]:
    return re.findall(r"^  differs  (.*)$", said.rpartition("expectations held")[2], re.MULTILINE)


# -- as it should be ---------------------------------------------------------------------------------------------------


def test_all_well_is_seen_and_nothing_is_left(simulator: Simulator, tmp_path: Path) -> None:
    simulator.turn(pull=0.3)
    mine = simulator.application(simulator.project("somebody-elses")[1])
    code, said = end(start(tmp_path, "--yes", "--second-image", "registry.test/shop/web:2", **environment(simulator)))
    assert code == 0, said
    assert " differs  " not in said
    for rehearsal in conformance.REHEARSALS:
        assert f"{rehearsal.name}: {rehearsal.sentence}" in said
    assert "its source and image: docker registry.test/shop/web:2" in said
    assert "held  d  its deploy waits in Dokploy's queue when it is stopped: yes" in said
    assert "REGISTRY_UNREACHABLE" in said
    assert re.search(r"\n\d{3} expectations held, 0 differ, 0 not seen, nothing left at Dokploy, in \d+ s\.\n", said)
    assert KEY not in said
    assert "throwaway #" not in said, "a variable's value is shown"
    assert [row["applicationId"] for row in simulator.state()["applications"]] == [mine["applicationId"]]


def test_a_queue_that_never_waits_is_said_and_is_no_difference(
    simulator: Simulator, conform: Any, only: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    only("cancel")
    monkeypatch.setattr(conformance, "FILLERS", 0)
    code, said = conform()
    assert code == 0, said
    assert "0 differ, 1 not seen, nothing left" in said
    assert "not seen  cancel: a deploy that waits in Dokploy's queue: it began too soon" in said
    assert there(simulator) == NOTHING


def test_where_dokploy_runs_several_at_a_time_the_cancel_is_seen_too(
    simulator: Simulator, conform: Any, only: Any
) -> None:
    only("deploy", "cancel")
    simulator.turn(pull=0.4)
    simulator.do("settings.updateBuildsConcurrency", buildsConcurrency=3)
    code, said = conform()
    assert code == 0, said
    assert "its deploy waits in Dokploy's queue when it is stopped: yes" in said
    assert there(simulator) == NOTHING


def test_a_reader_that_goes_away_stops_nothing(simulator: Simulator, conform: Any, only: Any) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    only("deploy")
    assert conform(stdout=Gone())[0] == 0
    assert simulator.state()["calls"]["project.create"] > 0
    assert there(simulator) == NOTHING


# -- reality that differs ----------------------------------------------------------------------------------------------


def test_stacks_that_never_answer_are_a_difference_and_are_taken_away(
    simulator: Simulator, conform: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conformance, "FILLERS", 0)  # a deploy that waits is stopped, and not asked whether it answers
    simulator.turn(container_status="Exited (1) 2 seconds ago")
    code, said = conform()
    assert code == 1
    found = differences(said)
    assert [line.partition(":")[0] for line in found] == ["deploy", "undo", "cancel", "two at once"]
    assert all("expected no failure, saw HEALTH_NO_ANSWER in verifying_health" in line for line in found)
    assert "Exited (1) 2 seconds ago" in found[0]
    assert "not seen  redeploy: there is no stack" in said
    assert "4 differ" in said
    assert "nothing left at Dokploy" in said
    assert there(simulator) == NOTHING


def test_what_cannot_be_removed_is_named(simulator: Simulator, conform: Any, only: Any) -> None:
    only("refused image", "undo")
    simulator.fault("application.delete", "error500", times=None)
    code, said = conform()
    assert code == 1
    assert "b  what the undo leaves: expected none, saw the application (" in said
    assert "4 left at Dokploy" in said
    state = simulator.state()
    for kind in ("project", "application"):
        rows = state[f"{kind}s"]
        assert len(rows) == 2
        for row in rows:
            assert f"     left  {kind} {row['name']} ({row[f'{kind}Id']})" in said


def test_an_image_that_every_registry_refuses_is_a_difference_with_its_reason(
    simulator: Simulator, conform: Any, only: Any
) -> None:
    only("deploy", "refused image")
    simulator.turn(pull_error="the registry is on strike")
    code, said = conform()
    assert code == 1
    [found] = differences(said)
    assert found.startswith("deploy: it goes through: expected no failure, saw IMAGE_PULL_FAILED in deploying")
    assert there(simulator) == NOTHING


def test_an_address_that_somebody_else_answers_is_a_difference(simulator: Simulator, conform: Any, only: Any) -> None:
    only("deploy", "remove")
    elsewhere = f"127.0.0.1:{simulator.port}"
    code, said = conform("--health-path", "/api/health", STACK_ROUTER_ADDRESS=elsewhere)
    assert code == 1
    assert differences(said) == [
        "deploy: a  its address answers before it is there: expected no, saw yes",
        "remove: a  its address answers: expected no, saw yes",
    ]
    assert there(simulator) == NOTHING


def test_questions_that_are_not_answered_are_a_difference(simulator: Simulator, conform: Any, only: Any) -> None:
    only("deploy")
    simulator.fault("application.one", "error500", times=None, text="it's me again")
    code, said = conform()
    assert code == 1
    [found] = differences(said)
    assert "Dokploy answers: expected what was asked for, saw DOKPLOY_UNAVAILABLE" in found
    assert there(simulator) == NOTHING


async def test_a_container_that_outlives_its_stack_is_a_difference(
    tmp_path: Path, short_pauses: None, only: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dokploy says that it deleted an application also where the engine did not answer it."""
    only("undo")
    monkeypatch.setattr(containers, "STOP_SECONDS", 0.2)
    simulator = Simulator(tmp_path)
    said: list[str] = []
    dokploy = Dokploy(f"http://127.0.0.1:{simulator.port}", KEY)
    try:
        router = f"127.0.0.1:{simulator.router.base_url.port}"
        ground = conformance.Ground(IMAGE, IMAGE, 8080, "http://{name}.apps.test", router_address=router)
        stage = conformance.Stage(dokploy, ground, said.append, key=KEY)
        simulator.close_gate("application.delete")
        running = asyncio.create_task(conformance.run(stage, asyncio.Event(), limit=30))
        assert await asyncio.to_thread(simulator.wait_at, "application.delete") == 1
        simulator.turn(engine="down")
        simulator.open_gate("application.delete")
        await asyncio.to_thread(until, lambda: "container engine does not answer" in str(said))
        simulator.turn(engine="up")
        assert await running is False
        [service] = simulator.state()["services"]
    finally:
        await dokploy.aclose()
        simulator.close()
    assert f"docker service rm {service['name']}" in stage.differences[0]
    assert stage.differences[-1].startswith(f"undo: c  containers of it: expected none, saw {service['name']}.1.")
    assert stage.left == []


def test_the_limit_ends_it_and_a_deploy_that_hangs_is_named(
    simulator: Simulator, conform: Any, only: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    only("deploy", "redeploy")
    monkeypatch.setattr(deploy, "SETTLE_SECONDS", 0.2)
    simulator.close_gate("stall")
    code, said = conform("--minutes", "0.05")
    assert code == 1
    assert differences(said) == ["deploy: it goes through: expected its end, saw none within the 3 s for all"]
    assert "not seen  redeploy: not begun" in said
    state = simulator.state()
    assert f"left  project {state['projects'][0]['name']}" in said
    assert "left  a deploy in the queue (deployportal/conformance-" in said
    assert "3 left at Dokploy" in said


# -- stopped in the middle ---------------------------------------------------------------------------------------------


def test_a_signal_in_the_middle_of_a_deploy_leaves_nothing(simulator: Simulator, tmp_path: Path) -> None:
    simulator.close_gate("pull")
    process = start(tmp_path, "--yes", **environment(simulator))
    until(lambda: simulator.wait_at("pull"))
    process.send_signal(signal.SIGTERM)
    read_until(process, "Waiting for Dokploy to finish the running deployment")
    simulator.open_gate("pull")
    code, said = end(process)
    assert code == 1
    assert "deploy: it goes through: expected its end, saw a signal to stop" in said
    assert "not seen  remove: not begun" in said
    assert "nothing left at Dokploy" in said
    assert there(simulator) == NOTHING


def test_what_a_call_that_was_broken_off_makes_later_is_found(simulator: Simulator, tmp_path: Path) -> None:
    simulator.close_gate("project.create")
    process = start(tmp_path, "--yes", **environment(simulator))
    until(lambda: simulator.wait_at("project.create"))
    looks = simulator.state()["calls"]["project.all"]
    process.send_signal(signal.SIGINT)
    until(lambda: simulator.state()["calls"]["project.all"] > looks, 20)  # once the call in hand has had its time
    simulator.open_gate("project.create")
    until(lambda: simulator.state()["projects"])
    code, said = end(process)
    assert code == 1
    assert "Stopping: what was made is taken away first." in said
    assert "a  Removing the project" in said
    assert "nothing left at Dokploy" in said
    assert there(simulator) == NOTHING


def read_until(process: "subprocess.Popen[str]", words: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if words in line:
            return
    raise AssertionError(f"it never said {words!r}")


# -- not begun ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "given", "says"),
    [
        ((), {"DEMO": True}, "Name a real server by DOKPLOY_URL and DOKPLOY_API_KEY"),
        ((), {"DOKPLOY_API_KEY": ""}, "DOKPLOY_API_KEY is not"),
        ((), {"DOKPLOY_API_KEY": "key-canary"}, "Dokploy refuses the key"),
        ((), {"DOKPLOY_URL": "http://127.0.0.1:9"}, "connection to 127.0.0.1, port 9, failed"),
        ((), {"STACK_URL": "http://apps.test"}, "does not give each stack its own address"),
        (("--second-image", "No Image"), {}, "'No Image' is no image"),
        (("--port", "0"), {}, "0 is no port"),
    ],
)
def test_what_it_cannot_begin_with_is_a_sentence(
    simulator: Simulator, conform: Any, options: tuple[str, ...], given: dict[str, Any], says: str
) -> None:
    code, said = conform(*options, **given)
    assert code == 2
    assert says in said
    assert "key-canary" not in said


def test_a_version_with_known_vulnerabilities_is_given_no_stack(simulator: Simulator, conform: Any) -> None:
    simulator.turn(version="v0.29.2")
    code, said = conform()
    assert code == 2
    assert "Dokploy v0.29.2 has known vulnerabilities" in said


def test_without_a_yes_nothing_is_made(simulator: Simulator, tmp_path: Path) -> None:
    before = simulator.state()["calls"].get("project.create", 0)
    code, said = end(start(tmp_path, **environment(simulator)))
    assert code == 2
    assert "add --yes" in said
    assert "marked deployportal/conformance-" in said

    terminal, theirs = pty.openpty()
    process = start(tmp_path, stdin=theirs, **environment(simulator))
    os.write(terminal, b"no\n")
    code, said = end(process)
    os.close(terminal)
    os.close(theirs)
    assert code == 2
    assert "Type yes to begin" in said
    assert "Nothing was done." in said
    assert simulator.state()["calls"].get("project.create", 0) == before
