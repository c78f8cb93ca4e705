"""`manage.py check --tag dokploy`: the real command asks the simulator, or a server that is none."""

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
from ..unit.test_probe import certificate

Found = tuple[int, set[str], str]
GOOD = {"I101", "I102", "I103", "I104"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    running = Simulator(tmp_path_factory.mktemp("dokploy"))
    yield running
    assert running.close() == 0


@pytest.fixture
def simulator(shared: Simulator) -> Iterator[Simulator]:
    """Yield the shared process; afterwards its switches are reset."""
    before = shared.switches.get("settings").json()
    yield shared
    shared.turn(**before)
    shared.switches.delete("keys").raise_for_status()
    shared.do("settings.updateBuildsConcurrency", buildsConcurrency=1)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Found]:
    """Run `manage.py check`; return its exit code, the ids of its messages, and its output."""

    def run(url: Any, *options: str, key: str = KEY) -> Found:
        env = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "REDIS_URL")}
        env |= {"DATA_DIR": str(tmp_path), "DOKPLOY_URL": address(url), "DOKPLOY_API_KEY": key}
        env |= {"STACK_IMAGE": "registry.test/shop/web:1", "STACK_DOMAIN_SUFFIX": "apps.test"}
        command = [sys.executable, "manage.py", "check", *options]
        ended = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
        said = ended.stdout + ended.stderr
        assert "Traceback" not in said
        assert not key or key not in said, "the key is shown"
        return ended.returncode, ids_of(said), said

    return run


@pytest.fixture
def check(run: Callable[..., Found]) -> Callable[..., Found]:
    return lambda url, *options, **more: run(url, "--tag", "dokploy", *options, **more)


def ids_of(said: str) -> set[str]:
    return set(re.findall(r"\(deployportal\.(\w+)\)", said))


def address(url: Any) -> str:
    return f"http://127.0.0.1:{url.port}" if hasattr(url, "port") else str(url)


# -- a server that is as it should be ----------------------------------------------------------------------------------


def test_what_is_good_is_said_too(simulator: Simulator, check: Any) -> None:
    code, ids, said = check(simulator)
    assert (code, ids) == (0, GOOD)
    assert "Dokploy is v0.30.2, the version that the portal was made for." in said
    assert "roles of its user: owner" in said
    assert "one deployment at a time" in said


def test_how_many_deployments_run_at_a_time_is_said(simulator: Simulator, check: Any) -> None:
    simulator.do("settings.updateBuildsConcurrency", buildsConcurrency=4)
    code, ids, said = check(simulator)
    assert (code, ids) == (0, GOOD)
    assert "4 deployments at a time" in said


def test_in_the_demo_it_is_the_simulator_that_is_asked(portal: Portal) -> None:
    command = [sys.executable, "manage.py", "check", "--tag", "dokploy"]
    ended = subprocess.run(command, cwd=ROOT, env=portal.env, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ids_of(ended.stderr)) == (0, GOOD)


# -- the key -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def other(simulator: Simulator) -> Callable[..., str]:
    def make(**more: Any) -> str:
        simulator.switches.post("keys", json={"key": "key-canary-of-another", **more}).raise_for_status()
        return "key-canary-of-another"

    return make


def test_a_members_key_is_an_error(simulator: Simulator, check: Any, other: Any) -> None:
    code, ids, said = check(simulator, key=other(member=["project", "service"]))
    assert (code, ids) == (1, {"E109", "I101", "I103"})
    assert "roles of its user: member" in said


def test_a_wrong_key_is_an_error_and_nothing_else_is_asked(simulator: Simulator, check: Any) -> None:
    code, ids, said = check(simulator, key="key-canary-that-is-wrong")
    assert (code, ids) == (1, {"E107"})
    assert "wrong or revoked, or its rate limit is reached" in said


@pytest.mark.parametrize("limit", [10, 9, 5])
def test_a_limited_key_is_known_by_its_end(simulator: Simulator, check: Any, other: Any, limit: int) -> None:
    """Ten is the limit of a key that was made without saying rateLimitEnabled; nine and five end within a call."""
    code, ids, said = check(simulator, key=other(rate_limit=limit))
    assert (code, ids & {"E107", "E108", "I101"}) == (1, {"E108", "I101"})
    assert "rateLimitEnabled:false" in said


def test_a_limited_key_that_is_used_up_already_may_also_be_a_wrong_one(
    simulator: Simulator, check: Any, other: Any
) -> None:
    code, ids, said = check(simulator, key=other(rate_limit=0))
    assert (code, ids) == (1, {"E107"})
    assert "rateLimitEnabled:false" in said


