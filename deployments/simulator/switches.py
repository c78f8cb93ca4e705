"""Switches for tests and demonstrations: gates, faults and settings, under /_simulator/."""

import asyncio
import hmac
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from .http import Request, Response, json_response, sized_response, text_response

# Where a job can be held: when its row is there, in the pull, before the engine is told; and a task before it is up.
GATES = ("job", "pull", "stall", "container")
NOT_FOUND = "404: This page could not be found."


@dataclass
class Settings:
    """What can be turned while it runs. Times are in seconds.

    halves: how many of the next project.create insert the project and fail at its environment.
    """

    pull: float = 6.0
    start: float = 3.0
    latency: float = 0.03
    pull_error: str | None = None
    engine_error: str | None = None
    engine: str = "up"
    database: str = "up"
    infrastructure: str = "up"
    login: str = "accepted"
    rate_limit: int | None = None
    rate_window: float = 86400.0
    container_status: str | None = None
    version: str = "v0.30.2"
    halves: int = 0

    def turn(self, given: dict[str, Any]) -> None:
        names = {setting.name: setting.type for setting in fields(self)}
        for name, value in given.items():
            if name not in names:
                raise Misuse(f"There is no setting {name!r}; there are {', '.join(names)}.")
            if not fits(name, value):
                raise Misuse(f"{name!r} cannot be {value!r}.")
        for name, value in given.items():
            setattr(self, name, value)


def fits(name: str, value: Any) -> bool:
    if name in ("pull", "start", "latency", "rate_window"):
        return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
    if name == "halves":
        return type(value) is int and value >= 0
    if name in ("engine", "database"):
        return value in ("up", "down")
    if name == "infrastructure":
        return value in ("up", "missing")
    if name == "login":
        return value in ("accepted", "refused")
    if name == "rate_limit":
        return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0)
    return isinstance(value, str) or (value is None and name != "version")


class Misuse(Exception):
    """A switch was turned the wrong way; the text says how it should be."""


@dataclass
class Gate:
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: int = 0


class Gates:
    """Named points at which calls and jobs can be held."""

    def __init__(self) -> None:
        self._closed: dict[str, Gate] = {}

    async def pass_through(self, name: str) -> None:
        gate = self._closed.get(name)
        if gate is None:
            return
        gate.waiting += 1
        gate.arrived.set()
        try:
            await gate.opened.wait()
        finally:
            gate.waiting -= 1
            if not gate.waiting:
                gate.arrived.clear()

    def close(self, name: str) -> None:
        self._closed.setdefault(name, Gate())

    def open(self, name: str) -> int:
        gate = self._closed.pop(name, None)
        if gate is None:
            return 0
        gate.opened.set()
        return gate.waiting

    async def wait(self, name: str, seconds: float) -> int:
        """How many are held, as soon as there is one."""
        gate = self._closed.get(name)
        if gate is None:
            return 0
        with suppress(TimeoutError):
            await asyncio.wait_for(gate.arrived.wait(), seconds)
        return gate.waiting

    def waiting(self) -> dict[str, int]:
        return {name: gate.waiting for name, gate in self._closed.items()}


# What a fault does to an answer. "_done" after a name: the call is carried out first.
FAULTS = (
    "error500 error400 unauthorized too_many html502 empty200 garbage200 wrong_types reset_before reset_after "
    "hang slow_bytes slow huge redirect"
).split()
DONE = ("wrong_types", "reset_after", "slow_bytes", "slow")


@dataclass
class Fault:
    procedure: str
    what: str
    times: int | None = 1
    seconds: float | None = None
    text: str = ""

    @property
    def done(self) -> bool:
        return self.what.endswith("_done") or self.what in DONE

    def twist(self, path: str, answer: Response) -> Response:
        """What the caller gets instead of `answer`."""
        return FAULT_RESPONSES[self.what.removesuffix("_done")](self, path, answer)


def failure(status: int, code: str, message: str) -> Callable[[Fault, str, Response], Response]:
    def respond(fault: Fault, path: str, answer: Response) -> Response:
        data = {"code": code, "httpStatus": status, "path": path, "zodError": None}
        return json_response({"message": fault.text or message, "code": code, "data": data}, status)

    return respond


