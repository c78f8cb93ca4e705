"""The simulator must answer as Dokploy v0.30.2 was recorded to answer, in the scenarios beside this file.

A scenario is a list of steps: calls with their expected responses, changes of the simulator's settings and gates, and
observations of deployments. `{name}` stands for a value of an earlier response (`keep`), `<word>` for any value of
that kind (see KINDS), and `{"<shape>": name, …}` for a row of shapes.json in which these values differ.
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
# The recorded headers of a response, and their values in nearly every response.
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
    """Yield the steps, with each setup's steps in the place of its name."""
    for step in steps:
        if isinstance(step, str):
            yield from steps_of(SETUPS[step])
        else:
            yield step


def recorded_steps(steps: list[Any]) -> Iterator[dict[str, Any]]:
    for step in steps_of(steps):
        if "recording" in step:
            yield step
        yield from recorded_steps(step.get("together", step.get("tally", [])))


CLIENT = (ROOT / "deployments/engine/dokploy/client.py").read_text()
# The client composes the name "project.one".
CALLED_BY_CLIENT = {*re.findall(r'"([a-z]+\.[a-zA-Z]+)"', CLIENT), "project.one"}
PLAYED = [step for scenario in SCENARIOS for step in recorded_steps(scenario["steps"])]


@pytest.fixture
def simulator(simulator: Simulator) -> Iterator[Simulator]:
    """Yield the simulator, and afterwards restart it, so that the jobs of its queue are numbered from 1 again."""
    yield simulator
    simulator.switches.post("restart").raise_for_status()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario["name"])
def test_scenario(simulator: Simulator, scenario: dict[str, Any]) -> None:
    ScenarioPlayer(simulator).play(scenario["steps"])


# Which recordings are played.


def test_every_recording_is_played_or_has_a_reason() -> None:
    names = Counter(step["recording"] for step in PLAYED) + Counter(entry["name"] for entry in NOT_PLAYED)
    assert names == Counter(RECORDED)
    assert all(entry["reason"] for entry in NOT_PLAYED)


def test_successes_and_errors_of_every_procedure_of_the_client_are_played() -> None:
    succeeded = {step["call"].split()[1] for step in PLAYED if step.get("status", 200) == 200 and "call" in step}
    assert CALLED_BY_CLIENT - succeeded == set()
    left_out = [
        entry["name"]
        for entry in NOT_PLAYED
        if entry["call"].split()[-1] in CALLED_BY_CLIENT
        and entry["status"] >= 400
        and entry["key"] not in ("cookie", "member")
    ]
    assert left_out == []


def test_the_simulator_has_only_the_procedures_that_the_client_or_tests_call() -> None:
    """With the procedures in for_tests, tests change Dokploy's state as a user of it would."""
    for_tests = {
        "project.update",
        "environment.update",
        "application.redeploy",
        "settings.updateBuildsConcurrency",
    }
    assert set(PROCEDURES) == CALLED_BY_CLIENT | for_tests


def test_scenario_names_are_unique() -> None:
    assert [name for name, count in Counter(scenario["name"] for scenario in SCENARIOS).items() if count > 1] == []


# The player of scenarios.


