"""`manage.py` at the terminal: start, second start, ports in use, Ctrl-C, and the `deploy` command."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..processes import ROOT, Portal, until


def run(*command: str, env: dict[str, str], seconds: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "manage.py", *command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=seconds
    )


def test_the_first_start_prints_address_and_login_and_follows_a_sample_deployment(tmp_path: Path) -> None:
    portal = Portal(tmp_path)
    with portal.output.open("w") as output:
        command = [sys.executable, "manage.py", "serve"]
        portal.process = subprocess.Popen(command, cwd=ROOT, env=portal.env, stdout=output, stderr=output, text=True)
    text = until(lambda: "Now deploy your own" in (said := portal.output.read_text()) and said, 40)
    assert f"http://localhost:{portal.port}/" in text
    password = re.search(r"user operator, password (\S+)", text)
    assert password
    for phase in ("creating_project", "deploying", "verifying_health", "completed"):
        assert phase in text
    assert portal.router.get("/", headers={"Host": "hello.localhost"}).status_code == 200
    page = portal.http.get("/admin/login/")
    token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page.text)
    assert token
    form = {"username": "operator", "password": password[1], "csrfmiddlewaretoken": token[1], "next": "/admin/"}
    answer = portal.http.post("/admin/login/", data=form, headers={"Referer": f"{portal.url}/admin/login/"})
    assert answer.status_code == 302
    assert portal.http.get("/admin/").status_code == 200
    portal.close()


def test_the_second_start_deploys_no_sample(own_portal: Any) -> None:
    portal = own_portal().start()
    portal.finished(portal.deploy("mine"))
    portal.stop()
    with portal.output.open("w") as output:
        command = [sys.executable, "manage.py", "serve"]
        portal.process = subprocess.Popen(command, cwd=ROOT, env=portal.env, stdout=output, stderr=output, text=True)
    until(portal.answers, 30)
    assert [project["name"] for project in portal.dokploy()["projects"]] == ["mine"]


def test_ctrl_c_ends_both_processes_cleanly(own_portal: Any) -> None:
    portal = own_portal().start()
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(portal.process.pid)], capture_output=True, text=True
    ).stdout.split()
    assert len(children) == 1
    assert portal.stop(signal.SIGINT) == 0
    assert portal.ports_are_free()
    assert not Path(f"/proc/{children[0]}").exists()
    assert "Traceback" not in portal.output.read_text()


def test_after_kill_9_the_next_start_finds_the_ports_free(own_portal: Any) -> None:
    portal = own_portal().start()
    portal.kill()
    portal.start()
    assert portal.http.get("/").status_code == 200


def test_a_port_in_use_is_reported_without_a_traceback(tmp_path: Path) -> None:
    portal = Portal(tmp_path)
    for offset, what in [(0, "portal"), (1, "simulator"), (2, "router")]:
        with socket.socket() as taken:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(("127.0.0.1", portal.port + offset))
            taken.listen()
            answer = run("serve", env=portal.env)
        assert answer.returncode == 2
        assert f"Port {portal.port + offset}, for the {what}" in answer.stderr
        assert "Traceback" not in answer.stderr
    portal.close()


def test_a_second_portal_on_the_same_data_is_refused(own_portal: Any) -> None:
    portal = own_portal().start()
    answer = run("serve", env={**portal.env, "PORT": str(portal.port + 500)})
    assert answer.returncode == 2
    assert "already running" in answer.stderr


def test_a_worker_on_sqlite_is_refused(tmp_path: Path) -> None:
    answer = run("worker", env={**os.environ, "DATA_DIR": str(tmp_path), "DATABASE_URL": ""})
    assert answer.returncode == 2
    assert "serve" in answer.stderr


def test_the_deploy_command_exits_with_0_for_success_1_for_failure_and_2_for_a_refusal(own_portal: Any) -> None:
    portal = own_portal().start()
    live = run("deploy", "from-terminal", env=portal.env)
    assert live.returncode == 0, live.stderr
    assert "Live: http://from-terminal.localhost" in live.stdout
    assert [line for line in live.stdout.splitlines() if "verifying_health" in line]
    failed = run("deploy", "wont-work", "--template", "broken", env=portal.env)
    assert failed.returncode == 1
    assert "REGISTRY_UNREACHABLE" in failed.stdout
    refused = run("deploy", "Not A Name", env=portal.env)
    assert refused.returncode == 2
    assert "lower-case" in refused.stderr


def test_an_invalid_setting_is_reported_at_the_start(tmp_path: Path) -> None:
    portal = Portal(tmp_path, STACK_HEALTH_TIMEOUT_SECONDS="soon")
    answer = run("serve", env=portal.env)
    assert answer.returncode != 0
    assert "STACK_HEALTH_TIMEOUT_SECONDS is 'soon': it must be a number." in answer.stderr
    portal.close()


def test_a_stacks_url_has_the_router_port_derived_from_port(own_portal: Any) -> None:
    portal = own_portal().start()
    id = portal.deploy("moved")
    state = portal.finished(id)
    assert state["url"] == f"http://moved.localhost:{portal.port + 2}"


def test_the_deploy_command_is_refused_without_a_portal_or_with_another_port(own_portal: Any) -> None:
    portal = own_portal().start()
    other = run("deploy", "elsewhere", env={**portal.env, "PORT": str(portal.port + 500)})
    assert other.returncode == 2
    assert f"The portal runs on port {portal.port}" in other.stderr
    portal.stop()
    nobody = run("deploy", "nobody-there", env=portal.env)
    assert nobody.returncode == 2
    assert "make run" in nobody.stderr
