"""The simulator is held to what Dokploy v0.30.2 answered: the scenarios under tests/contract/ are played against it.

A scenario is a list of steps: calls with what they must answer, switches, and looks at what a deploy has come to.
`{name}` stands for what an earlier answer gave (`keep`), `<word>` for any value of that kind (see KINDS), and
`{"<shape>": name, …}` for a row of shapes.json with these values different.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from deployments.simulator.procedures import PROCEDURES

from ..processes import KEY, ROOT, Simulator, until

CONTRACT = Path(__file__).parent
KINDS = {
    "id": r"[\w-]{21}",
    "time": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z",
    "stamp": r"\d{4}-\d\d-\d\d:\d\d:\d\d:\d\d",
    "suffix": r"[a-z0-9]{6}",
    "words": r"[a-z0-9-]+",
    "digits": r"\d+",
    "text": r"[\s\S]*",
}
TOKEN = re.compile(f"<({'|'.join(KINDS)})>")
TYPES = {"string": str, "boolean": bool, "number": (int, float), "list": list, "object": dict, "null": type(None)}
ANY_OF = re.compile(r"<((?:string|boolean|number|list|object|null)|\w+(?:\|\w+)+)>")
# What the recordings hold of an answer's headers, and what they hold nearly always.
HEADERS = ("content-type", "transfer-encoding", "content-length", "location")
USUAL = {"content-type": "application/json", "transfer-encoding": "chunked"}
KEYS = {
    "owner": {"x-api-key": KEY},
    "none": {},
    "wrong": {"x-api-key": "wrong"},
    "empty": {"x-api-key": ""},
    "truncated": {"x-api-key": KEY[:-1]},
    "bearer": {"Authorization": f"Bearer {KEY}"},
    "other": {"x-api-key": "another-key"},
}


def read(name: str) -> Any:
    return json.loads((CONTRACT / name).read_text())


SHAPES, SETUPS, NOT_PLAYED, RECORDED = map(read, ("shapes.json", "setups.json", "not_played.json", "recordings.json"))
SCENARIOS = [
    scenario for path in sorted(CONTRACT.glob("scenarios/*.json")) for scenario in json.loads(path.read_text())
]


def steps_of(steps: list[Any]) -> Iterator[dict[str, Any]]:
    """Return the steps with the named setups inserted."""
    for step in steps:
        if isinstance(step, str):
            yield from steps_of(SETUPS[step])
        else:
            yield step


def played(steps: list[Any]) -> Iterator[dict[str, Any]]:
    for step in steps_of(steps):
        if "recording" in step:
            yield step
        yield from played(step.get("together", step.get("tally", [])))


CLIENT = (ROOT / "deployments/engine/dokploy/client.py").read_text()
# The client puts the name of "project.one" together.
CALLED_BY_CLIENT = {*re.findall(r'"([a-z]+\.[a-zA-Z]+)"', CLIENT), "project.one"}
PLAYED = [step for scenario in SCENARIOS for step in played(scenario["steps"])]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    running = Simulator(tmp_path_factory.mktemp("contract"))
    yield running
    assert running.close() == 0


@pytest.fixture
def simulator(shared: Simulator) -> Iterator[Simulator]:
    """Yield the shared process; afterwards objects and switches are reset."""
    before = shared.switches.get("settings").json()
    yield shared
    for gate in shared.switches.get("gates").json():
        shared.open_gate(gate)
    shared.turn(**before)
    shared.switches.delete("keys").raise_for_status()
    shared.switches.post("restart").raise_for_status()
    for project in shared.ask("project.all"):
        for environment in project["environments"]:
            for application in environment["applications"]:
                shared.do("application.delete", applicationId=application["applicationId"])
        shared.do("project.remove", projectId=project["projectId"])


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario["name"])
def test_scenario(simulator: Simulator, scenario: dict[str, Any]) -> None:
    Play(simulator).play(scenario["steps"])


# Nothing is left out without a reason.


def test_every_recording_is_played_or_has_its_reason() -> None:
    names = Counter(step["recording"] for step in PLAYED) + Counter(entry["name"] for entry in NOT_PLAYED)
    assert names == Counter(RECORDED)
    assert all(entry["reason"] for entry in NOT_PLAYED)


def test_every_procedure_of_the_client_is_played_in_its_good_and_its_bad_cases() -> None:
    good = {step["call"].split()[1] for step in PLAYED if step.get("status", 200) == 200 and "call" in step}
    assert CALLED_BY_CLIENT - good == set()
    left_out = [
        entry["name"]
        for entry in NOT_PLAYED
        if entry["call"].split()[-1] in CALLED_BY_CLIENT and entry["status"] >= 400 and entry["key"] != "cookie"
    ]
    assert left_out == []


def test_the_simulator_has_no_procedure_that_nothing_calls() -> None:
    """These four set up states in tests, as a user of Dokploy would."""
    for_tests = {
        "project.update",
        "environment.update",
        "application.redeploy",
        "settings.updateBuildsConcurrency",
    }
    assert set(PROCEDURES) == CALLED_BY_CLIENT | for_tests


def test_names_are_unique() -> None:
    assert [name for name, count in Counter(scenario["name"] for scenario in SCENARIOS).items() if count > 1] == []


# What the recordings do not show of the switches and of a followed log.


def test_a_restart_ends_a_followed_log_and_a_ping_is_answered(simulator: Simulator) -> None:
    row = simulator.deploy(simulator.application())
    url = f"ws://127.0.0.1:{simulator.port}/listen-deployment?logPath={row['logPath']}"
    with connect(url, additional_headers=KEYS["owner"], compression=None, proxy=None) as socket:
        assert socket.recv(timeout=5)
        assert socket.ping().wait(5)
        simulator.switches.post("restart").raise_for_status()
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=5)


def test_a_key_that_makes_no_sense_is_refused(simulator: Simulator) -> None:
    for wrong in (
        {},
        {"key": ""},
        {"key": "k", "member": "project"},
        {"key": "k", "rate_limit": -1},
        {"key": 1},
        {"key": "k", "member": [1]},
    ):
        assert simulator.switches.post("keys", json=wrong).status_code == 400
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
    assert closed.value.rcvd.code == NO_CODE


# How a scenario is played.


class Play:
    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self.kept: dict[str, Any] = {}
        self.case = "setup"

    def play(self, steps: list[Any]) -> None:
        for step in steps_of(steps):
            self.case = step.get("recording", "setup")
            verb = next(iter(step.keys() - {"recording", "note"} & VERBS))
            getattr(self, f"do_{verb}")(step)

    def fail(self, what: str, expected: Any, got: Any) -> None:
        pytest.fail(
            f"{what}, case {self.case!r}:\n  expected {shown(expected)}\n  got      {shown(got)}", pytrace=False
        )

    # Calls.

    def do_call(self, step: dict[str, Any]) -> None:
        self.check(step, self.send(step))

    def do_together(self, step: dict[str, Any]) -> None:
        """All at once: they are held at the procedure's gate until the last one is there."""
        calls = step["together"]
        gate = calls[0]["call"].split()[1]
        self.simulator.close_gate(gate)
        with ThreadPoolExecutor(len(calls)) as pool:
            answers = [pool.submit(self.send, call) for call in calls]
            self.simulator.gather_at(gate, len(calls))
            self.simulator.open_gate(gate)
            for call, answer in zip(calls, answers, strict=True):
                self.case = call.get("recording", "setup")
                self.check(call, answer.result())

    def do_tally(self, step: dict[str, Any]) -> None:
        """Which of the calls is refused is left to chance, how many are is not."""
        answers = [answer for call in step["tally"] if (answer := self.send(call)) is not None]
        got = Counter(str(answer.status_code) for answer in answers)
        if got != step["statuses"]:
            self.fail(step["tally"][0]["call"], step["statuses"], dict(got))
        for answer in answers:
            self.check({**step["tally"][0], **step["by_status"][str(answer.status_code)]}, answer)

    def do_sort(self, step: dict[str, Any]) -> None:
        """Which of the calls is refused is left to chance; what each is about is kept by its status."""
        for call in step["sort"]["calls"]:
            answer = self.send(call)
            assert answer is not None
            name = step["sort"][str(answer.status_code)]
            for more in ("", ".name"):
                self.kept[name + more] = self.kept[call["as"] + more]

    def do_await(self, step: dict[str, Any]) -> None:
        """Until a call answers so."""
        call = step["await"]
        until(lambda: (answer := self.send(call)) and not differences(self.filled(call["body"]), answer.json()))

    def do_vanish(self, step: dict[str, Any]) -> None:
        """Disconnect before the answer; the call still takes effect."""
        self.simulator.close_gate("application.create")
        short = httpx.Timeout(10, read=0.05)
        with pytest.raises(httpx.ReadTimeout):
            self.simulator.api.post("application.create", json=self.filled(step["vanish"]), timeout=short)
        self.simulator.gather_at("application.create", 1)
        self.simulator.open_gate("application.create")

    def send(self, step: dict[str, Any]) -> httpx.Response | None:
        method, path = step["call"].split()
        url = path if path.startswith("/") else f"/api/{path}"
        given = self.filled(step.get("send", {}))
        request: dict[str, Any] = {"headers": {**KEYS[step.get("key", "owner")], **step.get("headers", {})}}
        if "raw" in step:
            request["content"] = self.filled(step["raw"]).encode()
        elif method == "GET":
            request["params"] = given
        elif "send" in step:
            request["json"] = given
        try:
            return self.simulator.bare.request(method, url, **request)
        except httpx.TransportError:
            return None

    def check(self, step: dict[str, Any], answer: httpx.Response | None) -> None:
        call, status = step["call"], step.get("status", 200)
        if answer is None or status is None:
            if answer is not None or status is not None:
                self.fail(call, status, "no answer" if answer is None else answer.status_code)
            return
        if answer.status_code != status:
            self.fail(call, status, f"{answer.status_code} {answer.text}")
        headers = {name: answer.headers[name] for name in HEADERS if name in answer.headers}
        if headers != step.get("answer_headers", USUAL):
            self.fail(call, step.get("answer_headers", USUAL), headers)
        for name, path in step.get("keep", {}).items():
            self.kept[name] = value_at(answer.json(), path)
        if "text" in step and answer.text != step["text"]:
            self.fail(call, step["text"], answer.text)
        if "body" in step:
            self.compare(call, step["body"], answer.json() if answer.content else "")

    def compare(self, what: str, expected: Any, got: Any) -> None:
        wrong = differences(self.filled(expected), got)
        if wrong:
            self.fail(what, *map(list, zip(*wrong, strict=True)))

    def filled(self, value: Any) -> Any:
        """With what was kept in the place of {name}, and {"<repeat>": [text, times]} written out."""
        if isinstance(value, dict) and "<repeat>" in value:
            text, times = value["<repeat>"]
            return value.get("<before>", "") + text * times
        if isinstance(value, dict):
            return {self.filled(name): self.filled(part) for name, part in value.items()}
        if isinstance(value, list):
            return [self.filled(part) for part in value]
        if isinstance(value, str):
            return re.sub(r"(?<![$\w{])\{([a-z][a-z0-9.]*)\}", lambda found: str(self.kept[found[1]]), value)
        return value

    # What a deploy has come to.

    def do_look(self, step: dict[str, Any]) -> None:
        """Status of an application, its newest three rows, and the queue."""
        look = self.filled(step["look"])
        id = {"applicationId": look["application"]}
        rows = self.simulator.ask("deployment.all", **id)
        got = {
            "status": self.simulator.ask("application.one", **id)["applicationStatus"],
            "rows": [[row["status"], row["title"]] for row in rows[:3]],
        }
        queue = self.simulator.ask("deployment.queueList")
        got["queue"] = [[job["data"]["titleLog"], job["state"]] for job in queue]
        got = {name: got[name] for name in look if name != "application"}
        del look["application"]
        if got != look:
            self.fail("application.one, deployment.all, deployment.queueList", look, got)
        for name, row in step.get("keep", {}).items():
            self.kept[name] = value_at(rows[0], row)

    def do_services(self, step: dict[str, Any]) -> None:
        """Return the requests that the engine received."""
        for name, expected in self.filled(step["services"]).items():
            service = next(row for row in self.simulator.state()["services"] if row["name"] == name)
            self.compare("what the engine was told", expected, {part: service[part] for part in expected})

    def do_settle(self, step: dict[str, Any]) -> None:
        until(lambda: not self.simulator.ask("deployment.queueList"))

    # The log, as it is written.

    def do_listen(self, step: dict[str, Any]) -> None:
        url = f"ws://127.0.0.1:{self.simulator.port}/listen-deployment"
        path = self.filled(step["listen"])
        url += "" if path is None else f"?logPath={path}"
        headers = KEYS[step.get("key", "owner")]
        with connect(url, additional_headers=headers, compression=None, proxy=None) as socket:
            for frame in step["frames"]:
                self.frame(frame, socket)
            for then, frame in step.get("then", []):
                self.play([then])
                self.frame(frame, socket)
            if "closed" not in step["frames"][-1]:
                with pytest.raises(TimeoutError):
                    socket.recv(timeout=0.05)

    def frame(self, expected: dict[str, Any], socket: Any) -> None:
        """Text in any number of frames, or a close."""
        text = ""
        try:
            while "closed" in expected or differences(self.filled(expected["text"]), text):
                text += socket.recv(timeout=2)
        except TimeoutError:
            self.fail("/listen-deployment", expected, text)
        except ConnectionClosed as closed:
            code = closed.rcvd and [None if closed.rcvd.code == NO_CODE else closed.rcvd.code, closed.rcvd.reason]
            if code != expected.get("closed"):
                self.fail("/listen-deployment", expected, {"text": text, "closed": code})

    # Switches.

    def do_turn(self, step: dict[str, Any]) -> None:
        self.simulator.turn(**step["turn"])

    def do_add_key(self, step: dict[str, Any]) -> None:
        given = {"key": KEYS["other"]["x-api-key"], **step["add_key"]}
        self.simulator.switches.post("keys", json=given).raise_for_status()

    def do_close(self, step: dict[str, Any]) -> None:
        self.simulator.close_gate(step["close"])

    def do_wait(self, step: dict[str, Any]) -> None:
        self.simulator.gather_at(step["wait"], step.get("count", 1))

    def do_open(self, step: dict[str, Any]) -> None:
        self.simulator.open_gate(step["open"])

    def do_restart(self, step: dict[str, Any]) -> None:
        self.simulator.switches.post("restart", json={"seconds": step["restart"]}).raise_for_status()