def twisted(value: Any) -> Any:
    """The same shape with every type wrong: text for numbers, numbers for text, objects for lists."""
    if isinstance(value, dict):
        return {name: twisted(part) for name, part in value.items()}
    if isinstance(value, list):
        return {str(index): twisted(part) for index, part in enumerate(value)}
    return 7 if isinstance(value, str) else str(value)


BAD_GATEWAY = (
    "<html>\n<head><title>502 Bad Gateway</title></head>\n"
    "<body><center><h1>502 Bad Gateway</h1></center></body>\n</html>\n"
)
TOO_MANY = '{"message":"Too many requests. Please try again later."}'
JSON = {"Content-Type": "application/json"}
FAULT_RESPONSES: dict[str, Callable[[Fault, str, Response], Response]] = {
    "error500": failure(500, "INTERNAL_SERVER_ERROR", "Internal server error"),
    "error400": failure(400, "BAD_REQUEST", "Error creating the project: connection terminated"),
    "unauthorized": lambda fault, path, answer: unauthorized(),
    "too_many": lambda fault, path, answer: text_response(TOO_MANY, 429, {"X-Retry-After": "10"}),
    "html502": lambda fault, path, answer: Response(
        502, {"Content-Type": "text/html"}, (fault.text or BAD_GATEWAY).encode()
    ),
    "empty200": lambda fault, path, answer: Response(200, JSON),
    "garbage200": lambda fault, path, answer: Response(
        200, JSON, fault.text.encode() or b'{"project": {"projectId": "\xff'
    ),
    "wrong_types": lambda fault, path, answer: json_response(
        twisted(json.loads(answer.body)) if answer.body else 7, answer.status
    ),
    "reset_before": lambda fault, path, answer: Response(delivery="reset"),
    "reset_after": lambda fault, path, answer: Response(delivery="reset"),
    "hang": lambda fault, path, answer: Response(delivery="hang", seconds=fault.seconds),
    "slow_bytes": lambda fault, path, answer: Response(
        answer.status, answer.headers, answer.body, "slow", fault.seconds
    ),
    "slow": lambda fault, path, answer: answer,
    "huge": lambda fault, path, answer: Response(200, JSON, delivery="huge"),
    "redirect": lambda fault, path, answer: Response(302, {"Location": fault.text or "https://elsewhere.example/"}),
}


def unauthorized() -> Response:
    """No key, a wrong one, a used-up limit and a database that is down all look like this."""
    return sized_response("application/json", '{"message":"Unauthorized"}', 401)


class Faults:
    def __init__(self) -> None:
        self._pending: list[Fault] = []

    def add(self, given: dict[str, Any], procedures: Iterable[str]) -> None:
        try:
            fault = Fault(**given)
        except TypeError as error:
            raise Misuse("A fault has procedure, what, times, seconds and text.") from error
        if not isinstance(fault.what, str) or not isinstance(fault.text, str):
            raise Misuse("what and text must be text.")
        if fault.procedure != "*" and fault.procedure not in procedures:
            raise Misuse(f"There is no procedure {fault.procedure!r}.")
        if fault.what.removesuffix("_done") not in FAULTS:
            raise Misuse(f"There is no fault {fault.what!r}; there are {', '.join(FAULTS)}.")
        self._pending.append(fault)

    def take(self, procedure: str) -> Fault | None:
        """The oldest fault for this call. `*` is every procedure but the health check, which needs no key."""
        for fault in self._pending:
            if fault.procedure == procedure or (fault.procedure == "*" and procedure != "settings.health"):
                if fault.times is not None:
                    fault.times -= 1
                    if fault.times <= 0:
                        self._pending.remove(fault)
                return fault
        return None

    def clear(self) -> None:
        self._pending.clear()

    def pending(self) -> list[dict[str, Any]]:
        return [asdict(fault) for fault in self._pending]