class ScenarioPlayer:
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
        self.compare_response(step, self.send(step))

    def do_together(self, step: dict[str, Any]) -> None:
        """Make the calls simultaneously: the procedure's gate holds them until the last one has arrived."""
        calls = step["together"]
        gate = calls[0]["call"].split()[1]
        self.simulator.close_gate(gate)
        with ThreadPoolExecutor(len(calls)) as pool:
            responses = [pool.submit(self.send, call) for call in calls]
            self.simulator.gather_at(gate, len(calls))
            self.simulator.open_gate(gate)
            for call, response in zip(calls, responses, strict=True):
                self.case = call.get("recording", "setup")
                self.compare_response(call, response.result())

    def do_tally(self, step: dict[str, Any]) -> None:
        """Verify how many calls are refused. Which of them is random."""
        responses = [response for call in step["tally"] if (response := self.send(call)) is not None]
        got = Counter(str(response.status_code) for response in responses)
        if got != step["statuses"]:
            self.fail(step["tally"][0]["call"], step["statuses"], dict(got))
        for response in responses:
            self.compare_response({**step["tally"][0], **step["by_status"][str(response.status_code)]}, response)

    def do_sort(self, step: dict[str, Any]) -> None:
        """Keep the subject of each call under a name for its status. Which call is refused is random."""
        for call in step["sort"]["calls"]:
            response = self.send(call)
            assert response is not None
            name = step["sort"][str(response.status_code)]
            for more in ("", ".name"):
                self.kept[name + more] = self.kept[call["as"] + more]

    def do_await(self, step: dict[str, Any]) -> None:
        """Repeat a call until its response is the expected one."""
        call = step["await"]
        until(lambda: (response := self.send(call)) and not differences(self.fill_in(call["body"]), response.json()))

    def do_disconnect(self, step: dict[str, Any]) -> None:
        """Make a call whose client disconnects before the response. The call is executed nevertheless."""
        self.simulator.close_gate("application.create")
        short = httpx.Timeout(10, read=0.05)
        with pytest.raises(httpx.ReadTimeout):
            self.simulator.api.post("application.create", json=self.fill_in(step["disconnect"]), timeout=short)
        self.simulator.gather_at("application.create", 1)
        self.simulator.open_gate("application.create")

    def send(self, step: dict[str, Any]) -> httpx.Response | None:
        method, path = step["call"].split()
        url = path if path.startswith("/") else f"/api/{path}"
        given = self.fill_in(step.get("send", {}))
        request: dict[str, Any] = {"headers": {**KEYS[step.get("key", "owner")], **step.get("headers", {})}}
        if "raw" in step:
            request["content"] = self.fill_in(step["raw"]).encode()
        elif method == "GET":
            request["params"] = given
        elif "send" in step:
            request["json"] = given
        try:
            return self.simulator.bare.request(method, url, **request)
        except httpx.TransportError:
            return None

    def compare_response(self, step: dict[str, Any], response: httpx.Response | None) -> None:
        call, status = step["call"], step.get("status", 200)
        if response is None or status is None:
            if response is not None or status is not None:
                self.fail(call, status, "no response" if response is None else response.status_code)
            return
        if response.status_code != status:
            self.fail(call, status, f"{response.status_code} {response.text}")
        headers = {name: response.headers[name] for name in HEADERS if name in response.headers}
        if headers != step.get("answer_headers", USUAL):
            self.fail(call, step.get("answer_headers", USUAL), headers)
        for name, path in step.get("keep", {}).items():
            self.kept[name] = value_at(response.json(), path)
        if "text" in step and response.text != step["text"]:
            self.fail(call, step["text"], response.text)
        if "body" in step:
            self.compare(call, step["body"], response.json() if response.content else "")

    def compare(self, what: str, expected: Any, got: Any) -> None:
        wrong = differences(self.fill_in(expected), got)
        if wrong:
            self.fail(what, *map(list, zip(*wrong, strict=True)))

    def fill_in(self, value: Any) -> Any:
        """Return the value with kept values in the place of {name}, and {"<repeat>": [text, times]} expanded."""
        if isinstance(value, dict) and "<repeat>" in value:
            text, times = value["<repeat>"]
            return value.get("<before>", "") + text * times
        if isinstance(value, dict):
            return {self.fill_in(name): self.fill_in(part) for name, part in value.items()}
        if isinstance(value, list):
            return [self.fill_in(part) for part in value]
        if isinstance(value, str):
            return re.sub(r"(?<![$\w{])\{([a-z][a-z0-9.]*)\}", lambda found: str(self.kept[found[1]]), value)
        return value

    # Observations.

    def do_observe(self, step: dict[str, Any]) -> None:
        """Compare an application's status, its newest three deployments, and the queue."""
        expected = self.fill_in(step["observe"])
        id = {"applicationId": expected["application"]}
        rows = self.simulator.ask("deployment.all", **id)
        got = {
            "status": self.simulator.ask("application.one", **id)["applicationStatus"],
            "rows": [[row["status"], row["title"]] for row in rows[:3]],
        }
        queue = self.simulator.ask("deployment.queueList")
        got["queue"] = [[job["data"]["titleLog"], job["state"]] for job in queue]
        got = {name: got[name] for name in expected if name != "application"}
        del expected["application"]
        if got != expected:
            self.fail("application.one, deployment.all, deployment.queueList", expected, got)
        for name, row in step.get("keep", {}).items():
            self.kept[name] = value_at(rows[0], row)

    def do_services(self, step: dict[str, Any]) -> None:
        """Compare the services of the container engine."""
        for name, expected in self.fill_in(step["services"]).items():
            service = next(row for row in self.simulator.state()["services"] if row["name"] == name)
            self.compare("the services of the engine", expected, {part: service[part] for part in expected})

    def do_await_idle(self, step: dict[str, Any]) -> None:
        until(lambda: not self.simulator.ask("deployment.queueList"))

    # The log of a deployment.

    def do_listen(self, step: dict[str, Any]) -> None:
        url = f"ws://127.0.0.1:{self.simulator.port}/listen-deployment"
        path = self.fill_in(step["listen"])
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
        """Receive this text in any number of frames, or this close frame."""
        text = ""
        try:
            while "closed" in expected or differences(self.fill_in(expected["text"]), text):
                text += socket.recv(timeout=2)
        except TimeoutError:
            self.fail("/listen-deployment", expected, text)
        except ConnectionClosed as closed:
            code = closed.rcvd and [None if closed.rcvd.code == NO_CODE else closed.rcvd.code, closed.rcvd.reason]
            if code != expected.get("closed"):
                self.fail("/listen-deployment", expected, {"text": text, "closed": code})

    # Settings, keys and gates.

    def do_set(self, step: dict[str, Any]) -> None:
        self.simulator.turn(**step["set"])

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


VERBS = {name.removeprefix("do_") for name in vars(ScenarioPlayer) if name.startswith("do_")}
# The library's code for a close frame without one.
NO_CODE = 1005


def value_at(value: Any, path: str) -> Any:
    for part in path.split("."):
        value = value[int(part)] if part.isdigit() else value[part]
    return value


def differences(expected: Any, got: Any, path: str = "") -> list[tuple[str, str]]:
    """Return the differences as pairs: what is expected at a path, and what is there."""
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
