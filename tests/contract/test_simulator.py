"""The simulator is held to what was recorded from Dokploy v0.30.2. It runs as the process that it is."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.simulator import dotenv

from ..processes import IMAGE, KEY, ROOT, Simulator, command, until


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    """For tests that neither make anything nor turn anything."""
    running = Simulator(tmp_path_factory.mktemp("shared"))
    yield running
    assert running.close() == 0


@pytest.fixture
def simulator(tmp_path: Path) -> Iterator[Simulator]:
    running = Simulator(tmp_path)
    yield running
    assert running.close() == 0


# The process.


def test_it_wants_an_api_key(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "SIMULATOR_API_KEY"}
    ended = subprocess.run(
        [sys.executable, *command(tmp_path)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=10
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "Set SIMULATOR_API_KEY to the API key that the simulator shall accept.\n"


def test_a_taken_port_is_told_in_a_sentence(tmp_path: Path) -> None:
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


def test_it_ends_cleanly_when_its_parent_has_gone(tmp_path: Path) -> None:
    simulator = Simulator(tmp_path, "--until-stdin-closes", stdin=subprocess.PIPE)
    assert simulator.process.stdin is not None
    simulator.process.stdin.close()
    assert simulator.wait() == 0
    simulator.close()


def test_it_ends_cleanly_on_interrupt_though_a_call_is_held(tmp_path: Path) -> None:
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
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout == "[]\n"


def test_rows_survive_a_restart_of_the_process_and_the_queue_does_not(tmp_path: Path) -> None:
    simulator = Simulator(tmp_path)
    running, waiting = simulator.application(), simulator.application()
    domain = {"host": "kept.example.test", "port": 80, "domainType": "application"}
    simulator.do("domain.create", applicationId=running["applicationId"], **domain)
    simulator.deploy(running)
    simulator.close_gate("job")
    simulator.do("application.deploy", applicationId=running["applicationId"], title="cut off")
    simulator.do("application.deploy", applicationId=waiting["applicationId"])
    assert simulator.wait_at("job") == 1
    simulator.process.kill()
    simulator.wait()
    simulator.close()

    simulator = Simulator(tmp_path)
    row = simulator.ask("deployment.all", applicationId=running["applicationId"])[0]
    assert (row["title"], row["status"], row["finishedAt"]) == ("cut off", "cancelled", None)
    assert simulator.status(running) == "idle"
    assert simulator.ask("deployment.all", applicationId=waiting["applicationId"]) == []
    assert simulator.ask("deployment.queueList") == []
    assert simulator.visit("kept.example.test").status_code == 200
    assert simulator.close() == 0


# Transport.


def test_health_needs_no_key_in_two_shapes_and_a_key_in_the_third(shared: Simulator) -> None:
    assert shared.bare.get("/api/health").json() == {"ok": True}
    health = shared.bare.get("/api/trpc/settings.health")
    assert health.json() == {"result": {"data": {"json": {"status": "ok"}}}}
    assert shared.bare.get("/api/settings.health").status_code == 401
    assert shared.ask("settings.health") == {"status": "ok"}
    assert shared.ask("settings.getDokployVersion") == "v0.30.2"


@pytest.mark.parametrize("headers", [{}, {"x-api-key": ""}, {"x-api-key": "wrong"}, {"Authorization": f"Bearer {KEY}"}])
def test_without_the_right_key_every_path_is_a_bare_401(shared: Simulator, headers: dict[str, str]) -> None:
    for path in ("/api/project.all", "/api/nope.nope"):
        answer = shared.bare.get(path, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["content-type"] == "application/json; charset=utf-8"
        assert answer.json() == {"message": "Unauthorized"}


def test_malformed_json_is_refused_before_the_key_is_looked_at(shared: Simulator) -> None:
    json_type = {"Content-Type": "application/json"}
    answer = shared.bare.post("/api/application.create", content="{bad", headers=json_type)
    assert (answer.status_code, answer.text) == (400, "Invalid JSON")
    assert "content-type" not in answer.headers


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "nope.nope"),
        ("GET", "application.create"),
        ("POST", "project.all"),
        ("PUT", "application.update"),
        ("DELETE", "application.delete"),
        ("GET", "project/all"),
    ],
)
def test_an_unknown_path_and_a_wrong_method_are_the_same_404(shared: Simulator, method: str, path: str) -> None:
    answer = shared.api.request(method, path)
    assert answer.status_code == 404
    data = {"code": "NOT_FOUND", "httpStatus": 404, "zodError": None}
    assert answer.json() == {"message": "Not found", "code": "NOT_FOUND", "data": data}


def test_other_transport_rules(simulator: Simulator) -> None:
    assert simulator.api.head("project.all").status_code == 204
    assert simulator.api.head("zzz").status_code == 204
    assert simulator.bare.head("/api/project.all").status_code == 401
    assert simulator.get("Project.All").json() == []
    moved = simulator.get("project.all/")
    assert (moved.status_code, moved.headers["location"]) == (308, "/api/project.all")
    typeless = simulator.api.post("application.create")
    assert typeless.status_code == 415
    assert typeless.json()["message"] == "Missing content-type header"
    text = simulator.api.post("application.create", content="{}", headers={"Content-Type": "text/plain"})
    assert (text.status_code, text.json()["code"]) == (415, "UNSUPPORTED_MEDIA_TYPE")
    assert text.json()["message"] == 'Unsupported content-type "text/plain'
    big = simulator.post("project.create", name="x" * 1_100_000)
    assert (big.status_code, big.text) == (413, "Body exceeded 1mb limit")
    assert simulator.post("project.create", name="x" * 900_000).status_code == 200
    assert simulator.bare.get("/elsewhere").status_code == 404


@pytest.mark.parametrize("body", ["", "[1]", '"x"', "null"])
def test_a_body_that_is_no_object_counts_as_empty(shared: Simulator, body: str) -> None:
    answer = shared.api.post("project.create", content=body, headers={"Content-Type": "application/json"})
    message = "Invalid input: expected string, received undefined"
    issue = {"expected": "string", "code": "invalid_type", "path": ["name"], "message": message}
    zod = {"formErrors": [], "fieldErrors": {"name": [message]}}
    assert answer.status_code == 400
    assert answer.json() == {
        "message": "Input validation failed",
        "code": "BAD_REQUEST",
        "data": {"code": "BAD_REQUEST", "httpStatus": 400, "path": "project.create", "zodError": zod},
        "issues": [issue],
    }


# Errors of procedures.


@pytest.mark.parametrize(
    ("procedure", "given", "status", "message"),
    [
        ("project.remove", {"projectId": "nope"}, 404, "Project not found"),
        ("application.create", {"name": "x", "environmentId": "nope"}, 404, "Environment not found"),
        ("application.update", {"applicationId": "nope", "name": "x"}, 400, "Error updating application"),
        ("application.update", {"applicationId": "nope"}, 500, "No values to set"),
        ("application.update", {"applicationId": "nope", "appName": "other"}, 500, "No values to set"),
        ("application.deploy", {"applicationId": "nope"}, 404, "Application not found"),
        ("application.stop", {"applicationId": "nope"}, 404, "Application not found"),
        ("application.delete", {"applicationId": "nope"}, 404, "Application not found"),
        ("domain.update", {"domainId": "nope", "host": "a.test"}, 404, "Domain not found"),
        ("domain.delete", {"domainId": "nope"}, 404, "Domain not found"),
    ],
)
def test_unknown_ids_are_refused(
    shared: Simulator, procedure: str, given: dict[str, str], status: int, message: str
) -> None:
    answer = shared.post(procedure, **given)
    assert answer.status_code == status
    code = {400: "BAD_REQUEST", 404: "NOT_FOUND", 500: "INTERNAL_SERVER_ERROR"}[status]
    data = {"code": code, "httpStatus": status, "path": procedure, "zodError": None}
    assert answer.json() == {"message": message, "code": code, "data": data}


def test_some_unknown_ids_are_no_error(shared: Simulator) -> None:
    assert shared.ask("deployment.all", applicationId="nope") == []
    assert shared.ask("deployment.allByType", id="nope", type="application") == []
    assert shared.ask("domain.byApplicationId", applicationId="nope") == []
    assert shared.ask("environment.byProjectId", projectId="nope") == []
    cleaned = shared.post("application.cleanQueues", applicationId="nope")
    assert (cleaned.status_code, cleaned.content) == (200, b"")


def test_a_domain_of_an_unknown_application_tells_its_sql(shared: Simulator) -> None:
    answer = shared.post("domain.create", applicationId="nope", host="p.example.test")
    assert answer.status_code == 400
    assert answer.json()["message"].startswith('Failed query: insert into "domain" ("domainId", "host", ')
    assert answer.json()["message"].endswith(",nope")


@pytest.mark.parametrize(
    ("procedure", "given", "complaints"),
    [
        ("project.create", {"name": ""}, {"name": ["Too small: expected string to have >=1 characters"]}),
        ("project.create", {"name": None}, {"name": ["Invalid input: expected string, received null"]}),
        (
            "application.create",
            {"name": "x", "environmentId": "e", "appName": "a b"},
            {"appName": ["App name can only contain letters, numbers, dots, underscores and hyphens"]},
        ),
        (
            "application.create",
            {"name": "x", "environmentId": "e", "appName": "a" * 64},
            {"appName": ["Too big: expected string to have <=63 characters"]},
        ),
        (
            "application.saveDockerProvider",
            {"applicationId": "a", "dockerImage": "nginx:1", "username": None, "password": ""},
            {"registryUrl": ["Invalid input: expected nonoptional, received undefined"]},
        ),
        (
            "application.saveEnvironment",
            {"applicationId": "a", "env": "A=1", "buildArgs": "", "buildSecrets": None},
            {"createEnvFile": ["Invalid input: expected nonoptional, received undefined"]},
        ),
        (
            "application.update",
            {"applicationId": "a", "memoryLimit": 268435456},
            {"memoryLimit": ["Invalid input: expected string, received number"]},
        ),
        (
            "application.update",
            {"applicationId": "a", "healthCheckSwarm": {"Foo": 1}},
            {"healthCheckSwarm": ['Unrecognized key: "Foo"']},
        ),
        ("domain.create", {"host": ""}, {"host": ["Add a hostname"]}),
        ("domain.create", {"host": "a.test", "port": 0}, {"port": ["Port must be at least 1"]}),
        ("domain.create", {"host": "a.test", "port": 70000}, {"port": ["Port must be 65535 or below"]}),
        (
            "domain.create",
            {"host": "a.test", "certificateType": "acme"},
            {"certificateType": ['Invalid option: expected one of "letsencrypt"|"none"|"custom"']},
        ),
        (
            "domain.create",
            {"host": "a_b.test"},
            {
                "host": [
                    "Invalid domain name. Use only letters, numbers, hyphens and dots (e.g. example.com)."
                    " Underscores are not allowed."
                ]
            },
        ),
        ("domain.create", {"host": " a.test"}, {"host": ["Domain name cannot have leading or trailing spaces"]}),
    ],
)
def test_wrong_input_is_worded_as_zod_words_it(
    shared: Simulator, procedure: str, given: dict[str, Any], complaints: dict[str, list[str]]
) -> None:
    answer = shared.post(procedure, **given)
    assert answer.status_code == 400
    assert answer.json()["message"] == "Input validation failed"
    assert answer.json()["data"]["zodError"] == {"formErrors": [], "fieldErrors": complaints}


# Rows.


def test_nothing_is_idempotent_and_names_are_not_unique(simulator: Simulator) -> None:
    first, second = simulator.do("project.create", name="shop"), simulator.do("project.create", name="shop")
    assert set(first) == {"project", "environment"}
    assert set(first["project"]) == {"projectId", "name", "description", "createdAt", "organizationId", "env"}
    assert first["environment"]["name"] == "production"
    assert first["environment"]["isDefault"] is True
    ids = [made["project"]["projectId"] for made in (second, first)]
    assert [len(key) for key in ids] == [21, 21]
    assert [project["projectId"] for project in simulator.ask("project.all")] == ids


def test_projects_and_environments_show_applications_in_three_sizes(simulator: Simulator) -> None:
    project_id, environment_id = simulator.project()
    simulator.application(environment_id, description="the mark")
    small = simulator.ask("project.all")[0]["environments"][0]["applications"][0]
    assert set(small) == {"applicationId", "name", "applicationStatus"}
    environment = simulator.ask("environment.byProjectId", projectId=project_id)[0]
    assert set(environment) == {
        *("name", "description", "environmentId", "isDefault", "applications", "project"),
        *("mariadb", "mongo", "mysql", "postgres", "redis", "compose", "libsql"),
    }
    large = environment["applications"][0]
    keys = {"name", "description", "appName", "createdAt", "serverId", "applicationStatus", "applicationId"}
    assert set(large) == keys | {"icon", "server"}
    assert large["description"] == "the mark"
    assert simulator.ask("project.one", projectId=project_id)["environments"][0]["applications"] == [large]
    middle = simulator.ask("environment.one", environmentId=environment_id)["applications"][0]
    assert set(middle) == (keys | {"icon", "server"}) - {"appName"}


def test_an_application_gets_a_random_name_and_drops_what_it_does_not_know(simulator: Simulator) -> None:
    _, environment_id = simulator.project()
    named = simulator.application(environment_id, None, appName="My.App_X", dockerImage="nginx:1", replicas=5)
    assert named["appName"].startswith("my.app_x-")
    assert len(named["appName"]) == len("my.app_x-") + 6
    assert (named["dockerImage"], named["replicas"], named["sourceType"]) == (None, 1, "docker")
    assert len(named) == 101
    plain = simulator.do("application.create", name="x", environmentId=environment_id)
    assert plain["appName"].startswith("app-")
    assert plain["sourceType"] == "github"


def test_input_is_coerced_as_javascript_does(simulator: Simulator) -> None:
    application = simulator.application()
    key = {"applicationId": application["applicationId"]}
    for given, kept in (("2", 2), (None, 0), (-1, -1)):
        simulator.do("application.update", **key, replicas=given)
        assert simulator.ask("application.one", **key)["replicas"] == kept
    assert simulator.do("domain.create", host="a.test", https="false", port="8081")["https"] is True
    assert simulator.post("application.update", **key, replicas=1.5).status_code == 500
    assert simulator.get("application.one", applicationId="").status_code == 400


def test_saving_a_docker_provider_also_sets_the_source_and_the_status(simulator: Simulator) -> None:
    application = simulator.application(image=None, sourceType="git")
    key = {"applicationId": application["applicationId"]}
    simulator.do("application.update", **key, applicationStatus="done")
    saved = {"dockerImage": IMAGE, "username": "bot", "password": None, "registryUrl": ""}
    assert simulator.do("application.saveDockerProvider", **key, **saved) is True
    row = simulator.ask("application.one", **key)
    assert (row["sourceType"], row["applicationStatus"], row["username"]) == ("docker", "idle", "bot")


def test_domains_have_defaults_and_are_not_unique(simulator: Simulator) -> None:
    application = simulator.application()
    key = {"applicationId": application["applicationId"]}
    first = simulator.do("domain.create", **key, host="shop.example.test")
    second = simulator.do("domain.create", **key, host="shop.example.test", https=True)
    assert (first["port"], first["https"], first["certificateType"], first["path"]) == (3000, False, "none", "/")
    assert second["uniqueConfigKey"] == first["uniqueConfigKey"] + 1
    assert set(first) == {
        *("domainId", "host", "https", "port", "customEntrypoint", "path", "serviceName", "domainType"),
        *("uniqueConfigKey", "createdAt", "composeId", "customCertResolver", "applicationId", "enabled"),
        *("previewDeploymentId", "certificateType", "internalPath", "stripPath", "middlewares"),
        "forwardAuthEnabled",
    }
    shown = simulator.ask("domain.one", domainId=first["domainId"])
    assert shown["application"] == {**key, "appName": application["appName"], "name": "web"}
    assert len(simulator.ask("domain.byApplicationId", **key)) == 2
    moved = simulator.do("domain.update", domainId=second["domainId"], host="b.example.test")
    assert (moved["host"], moved["https"]) == ("b.example.test", True)


# Deploying.


def test_a_deploy_answers_nothing_and_its_row_is_found_by_its_title(simulator: Simulator) -> None:
    application = simulator.application()
    answer = simulator.post("application.deploy", applicationId=application["applicationId"], title="mark-1")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"] == "application/json"
    until(lambda: simulator.status(application) == "done")
    (row,) = simulator.ask("deployment.all", applicationId=application["applicationId"])
    assert (row["title"], row["description"], row["status"]) == ("mark-1", "", "done")
    assert set(row) == {
        *("deploymentId", "title", "description", "status", "logPath", "pid", "applicationId", "composeId"),
        *("serverId", "isPreviewDeployment", "previewDeploymentId", "createdAt", "startedAt", "finishedAt"),
        *("errorMessage", "scheduleId", "backupId", "rollbackId", "volumeBackupId", "buildServerId"),
    }
    by_type = simulator.ask("deployment.allByType", id=application["applicationId"], type="application")
    assert by_type == [{**row, "rollback": None}]
    log = simulator.log(row)
    assert log.startswith(f"Initializing deployment\nPulling {IMAGE}\n1: Pulling from registry.test/shop/web\n")
    assert log.endswith(f"Status: Downloaded newer image for {IMAGE}\n{IMAGE}\n✅ Pulling image completed.\n")
    assert "\nDigest: sha256:" in log
    short = simulator.ask("deployment.readLogs", deploymentId=row["deploymentId"], tail=2)
    assert short == f"{IMAGE}\n✅ Pulling image completed.\n"


def test_a_waiting_job_has_no_row_and_leaves_the_old_status(simulator: Simulator) -> None:
    first, second = simulator.application(), simulator.application()
    simulator.deploy(second)
    simulator.close_gate("job")
    for application, title in ((first, "q-1"), (second, "q-2"), (second, "q-3")):
        simulator.do("application.deploy", applicationId=application["applicationId"], title=title)
    assert simulator.wait_at("job") == 1
    queue = simulator.ask("deployment.queueList")
    assert [(job["data"]["titleLog"], job["state"]) for job in queue] == [
        ("q-3", "waiting"),
        ("q-2", "waiting"),
        ("q-1", "active"),
    ]
    assert set(queue[0]) == {"id", "name", "data", "timestamp", "state", "servicePath"}
    assert set(queue[2]) == {*queue[0], "processedOn"}
    assert set(queue[0]["data"]) == {
        *("applicationId", "titleLog", "descriptionLog", "type", "applicationType", "server"),
    }
    assert simulator.status(second) == "done"
    assert len(simulator.ask("deployment.all", applicationId=second["applicationId"])) == 1
    simulator.do("application.cleanQueues", applicationId=second["applicationId"])
    assert [job["data"]["titleLog"] for job in simulator.ask("deployment.queueList")] == ["q-1"]
    assert simulator.status(first) == "running"
    simulator.open_gate("job")
    until(lambda: simulator.status(first) == "done")


def test_a_running_pull_can_be_watched(simulator: Simulator) -> None:
    simulator.turn(pull=30)
    application = simulator.application()
    simulator.do("application.deploy", applicationId=application["applicationId"])
    (row,) = until(lambda: simulator.ask("deployment.all", applicationId=application["applicationId"]))
    assert row["status"] == "running"
    assert simulator.log(row).startswith("Initializing deployment\n")
    assert simulator.state()["services"] == []


def test_ten_older_rows_are_kept(simulator: Simulator) -> None:
    application = simulator.application()
    for number in range(13):
        simulator.deploy(application, title=f"d-{number}")
    rows = simulator.ask("deployment.all", applicationId=application["applicationId"])
    assert [row["title"] for row in rows] == [f"d-{number}" for number in range(12, 1, -1)]


@pytest.mark.parametrize(
    ("made", "settings", "log"),
    [
        ({"image": None}, {}, "Initializing deployment\nDocker image not found\n"),
        (
            {"image": None, "sourceType": "github"},
            {},
            "Initializing deployment\nError: ❌ Github Provider not found\n\n",
        ),
        (
            {"image": "registry.invalid/x:1"},
            {},
            "Initializing deployment\nPulling registry.invalid/x:1\nError response from daemon: Get"
            ' "https://registry.invalid/v2/": dial tcp: lookup registry.invalid: no such host\n'
            "❌ Pulling image failed\n\n",
        ),
        (
            {"image": IMAGE},
            {"pull_error": "Error response from daemon: pull access denied"},
            f"Initializing deployment\nPulling {IMAGE}\n1: Pulling from registry.test/shop/web\n"
            "Error response from daemon: pull access denied\n❌ Pulling image failed\n\n",
        ),
    ],
)
def test_a_failing_deploy_tells_why_in_its_log_only(
    simulator: Simulator, made: dict[str, Any], settings: dict[str, Any], log: str
) -> None:
    simulator.turn(**settings)
    application = simulator.application(**made)
    row = simulator.deploy(application)
    assert (row["status"], row["errorMessage"], simulator.status(application)) == ("error", None, "error")
    assert row["finishedAt"]
    assert simulator.log(row) == f"{log}Error occurred ❌, check the logs for details.\n"
    assert simulator.state()["services"] == []


def test_an_engine_that_refuses_or_is_gone_fails_the_deploy_after_the_pull(simulator: Simulator) -> None:
    application = simulator.application()
    simulator.turn(engine_error="(HTTP code 500) server error - no suitable node ")
    log = simulator.log(simulator.deploy(application))
    assert log.endswith(
        "completed.\n(HTTP code 500) server error - no suitable node \nError occurred ❌, check the logs for details.\n"
    )
    simulator.turn(engine_error=None, engine="down")
    log = simulator.log(simulator.deploy(application))
    assert "\nconnect ENOENT /var/run/docker.sock\n" in log
    key = {"applicationId": application["applicationId"]}
    assert simulator.post("application.reload", **key, appName="x").json()["message"] == "Error reloading application"
    assert simulator.post("application.stop", **key).status_code == 200


def test_a_redeploy_does_not_pull_and_does_without_an_image(simulator: Simulator) -> None:
    application = simulator.application(image=None)
    row = simulator.deploy(application, "application.redeploy")
    assert (row["title"], row["status"]) == ("Rebuild deployment", "done")
    assert simulator.log(row) == "Initializing deployment\n"
    assert simulator.state()["services"][0]["image"] == "ERROR-NO-IMAGE-PROVIDED"


def test_environment_text_is_resolved_when_the_service_is_made(simulator: Simulator) -> None:
    made = simulator.do("project.create", name="shop", env="SHARED=1")
    application = simulator.application(made["environment"]["environmentId"])
    saved = {"buildArgs": None, "buildSecrets": None, "createEnvFile": False}
    key = {"applicationId": application["applicationId"]}
    text = "# comment\nA='a #b'\nP=${{project.SHARED}}\n"
    simulator.do("application.saveEnvironment", **key, **saved, env=text)
    assert simulator.deploy(application)["status"] == "done"
    assert simulator.state()["services"][0]["env"] == ["A=a #b", "P=1"]
    simulator.do("application.saveEnvironment", **key, **saved, env="P=${{project.NOPE}}")
    row = simulator.deploy(application)
    assert row["status"] == "error"
    assert "\nInvalid project environment variable: project.NOPE\nError occurred" in simulator.log(row)


def test_environment_text_is_parsed_as_was_recorded() -> None:
    text = (
        'SPACE=two words\nDQ="dq value"\nHASH=a#b\nHASH2=a #b\nEQ=a=b=c\nDOLLAR=$HOME\nEMPTY=\nexport EXP=1\n'
        'not a pair\nML="line1\nline2"\nBS=a\\nb\nDQN="a\\nb"\nDUP=1\nDUP=2\n lead= x \nlower.dot-key=1\n'
        'JSON={"a":"b"}\nA1="say \\"hi\\""\nA2=\'it\\\'s\'\nA7=`a#b "d" \'s\'`\nA8=\'a\\nb\'\nB2="x" # c\nB5=a\r\n'
        'B8=\'l1\nl2\'\nB9="unterminated\nC1=after\nC3: colon\nC5=a"b\nC6="${{SPACE}}"\nC8=${{open\n'
    )
    assert dotenv.resolve(text, None, None) == [
        *("SPACE=two words", "DQ=dq value", "HASH=a", "HASH2=a", "EQ=a=b=c", "DOLLAR=$HOME", "EMPTY=", "EXP=1"),
        *("ML=line1\nline2", "BS=a\\nb", "DQN=a\nb", "DUP=2", "lead=x", "lower.dot-key=1", 'JSON={"a":"b"}'),
        *('A1=say \\"hi\\"', "A2=it\\'s", "A7=a#b \"d\" 's'", "A8=a\\nb", "B2=x", "B5=a", "B8=l1\nl2"),
        *('B9="unterminated', "C1=after", "C3=colon", 'C5=a"b', "C6=two words", "C8=${{open"),
    ]


def test_stop_start_and_reload_scale_as_recorded(simulator: Simulator) -> None:
    application = simulator.application()
    key = {"applicationId": application["applicationId"]}
    missing = simulator.post("application.start", **key)
    name = application["appName"]
    assert missing.status_code == 500
    assert missing.json()["message"] == (
        f"Command execution failed: Command failed: docker service scale {name}=1 \nError: No such service: {name}\n"
    )
    simulator.do("application.update", **key, replicas=3)
    simulator.deploy(application)
    seen = [simulator.state()["services"][0]["replicas"]]
    for procedure in ("stop", "start", "reload"):
        simulator.do(f"application.{procedure}", **key, appName="x")
        seen.append(simulator.state()["services"][0]["replicas"])
    assert seen == [3, 0, 1, 3]


# Deleting.


def test_removing_a_project_leaves_services_and_routes(simulator: Simulator) -> None:
    project_id, environment_id = simulator.project()
    application = simulator.application(environment_id)
    key = {"applicationId": application["applicationId"]}
    simulator.do("domain.create", **key, host="left.example.test")
    simulator.deploy(application)
    until(lambda: simulator.visit("left.example.test").status_code == 200)
    assert simulator.do("project.remove", projectId=project_id)["projectId"] == project_id
    assert simulator.get("application.one", **key).status_code == 404
    state = simulator.state()
    assert [state[name] for name in ("projects", "environments", "applications", "domains")] == [[]] * 4
    assert [service["name"] for service in state["services"]] == [application["appName"]]
    assert simulator.visit("left.example.test").status_code == 200


def test_deleting_an_application_takes_everything_unless_the_engine_is_gone(simulator: Simulator) -> None:
    kept, gone = simulator.application(), simulator.application()
    for application in (kept, gone):
        simulator.do("domain.create", applicationId=application["applicationId"], host="d.example.test")
        simulator.deploy(application)
    deleted = simulator.do("application.delete", applicationId=gone["applicationId"])
    assert len(deleted["domains"]) == len(deleted["deployments"]) == 1
    assert simulator.post("application.delete", applicationId=gone["applicationId"]).status_code == 404
    simulator.turn(engine="down")
    simulator.do("application.delete", applicationId=kept["applicationId"])
    state = simulator.state()
    assert [service["name"] for service in state["services"]] == [kept["appName"]]
    assert [state[name] for name in ("applications", "domains", "deployments", "routes")] == [[]] * 4


def test_deleting_during_a_deploy_leaves_an_orphan(simulator: Simulator) -> None:
    application = simulator.application()
    simulator.close_gate("job")
    simulator.do("application.deploy", applicationId=application["applicationId"])
    assert simulator.wait_at("job") == 1
    simulator.do("application.delete", applicationId=application["applicationId"])
    assert simulator.ask("deployment.queueList")[0]["servicePath"] == {"href": None, "label": "—"}
    simulator.open_gate("job")
    until(lambda: simulator.state()["services"])
    assert simulator.state()["applications"] == []


# Containers and the router.


def test_the_router_goes_from_404_over_502_to_the_page(simulator: Simulator) -> None:
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
    simulator.do("application.stop", **key)
    assert simulator.visit(host).status_code == 502


def test_an_update_serves_the_old_image_until_the_new_one_is_up(simulator: Simulator) -> None:
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


def test_containers_are_listed_as_docker_lists_them(simulator: Simulator) -> None:
    application = simulator.application()
    name = application["appName"]
    assert simulator.ask("docker.getContainersByAppNameMatch", appName=name) == []
    check = {"Test": ["CMD", "true"], "Interval": 10}
    simulator.do("application.update", applicationId=application["applicationId"], healthCheckSwarm=check)
    simulator.close_gate("container")
    simulator.deploy(application)
    (container,) = simulator.ask("docker.getContainersByAppNameMatch", appName=name[:6])
    assert set(container) == {"containerId", "name", "state", "status"}
    assert container["name"].startswith(f"{name}.1.")
    assert container["state"] == "running"
    assert container["status"].endswith(" (health: starting)")
    (task,) = simulator.ask("docker.getServiceContainersByAppName", appName=name)
    assert set(task) == {"containerId", "name", "state", "currentState", "node", "error"}
    assert (task["name"], task["error"]) == (f"{name}.1", "Error:")
    assert task["currentState"].startswith("Starting ")
    simulator.open_gate("container")
    healthy = "docker.getContainersByAppNameMatch"
    until(lambda: simulator.ask(healthy, appName=name)[0]["status"].endswith(" (healthy)"))
    simulator.turn(container_status="Restarting (1) 3 seconds ago")
    (container,) = simulator.ask("docker.getContainersByAppNameMatch", appName=name)
    assert (container["state"], container["status"]) == ("restarting", "Restarting (1) 3 seconds ago")
    simulator.turn(engine="down")
    assert simulator.ask("docker.getContainersByAppNameMatch", appName=name) == []


# The server, and who asks.


def test_the_engine_tells_of_dokploys_own_services(simulator: Simulator) -> None:
    assert simulator.ask("settings.checkInfrastructureHealth")["traefik"] == {"status": "healthy"}
    simulator.turn(engine="down")
    for part in simulator.ask("settings.checkInfrastructureHealth").values():
        assert part == {"status": "unhealthy", "message": "connect ENOENT /var/run/docker.sock"}


def test_how_many_deploys_run_at_a_time_is_kept_and_held_to(tmp_path: Path) -> None:
    simulator = Simulator(tmp_path)
    for wrong in (0, 101, "many"):
        assert simulator.post("settings.updateBuildsConcurrency", buildsConcurrency=wrong).status_code == 400
    simulator.do("settings.updateBuildsConcurrency", buildsConcurrency=2)
    simulator.close()
    simulator = Simulator(tmp_path)
    assert simulator.ask("settings.getWebServerSettings")["buildsConcurrency"] == 2
    applications = [simulator.application() for _ in range(3)]
    simulator.close_gate("job")
    for application in applications:
        simulator.do("application.deploy", applicationId=application["applicationId"])
    simulator.gather_at("job", 2)
    assert [job["state"] for job in simulator.ask("deployment.queueList")] == ["waiting", "active", "active"]
    simulator.open_gate("job")
    until(lambda: not simulator.ask("deployment.queueList"))
    assert [simulator.status(application) for application in applications] == ["done"] * 3
    assert simulator.close() == 0


def test_a_member_sees_its_own_membership_and_may_not_ask_what_is_for_admins(simulator: Simulator) -> None:
    simulator.switches.post("keys", json={"key": "a-member's", "member": ["project"]}).raise_for_status()
    member = {"x-api-key": "a-member's"}
    foreign, _ = simulator.project()
    own = simulator.bare.post("/api/project.create", json={"name": "own"}, headers=member).json()
    [organization] = simulator.bare.get("/api/organization.all", headers=member).json()
    [membership] = organization["members"]
    assert (membership["role"], membership["accessedProjects"]) == ("member", [own["project"]["projectId"]])
    assert membership["userId"] != organization["ownerId"]
    [membership] = simulator.ask("organization.all")[0]["members"]
    assert (membership["role"], membership["accessedProjects"][0]) == ("owner", foreign)
    assert simulator.bare.get("/api/settings.getWebServerSettings", headers=member).status_code == 200
    refused = simulator.bare.get("/api/settings.checkInfrastructureHealth", headers=member)
    assert (refused.status_code, refused.json()["message"]) == (401, "UNAUTHORIZED")
    assert refused.json()["data"]["path"] == "settings.checkInfrastructureHealth"
    changed = {"json": {"buildsConcurrency": 2}, "headers": member}
    assert simulator.bare.post("/api/settings.updateBuildsConcurrency", **changed).status_code == 401
    assert simulator.ask("settings.getWebServerSettings")["buildsConcurrency"] == 1


# Switches.


def test_the_switches_are_not_there_without_their_key(tmp_path: Path, simulator: Simulator) -> None:
    unknown = simulator.bare.get("/unknown")
    for headers in ({}, {"X-Simulator-Key": "wrong"}):
        answer = simulator.bare.get("/_simulator/state", headers=headers)
        assert (answer.status_code, answer.content) == (unknown.status_code, unknown.content)
    locked = Simulator(tmp_path / "locked", switch_key="")
    for headers in ({}, {"X-Simulator-Key": ""}):
        answer = locked.bare.get("/_simulator/state", headers=headers)
        assert (answer.status_code, answer.content) == (unknown.status_code, unknown.content)
    locked.close()


def test_the_state_shows_everything(simulator: Simulator) -> None:
    simulator.project()
    assert set(simulator.state()) == {
        *("projects", "environments", "applications", "domains", "deployments", "services", "routes", "queue"),
        *("calls", "faults", "gates", "settings"),
    }
    assert simulator.state()["calls"] == {"project.create": 1}


def test_a_gate_holds_a_call_before_it_is_carried_out_or_its_answer_after(simulator: Simulator) -> None:
    with ThreadPoolExecutor() as pool:
        for name, carried_out in (("project.create", 0), ("project.create:answer", 2)):
            simulator.close_gate(name)
            held = [pool.submit(simulator.post, "project.create", name="x") for _ in range(2)]
            simulator.gather_at(name, 2)
            assert len(simulator.state()["projects"]) - (2 if carried_out else 0) == carried_out
            assert simulator.state()["gates"] == {name: 2}
            simulator.open_gate(name)
            assert [answer.result().status_code for answer in held] == [200, 200]
    assert simulator.switches.put("gates/nope").status_code == 400


def test_a_call_whose_client_has_gone_is_carried_out(simulator: Simulator) -> None:
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
def test_a_fault_twists_one_answer(simulator: Simulator, what: str, status: int, done: bool) -> None:
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


def test_an_answer_can_stay_away_dribble_or_flood(simulator: Simulator) -> None:
    simulator.fault("project.all", "hang")
    with pytest.raises(httpx.ReadTimeout):
        simulator.api.get("project.all", timeout=0.2)
    simulator.fault("project.all", "slow_bytes", seconds=0.01)
    with simulator.api.stream("GET", "project.all") as answer:
        assert [len(piece) for piece in answer.iter_raw()] == [1, 1]
    simulator.fault("project.all", "huge")
    assert len(simulator.get("project.all").content) > 50_000_000


def test_a_database_that_is_down_looks_like_a_wrong_key(simulator: Simulator) -> None:
    simulator.turn(database="down")
    assert simulator.get("project.all").json() == {"message": "Unauthorized"}
    assert simulator.bare.get("/api/trpc/settings.health").status_code == 500
    assert simulator.bare.get("/api/health").json() == {"ok": True}
    simulator.turn(database="up")
    assert simulator.ask("project.all") == []


def test_each_call_costs_two_of_a_limited_key(simulator: Simulator) -> None:
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


def test_a_fault_for_every_call_spares_the_health_check(simulator: Simulator) -> None:
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


def test_settings_that_make_no_sense_are_refused(simulator: Simulator) -> None:
    for wrong in ({"pull": -1}, {"nope": 1}, {"database": "sideways"}, {"infrastructure": "down"}, {"version": None}):
        assert simulator.switches.post("settings", json=wrong).status_code == 400
    assert simulator.switches.post("faults", json={"procedure": "nope", "what": "hang"}).status_code == 400
    assert simulator.switches.post("faults", json={"procedure": "*", "what": "nope"}).status_code == 400