class Switchboard:
    """The HTTP face of the switches. Without the key it is not there."""

    def __init__(self, key: str, procedures: Iterable[str], settings: Settings) -> None:
        self.key = key
        self.settings = settings
        self.gates = Gates()
        self.faults = Faults()
        self.calls: Counter[str] = Counter()
        self.procedures = tuple(procedures)
        self.look: Callable[[], dict[str, Any]] = dict
        self.restart: Callable[[float], Awaitable[None]] | None = None
        self.settings_turned: Callable[[], None] = lambda: None
        self.add_key: Callable[[dict[str, Any]], None] = lambda given: None
        self.clear_keys: Callable[[], None] = lambda: None
        self.remove_service: Callable[[str], object] = lambda name: None

    async def answer(self, request: Request) -> Response:
        given = request.headers.get("x-simulator-key", "").encode("latin-1")
        if not self.key or not hmac.compare_digest(given, self.key.encode()):
            return text_response(NOT_FOUND, 404)
        _, _, name, *rest = request.path.split("/", 3)
        action = {
            ("GET", "state"): self._state,
            ("GET", "gates"): self._gates,
            ("PUT", "gates"): self._close_gate,
            ("DELETE", "gates"): self._open_gate,
            ("POST", "faults"): self._add_fault,
            ("DELETE", "faults"): self._clear_faults,
            ("GET", "settings"): self._settings,
            ("POST", "settings"): self._turn_settings,
            ("POST", "keys"): self._add_key,
            ("DELETE", "keys"): self._clear_keys,
            ("DELETE", "services"): self._remove_service,
            ("POST", "restart"): self._restart,
            ("POST", "stall"): self._stall,
        }.get((request.method, name))
        if action is None:
            return text_response(NOT_FOUND, 404)
        try:
            given_json = json.loads(request.body or b"{}")
            if not isinstance(given_json, dict):
                raise Misuse("The body must be a JSON object.")
            return json_response(await action("".join(rest), given_json, request))
        except (Misuse, json.JSONDecodeError) as error:
            return json_response({"message": str(error)}, 400)

    async def _state(self, rest: str, given: dict[str, Any], request: Request) -> Any:
        return {
            **self.look(),
            "calls": dict(self.calls),
            "faults": self.faults.pending(),
            "gates": self.gates.waiting(),
            "settings": asdict(self.settings),
        }

    async def _gates(self, rest: str, given: dict[str, Any], request: Request) -> Any:
        if not rest:
            return self.gates.waiting()
        try:
            seconds = float(request.query.get("wait") or 0)
        except ValueError as error:
            raise Misuse("wait must be a number of seconds.") from error
        return {"waiting": await self.gates.wait(self._gate_name(rest), seconds)}

    async def _close_gate(self, rest: str, given: dict[str, Any], request: Request) -> Any:
        self.gates.close(self._gate_name(rest))
        return self.gates.waiting()

    async def _open_gate(self, rest: str, given: dict[str, Any], request: Request) -> Any:
        return {"released": self.gates.open(self._gate_name(rest))}

    def _gate_name(self, name: str) -> str:
        if name not in GATES and name.removesuffix(":answer") not in self.procedures:
            raise Misuse(f"There is no gate {name!r}: a procedure, procedure:answer, {', '.join(GATES)}.")
        return name

    async def _add_fault(self, rest: str, given: dict[str, Any], request: Request) -> Any:
        self.faults.add(given, self.procedures)
        return self.faults.pending()

    async def _clear_faults(self, rest: str, given: dict[str, Any], request: Request) -> Any:
        self.faults.clear()
        return self.faults.pending()

    async def _settings(self, rest: str, given: dict[str, Any], request: Request) -> Any:
        return asdict(self.settings)

    async def _turn_settings(self, rest: str, given: dict[str, Any], request: Request) -> Any:
        self.settings.turn(given)
        if "rate_limit" in given:
            self.settings_turned()
        return asdict(self.settings)

    async def _add_key(self, rest: str, given: dict[str, Any], request: Request) -> Any:
        self.add_key(given)
        return {}

    async def _clear_keys(self, rest: str, given: dict[str, Any], request: Request) -> Any:
        self.clear_keys()
        return {}

    async def _remove_service(self, rest: str, given: dict[str, Any], request: Request) -> Any:
        """As an operator does on Dokploy's host: docker service rm."""
        self.remove_service(rest)
        return {}

    async def _restart(self, rest: str, given: dict[str, Any], request: Request) -> Any:
        assert self.restart is not None
        seconds = given.get("seconds", 0)
        if not isinstance(seconds, int | float):
            raise Misuse("seconds must be a number.")
        await self.restart(seconds)
        return {"restarted": True}

    async def _stall(self, rest: str, given: dict[str, Any], request: Request) -> Any:
        """A job that stays `running` is one held at a gate that nobody opens."""
        if given.get("running"):
            self.gates.close("stall")
        else:
            self.gates.open("stall")
        return {"running": bool(given.get("running"))}