VERBS = {name.removeprefix("do_") for name in vars(Play) if name.startswith("do_")}
# A close frame without a code, as the library names it.
NO_CODE = 1005


def value_at(value: Any, path: str) -> Any:
    for part in path.split("."):
        value = value[int(part)] if part.isdigit() else value[part]
    return value


def differences(expected: Any, got: Any, path: str = "") -> list[tuple[str, str]]:
    """Where they differ: (what should be at a path, what is)."""
    here = path or "the body"
    if isinstance(expected, dict) and "<shape>" in expected:
        row = {**SHAPES[expected["<shape>"]], **expected}
        del row["<shape>"]
        return differences(row, got, path)
    if isinstance(expected, dict) and "<each>" in expected:
        if not isinstance(got, list):
            return [(f"{here}: a list", shown(got))]
        return [
            found
            for place, part in enumerate(got)
            for found in differences(expected["<each>"], part, f"{path}[{place}]")
        ]
    if isinstance(expected, dict) and isinstance(got, dict):
        wrong = [(f"{path}.{name}", "nothing") for name in expected.keys() - got.keys()]
        wrong += [("nothing", f"{path}.{name}") for name in got.keys() - expected.keys()]
        for name in expected.keys() & got.keys():
            wrong += differences(expected[name], got[name], f"{path}.{name}")
        return wrong
    if isinstance(expected, list) and isinstance(got, list):
        if len(expected) != len(got):
            return [(f"{here}: {len(expected)} of {shown(expected)}", f"{len(got)} of {shown(got)}")]
        pairs = enumerate(zip(expected, got, strict=True))
        return [found for place, pair in pairs for found in differences(*pair, f"{path}[{place}]")]
    return [] if fits(expected, got) else [(f"{here}: {shown(expected)}", shown(got))]


def fits(expected: Any, got: Any) -> bool:
    if isinstance(expected, str):
        if kinds := ANY_OF.fullmatch(expected):
            return any(is_a(kind, got) for kind in kinds[1].split("|"))
        if TOKEN.search(expected):
            parts = TOKEN.split(expected)
            pattern = "".join(KINDS[part] if place % 2 else re.escape(part) for place, part in enumerate(parts))
            return isinstance(got, str) and re.fullmatch(pattern, got) is not None
    return type(expected) is type(got) and bool(expected == got)


def is_a(kind: str, value: Any) -> bool:
    if kind in TYPES:
        return isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))
    return fits(f"<{kind}>", value)


def shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 1500 else text[:1500] + "…"