# -- the server --------------------------------------------------------------------------------------------------------


def test_a_database_that_is_down_is_no_wrong_key(simulator: Simulator, check: Any) -> None:
    simulator.turn(database="down")
    code, ids, _ = check(simulator)
    assert (code, ids) == (1, {"E106"})


def test_an_engine_that_is_gone_is_an_error(simulator: Simulator, check: Any) -> None:
    simulator.turn(engine="down")
    code, ids, said = check(simulator)
    assert (code, ids) == (1, {"E111", *GOOD} - {"I104"})
    assert "connect ENOENT /var/run/docker.sock" in said


def test_a_router_that_is_missing_is_a_warning_which_fails_where_warnings_do(simulator: Simulator, check: Any) -> None:
    simulator.turn(infrastructure="missing")
    code, ids, said = check(simulator)
    assert (code, ids) == (0, {"W102", *GOOD} - {"I104"})
    assert "dokploy-traefik not found" in said
    assert check(simulator, "--fail-level", "WARNING")[0] == 1


@pytest.mark.parametrize(
    ("version", "id", "says"),
    [
        ("v0.28.8", "E110", "anyone can become an administrator"),
        ("v0.29.12", "E110", "Update it to v0.29.13 or later."),
        ("v0.29.13", "I101", "Dokploy is v0.29.13; the portal was made for v0.30.2."),
        ("v0.31.0", "I101", "newer than v0.30.2"),
        ("canary", "W101", "'canary'"),
    ],
)
def test_a_version_is_judged(simulator: Simulator, check: Any, version: str, id: str, says: str) -> None:
    simulator.turn(version=version)
    code, ids, said = check(simulator)
    assert (code, ids) == (int(id[0] == "E"), {id, *GOOD - {"I101"}})
    assert says in " ".join(said.split())


def test_an_answer_that_fails_halfway_is_an_outage_after_what_was_found(simulator: Simulator, check: Any) -> None:
    simulator.fault("settings.getWebServerSettings", "error500")
    code, ids, _ = check(simulator)
    assert (code, ids) == (1, {"I101", "E105"})


# -- no Dokploy --------------------------------------------------------------------------------------------------------

Answer = tuple[int, str]
HEALTHY = {"health": (200, '{"ok":true}'), "trpc/settings.health": (200, "{}")}


