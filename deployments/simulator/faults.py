"""Faults: wrong or missing responses to API calls, set by a test."""

import json
from collections.abc import Callable, Container
from dataclasses import asdict, dataclass
from typing import Any

from .http_server import Response
from .responses import JSON_HEADERS, error_response, json_response, text_response, unauthorized
from .settings import InvalidRequest

HEALTH = "settings.health"
# Faults that replace the response after the call was executed. The suffix "_done" makes other faults do the same.
AFTER_EXECUTION = ("wrong_types", "reset_after", "slow_bytes", "slow")
BAD_GATEWAY = (
    "<html>\n<head><title>502 Bad Gateway</title></head>\n"
    "<body><center><h1>502 Bad Gateway</h1></center></body>\n</html>\n"
)
TOO_MANY_REQUESTS = '{"message":"Too many requests. Please try again later."}'


@dataclass
class Fault:
    """One fault. times: how many calls it affects, None for all. seconds: the delay before the response."""

    procedure: str
    what: str
    times: int | None = 1
    seconds: float | None = None
    text: str = ""

    @property
    def kind(self) -> str:
        return self.what.removesuffix("_done")

    @property
    def executes_call(self) -> bool:
        return self.what.endswith("_done") or self.what in AFTER_EXECUTION

    @property
    def delay(self) -> float:
        """The seconds to wait before the response. The faults "hang" and "slow_bytes" take their own time."""
        return 0 if self.kind in ("hang", "slow_bytes") else self.seconds or 0

    def respond(self, procedure: str, response: Response) -> Response:
        """Return the response that the client gets instead of this one."""
        return RESPONSES[self.kind](self, procedure, response)


def with_wrong_types(value: Any) -> Any:
    """Return the same shape with wrong types: text for numbers, numbers for text, objects for lists."""
    if isinstance(value, dict):
        return {name: with_wrong_types(part) for name, part in value.items()}
    if isinstance(value, list):
        return {str(index): with_wrong_types(part) for index, part in enumerate(value)}
    return 7 if isinstance(value, str) else str(value)


def wrong_types(fault: Fault, procedure: str, response: Response) -> Response:
    return json_response(with_wrong_types(json.loads(response.body)) if response.body else 7, response.status)


def error(status: int, message: str) -> Callable[[Fault, str, Response], Response]:
    return lambda fault, procedure, response: error_response(status, fault.text or message, procedure)


RESPONSES: dict[str, Callable[[Fault, str, Response], Response]] = {
    "error500": error(500, "Internal server error"),
    "error400": error(400, "Error creating the project: connection terminated"),
    "unauthorized": lambda fault, procedure, response: unauthorized(),
    "too_many": lambda fault, procedure, response: text_response(TOO_MANY_REQUESTS, 429, {"X-Retry-After": "10"}),
    "html502": lambda fault, procedure, response: Response(
        502, {"Content-Type": "text/html"}, (fault.text or BAD_GATEWAY).encode()
    ),
    "empty200": lambda fault, procedure, response: Response(200, JSON_HEADERS),
    "garbage200": lambda fault, procedure, response: Response(
        200, JSON_HEADERS, fault.text.encode() or b'{"project": {"projectId": "\xff'
    ),
    "wrong_types": wrong_types,
    "reset_before": lambda fault, procedure, response: Response(delivery="reset"),
    "reset_after": lambda fault, procedure, response: Response(delivery="reset"),
    "hang": lambda fault, procedure, response: Response(delivery="hang", seconds=fault.seconds),
    "slow_bytes": lambda fault, procedure, response: Response(
        response.status, response.headers, response.body, "slow", fault.seconds
    ),
    "slow": lambda fault, procedure, response: response,
    "huge": lambda fault, procedure, response: Response(200, JSON_HEADERS, delivery="huge"),
    "redirect": lambda fault, procedure, response: Response(
        302, {"Location": fault.text or "https://elsewhere.example/"}
    ),
}


class Faults:
    def __init__(self) -> None:
        self._pending: list[Fault] = []

    def add(self, given: dict[str, Any], procedures: Container[str]) -> None:
        """Add a fault for one of these procedures or, with `*`, for all. Raises InvalidRequest."""
        try:
            fault = Fault(**given)
        except TypeError as error:
            raise InvalidRequest("A fault has procedure, what, times, seconds and text.") from error
        if not isinstance(fault.what, str) or not isinstance(fault.text, str):
            raise InvalidRequest("what and text must be strings.")
        if fault.procedure != "*" and fault.procedure not in procedures:
            raise InvalidRequest(f"Unknown procedure {fault.procedure!r}.")
        if fault.kind not in RESPONSES:
            raise InvalidRequest(f"Unknown fault {fault.what!r}. The faults are {', '.join(RESPONSES)}.")
        self._pending.append(fault)

    def take(self, procedure: str) -> Fault | None:
        """Return the oldest fault for this call and count it as used.

        `*` does not include the health check, which needs no key.
        """
        for fault in self._pending:
            if fault.procedure == procedure or (fault.procedure == "*" and procedure != HEALTH):
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
