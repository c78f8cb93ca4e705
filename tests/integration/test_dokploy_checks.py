"""`manage.py check --tag dokploy` against the simulator, and against servers that are not Dokploy."""

import asyncio
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from deployments import dokploy_checks

from ..processes import KEY, ROOT, Portal, Simulator
from .test_probe import certificate

Result = tuple[int, set[str], str]
"""The exit code, the ids of the messages, and the output."""
ALL_GOOD = {"I101", "I102", "I103", "I104"}


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Result]:
    """Return a function that runs `manage.py check`."""

    def run(url: Any, *options: str, key: str = KEY) -> Result:
        env = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "REDIS_URL")}
        env |= {"DATA_DIR": str(tmp_path), "DOKPLOY_URL": address(url), "DOKPLOY_API_KEY": key}
        env |= {"STACK_IMAGE": "registry.test/shop/web:1", "STACK_DOMAIN_SUFFIX": "apps.test"}
        command = [sys.executable, "manage.py", "check", *options]
        process = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
        output = process.stdout + process.stderr
        assert "Traceback" not in output
        assert not key or key not in output, "the output must not contain the key"
        return process.returncode, ids_of(output), output

    return run


@pytest.fixture
def check(run: Callable[..., Result]) -> Callable[..., Result]:
    return lambda url, *options, **more: run(url, "--tag", "dokploy", *options, **more)


def ids_of(output: str) -> set[str]:
    return set(re.findall(r"\(deployportal\.(\w+)\)", output))


def address(url: Any) -> str:
    return f"http://127.0.0.1:{url.port}" if hasattr(url, "port") else str(url)


# -- a server without errors -------------------------------------------------------------------------------------------


def test_correct_settings_are_reported_too(simulator: Simulator, check: Any) -> None:
    code, ids, output = check(simulator)
    assert (code, ids) == (0, ALL_GOOD)
    assert "Dokploy is v0.30.2, the version that the portal was made for." in output
    assert "roles of its user: owner" in output
    assert "one deployment at a time" in output


def test_the_number_of_concurrent_deployments_is_reported(simulator: Simulator, check: Any) -> None:
    simulator.do("settings.updateBuildsConcurrency", buildsConcurrency=4)
    code, ids, output = check(simulator)
    assert (code, ids) == (0, ALL_GOOD)
    assert "4 deployments at a time" in output


def test_the_demo_checks_its_simulator(portal: Portal) -> None:
    command = [sys.executable, "manage.py", "check", "--tag", "dokploy"]
    process = subprocess.run(command, cwd=ROOT, env=portal.env, capture_output=True, text=True, timeout=60)
    assert (process.returncode, ids_of(process.stderr)) == (0, ALL_GOOD)


# -- the key -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def new_key(simulator: Simulator) -> Callable[..., str]:
    """Return a function that creates a key at the simulator and returns it."""

    def create(**options: Any) -> str:
        simulator.switches.post("keys", json={"key": "key-canary-of-another", **options}).raise_for_status()
        return "key-canary-of-another"

    return create


def test_a_members_key_is_an_error(simulator: Simulator, check: Any, new_key: Any) -> None:
    code, ids, output = check(simulator, key=new_key(role="member"))
    assert (code, ids) == (1, {"E109", "I101", "I103"})
    assert "roles of its user: member" in output


def test_a_wrong_key_is_an_error_and_ends_the_check(simulator: Simulator, check: Any) -> None:
    code, ids, output = check(simulator, key="key-canary-that-is-wrong")
    assert (code, ids) == (1, {"E107"})
    assert "wrong or revoked, or its rate limit is reached" in output


@pytest.mark.parametrize("limit", [10, 9, 5])
def test_the_rate_limit_of_a_key_is_noticed(simulator: Simulator, check: Any, new_key: Any, limit: int) -> None:
    """Ten is the limit of a key that was created without rateLimitEnabled. Nine and five are reached during a call."""
    code, ids, output = check(simulator, key=new_key(rate_limit=limit))
    assert (code, ids & {"E107", "E108", "I101"}) == (1, {"E108", "I101"})
    assert "rateLimitEnabled:false" in output


def test_a_key_whose_rate_limit_is_already_reached_looks_like_a_wrong_one(
    simulator: Simulator, check: Any, new_key: Any
) -> None:
    code, ids, output = check(simulator, key=new_key(rate_limit=0))
    assert (code, ids) == (1, {"E107"})
    assert "rateLimitEnabled:false" in output


# -- the server --------------------------------------------------------------------------------------------------------


def test_a_database_that_is_down_is_not_taken_for_a_wrong_key(simulator: Simulator, check: Any) -> None:
    simulator.turn(database="down")
    code, ids, _ = check(simulator)
    assert (code, ids) == (1, {"E106"})