class Server(ThreadingHTTPServer):
    """Answers each path below /api/ as it is told; `{key}` in an answer stands for the key that it was sent."""

    def __init__(self, answers: dict[str, Answer], otherwise: Answer, tls: ssl.SSLContext | None = None) -> None:
        self.answers, self.otherwise = answers, otherwise
        super().__init__(("127.0.0.1", 0), Handler)
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.port = self.server_address[1]
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Disconnect as a client does that rejects the certificate."""


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

    def start(*args: Any, **more: Any) -> Server:
        running.append(Server(*args, **more))
        return running[-1]

    yield start
    for server in running:
        server.shutdown()
        server.server_close()
        server.thread.join()


@pytest.mark.parametrize(
    ("answer", "id", "says"),
    [
        ((404, "<html>404 page not found</html>"), "E104", "is not Dokploy"),
        ((200, "<html>hello</html>"), "E104", "is not Dokploy"),
        ((401, "who are you?"), "E104", "is not Dokploy"),
        ((308, "https://dokploy.example.org/"), "E104", "leads to a redirect"),
        ((502, "<html>502 Bad Gateway</html>"), "E105", "502"),
    ],
)
def test_what_is_not_dokploy_or_not_yet_is_told_apart(
    serve: Any, check: Any, answer: Answer, id: str, says: str
) -> None:
    code, ids, said = check(serve({}, answer))
    assert (code, ids) == (1, {id})
    assert says in said


def test_an_older_dokploy_that_cannot_tell_of_its_engine_is_judged_by_the_rest(serve: Any, check: Any) -> None:
    answers = {
        **HEALTHY,
        "settings.getDokployVersion": (200, '"v0.28.8"'),
        "organization.all": (200, '[{"members": [{"role": "owner"}]}]'),
        "settings.getWebServerSettings": (200, '{"sshPrivateKey": "canary"}'),
    }
    code, ids, said = check(serve(answers, (404, '{"message":"Not found","code":"NOT_FOUND"}')))
    assert (code, ids) == (1, {"E110", "I102", "I103", "W103"})
    assert "canary" not in said
    answers["organization.all"] = (200, '[{"members": [{"role": "owner"}]}, {"members": [{"role": "member"}]}]')
    code, ids, said = check(serve(answers, (404, "{}")))
    assert "E109" in ids, "as whom the key acts is not known, and it may be as the member"


@pytest.mark.parametrize(
    ("engine", "id"),
    [("(HTTP code 503) unexpected - This node is not a swarm manager. ", "E111"), ("Container is not running", "W102")],
)
def test_an_engine_that_cannot_run_services_is_told_from_a_router_that_stopped(
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
    code, ids, said = check(serve(answers, (404, "{}")))
    assert (code, ids) == (int(id[0] == "E"), {id, *GOOD} - {"I104"})
    assert engine.strip() in said


def test_a_permission_that_is_missing_is_said(serve: Any, check: Any) -> None:
    refusal = '{"message": "unauthorized to access", "data": {"path": "settings.getWebServerSettings"}}'
    answers = {
        **HEALTHY,
        "settings.getDokployVersion": (200, '"v0.30.2"'),
        "organization.all": (200, '[{"members": [{"role": "auditor"}]}]'),
    }
    code, ids, said = check(serve(answers, (401, refusal)))
    assert (code, ids) == (1, {"I101", "E109"})
    assert "settings.getWebServerSettings" in said


def test_a_server_that_repeats_the_key_does_not_get_it_shown(serve: Any, check: Any) -> None:
    answers = {**HEALTHY, "settings.getDokployVersion": (200, '"{key}"')}
    code, ids, said = check(serve(answers, (500, '{"message": "{key}", "data": {"path": "{key}"}}')), key="key-canary")
    assert (code, ids) == (1, {"W101", "E105"})
    assert "'***'" in said


# -- no connection -----------------------------------------------------------------------------------------------------


def test_nobody_listening_is_said_with_host_and_port(check: Any) -> None:
    with socket.socket() as taken:  # bound, but it does not listen
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        code, ids, said = check(f"http://127.0.0.1:{port}")
    assert (code, ids) == (1, {"E102"})
    assert f"127.0.0.1, port {port}" in said
    assert "Connection refused" in said


async def test_a_name_that_is_not_in_the_dns_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    async def getaddrinfo(*args: Any, **more: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    [found] = await dokploy_checks.examine("https://dokploy.example.org", KEY)
    assert found.id == "deployportal.E101"
    assert "dokploy.example.org" in found.msg


async def test_a_host_that_swallows_connections_is_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dokploy_checks, "CONNECT_SECONDS", 0.2)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        crowd = [socket.socket() for _ in range(4)]
        for one in crowd:  # once the queue of the listener is full, Linux drops what else wants to connect
            one.setblocking(False)
            one.connect_ex(deaf.getsockname())
        [found] = await dokploy_checks.examine(f"http://127.0.0.1:{deaf.getsockname()[1]}", KEY)
        for one in crowd:
            one.close()
    assert found.id == "deployportal.E102"
    assert "firewall" in str(found.hint)


def test_a_connection_that_is_not_safe_is_said(serve: Any, check: Any, tmp_path: Path) -> None:
    tls, _ = certificate(tmp_path, "dokploy.test")
    server = serve(HEALTHY, (404, ""), tls=tls)
    code, ids, said = check(f"https://127.0.0.1:{server.port}")
    assert (code, ids) == (1, {"E103"})
    assert "self-signed certificate" in said
    plain = serve(HEALTHY, (404, ""))
    code, ids, said = check(f"https://127.0.0.1:{plain.port}")
    assert (code, ids) == (1, {"E103"})
    assert "the server has no TLS" in said


# -- only when it is asked for -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["--deploy"], ["--list-tags"], ["--tag", "security"], ["deployments"]])
def test_without_the_tag_no_connection_is_made(run: Any, options: list[str]) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.setblocking(False)
        code, ids, said = run(f"http://127.0.0.1:{server.getsockname()[1]}", *options)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert code == 0
    assert not {id for id in ids if id[1:].startswith("1")}
    assert "dokploy" in said or options != ["--list-tags"]


def test_settings_that_are_wrong_are_said_and_the_server_is_not_asked(serve: Any, check: Any) -> None:
    server = serve({}, (404, ""))
    assert check(server, key="")[:2] == (1, {"E001"})
    assert check(server, key="sch\u00fcssel-canary")[:2] == (1, {"E015"})
    assert check(f"http://127.0.0.1:{server.port}/api")[:2] == (1, {"E002"})


def test_the_short_option_and_other_tags_beside_it_will_do(simulator: Simulator, run: Any) -> None:
    assert run(simulator, "-t", "dokploy", "-t", "models")[:2] == (0, GOOD)