def test_a_container_engine_that_does_not_answer_is_an_error(simulator: Simulator, check: Any) -> None:
    simulator.turn(engine="down")
    code, ids, output = check(simulator)
    assert (code, ids) == (1, {"E111", *ALL_GOOD} - {"I104"})
    assert "connect ENOENT /var/run/docker.sock" in output


def test_a_missing_router_is_a_warning_and_fails_if_warnings_fail(simulator: Simulator, check: Any) -> None:
    simulator.turn(infrastructure="missing")
    code, ids, output = check(simulator)
    assert (code, ids) == (0, {"W102", *ALL_GOOD} - {"I104"})
    assert "dokploy-traefik not found" in output
    assert check(simulator, "--fail-level", "WARNING")[0] == 1


@pytest.mark.parametrize(
    ("version", "id", "text"),
    [
        ("v0.29.13", "I101", "Dokploy is v0.29.13; the portal was made for v0.30.2."),
        ("v0.31.0", "I101", "newer than v0.30.2"),
        ("canary", "W101", "'canary'"),
    ],
)
def test_the_version_is_checked(simulator: Simulator, check: Any, version: str, id: str, text: str) -> None:
    simulator.turn(version=version)
    code, ids, output = check(simulator)
    assert (code, ids) == (int(id[0] == "E"), {id, *ALL_GOOD - {"I101"}})
    assert text in " ".join(output.split())


@pytest.mark.parametrize("version", ["v0.28.8", "v0.29.12"])
def test_a_version_that_is_too_old_is_an_error_and_ends_the_check(
    simulator: Simulator, check: Any, version: str
) -> None:
    simulator.turn(version=version)
    code, ids, output = check(simulator)
    assert (code, ids) == (1, {"E110"})
    assert "Update it to v0.29.13 or later." in " ".join(output.split())


def test_an_error_halfway_is_reported_after_the_earlier_results(simulator: Simulator, check: Any) -> None:
    simulator.fault("settings.getWebServerSettings", "error500")
    code, ids, _ = check(simulator)
    assert (code, ids) == (1, {"I101", "E105"})


# -- other servers -----------------------------------------------------------------------------------------------------

Answer = tuple[int, str]
HEALTHY = {"health": (200, '{"ok":true}'), "trpc/settings.health": (200, "{}")}


class Server(ThreadingHTTPServer):
    """Responds to each path below /api/ with a given status and body, where `{key}` stands for the sent key."""

    def __init__(self, answers: dict[str, Answer], otherwise: Answer, tls: ssl.SSLContext | None = None) -> None:
        self.answers, self.otherwise = answers, otherwise
        super().__init__(("127.0.0.1", 0), Handler)
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.port = self.server_address[1]
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a client that closes the connection because of the certificate."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        status, text = self.server.answers.get(self.path.removeprefix("/api/"), self.server.otherwise)
        body = text.replace("{key}", self.headers["x-api-key"]).encode()
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    running: list[Server] = []

    def start(*args: Any, **options: Any) -> Server:
        running.append(Server(*args, **options))
        return running[-1]

    yield start
    for server in running:
        server.shutdown()
        server.server_close()
        server.thread.join()


@pytest.mark.parametrize(
    ("answer", "id", "text"),
    [
        ((404, "<html>404 page not found</html>"), "E104", "is not Dokploy"),
        ((200, "<html>hello</html>"), "E104", "is not Dokploy"),
        ((401, "who are you?"), "E104", "is not Dokploy"),
        ((308, "https://dokploy.example.org/"), "E104", "leads to a redirect"),
        ((502, "<html>502 Bad Gateway</html>"), "E105", "502"),
    ],
)
def test_a_server_that_is_not_dokploy_differs_from_one_that_is_not_ready(
    serve: Any, check: Any, answer: Answer, id: str, text: str
) -> None:
    code, ids, output = check(serve({}, answer))
    assert (code, ids) == (1, {id})
    assert text in output


@pytest.mark.parametrize(("roles", "is_admin"), [("owner member", True), ("member auditor", False)])
def test_a_key_acts_as_an_admin_if_dokploy_lets_it_call_an_admins_procedure(
    serve: Any, check: Any, roles: str, is_admin: bool
) -> None:
    """Dokploy does not tell to which of its user's organizations a key belongs."""
    members = ", ".join(f'{{"members": [{{"role": "{role}"}}]}}' for role in roles.split())
    healthy = '{"status": "healthy", "message": ""}'
    answers = {
        **HEALTHY,
        "settings.getDokployVersion": (200, '"v0.30.2"'),
        "organization.all": (200, f"[{members}]"),
        "settings.getWebServerSettings": (200, '{"sshPrivateKey": "canary"}'),
    }
    if is_admin:
        answers["settings.checkInfrastructureHealth"] = (200, f'{{"postgres": {healthy}, "traefik": {healthy}}}')
    refusal = '{"message": "UNAUTHORIZED", "data": {"path": "settings.checkInfrastructureHealth"}}'
    code, ids, output = check(serve(answers, (401, refusal)))
    assert (code, "E109" in ids) == (int(not is_admin), not is_admin)
    assert "canary" not in output


@pytest.mark.parametrize(
    ("engine", "id"),
    [("(HTTP code 503) unexpected - This node is not a swarm manager. ", "E111"), ("Container is not running", "W102")],
)
def test_an_engine_that_cannot_run_services_differs_from_a_router_that_stopped(
    serve: Any, check: Any, engine: str, id: str
) -> None:
    part = f'{{"status": "unhealthy", "message": "{engine}"}}'
    answers = {
        **HEALTHY,
        "settings.getDokployVersion": (200, '"v0.30.2"'),
        "organization.all": (200, '[{"members": [{"role": "admin"}]}]'),
        "settings.getWebServerSettings": (200, '{"buildsConcurrency": 2}'),
        "settings.checkInfrastructureHealth": (200, f'{{"postgres": {part}, "traefik": {part}}}'),
    }
    code, ids, output = check(serve(answers, (404, "{}")))
    assert (code, ids) == (int(id[0] == "E"), {id, *ALL_GOOD} - {"I104"})
    assert engine.strip() in output


def test_a_missing_permission_is_reported(serve: Any, check: Any) -> None:
    refusal = '{"message": "unauthorized to access", "data": {"path": "settings.getWebServerSettings"}}'
    answers = {
        **HEALTHY,
        "settings.getDokployVersion": (200, '"v0.30.2"'),
        "organization.all": (200, '[{"members": [{"role": "auditor"}]}]'),
    }
    code, ids, output = check(serve(answers, (401, refusal)))
    assert (code, ids) == (1, {"I101", "E109"})
    assert "settings.getWebServerSettings" in output


def test_a_key_that_the_server_repeats_is_not_shown(serve: Any, check: Any) -> None:
    answers = {**HEALTHY, "settings.getDokployVersion": (200, '"{key}"')}
    code, ids, output = check(
        serve(answers, (500, '{"message": "{key}", "data": {"path": "{key}"}}')), key="key-canary"
    )
    assert (code, ids) == (1, {"W101", "E105"})
    assert "'***'" in output


# -- connection errors -------------------------------------------------------------------------------------------------


def test_a_closed_port_is_reported_with_host_and_port(check: Any) -> None:
    with socket.socket() as bound:  # it does not listen
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        code, ids, output = check(f"http://127.0.0.1:{port}")
    assert (code, ids) == (1, {"E102"})
    assert f"127.0.0.1, port {port}" in output
    assert "Connection refused" in output


async def test_a_name_that_is_not_in_the_dns_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    async def getaddrinfo(*args: Any, **options: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    [message] = await dokploy_checks.examine("https://dokploy.example.org", KEY)
    assert message.id == "deployportal.E101"
    assert "dokploy.example.org" in message.msg


async def test_a_host_that_drops_connections_is_reported_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dokploy_checks, "CONNECT_SECONDS", 0.2)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:  # Linux drops further connections when the listener's queue is full
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        [message] = await dokploy_checks.examine(f"http://127.0.0.1:{listener.getsockname()[1]}", KEY)
        for filler in fillers:
            filler.close()
    assert message.id == "deployportal.E102"
    assert "firewall" in str(message.hint)


def test_an_insecure_connection_is_reported(serve: Any, check: Any, tmp_path: Path) -> None:
    tls, _ = certificate(tmp_path, "dokploy.test")
    server = serve(HEALTHY, (404, ""), tls=tls)
    code, ids, output = check(f"https://127.0.0.1:{server.port}")
    assert (code, ids) == (1, {"E103"})
    assert "self-signed certificate" in output
    plain = serve(HEALTHY, (404, ""))
    code, ids, output = check(f"https://127.0.0.1:{plain.port}")
    assert (code, ids) == (1, {"E103"})
    assert "the server has no TLS" in output


# -- the tag -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["--deploy"], ["--list-tags"], ["--tag", "security"], ["deployments"]])
def test_without_the_tag_the_check_opens_no_connection(run: Any, options: list[str]) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.setblocking(False)
        code, ids, output = run(f"http://127.0.0.1:{server.getsockname()[1]}", *options)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert code == 0
    assert not {id for id in ids if id[1:].startswith("1")}
    assert "dokploy" in output or options != ["--list-tags"]


def test_wrong_settings_are_reported_without_asking_the_server(serve: Any, check: Any) -> None:
    server = serve({}, (404, ""))
    assert check(server, key="")[:2] == (1, {"E001"})
    assert check(server, key="sch\u00fcssel-canary")[:2] == (1, {"E015"})
    assert check(f"http://127.0.0.1:{server.port}/api")[:2] == (1, {"E002"})


def test_the_short_option_and_further_tags_are_accepted(simulator: Simulator, run: Any) -> None:
    assert run(simulator, "-t", "dokploy", "-t", "models")[:2] == (0, ALL_GOOD)
