"""The control API under /_simulator/, with which tests set gates, faults and settings."""

import hmac
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from .faults import HEALTH
from .gates import JOB_GATES
from .http_server import Request, Response
from .procedures import PROCEDURES
from .responses import NOT_FOUND_PAGE, json_response, text_response
from .server import DokployServer
from .settings import InvalidRequest

PATH = "/_simulator/"
PROCEDURE_NAMES = (*PROCEDURES, HEALTH)
Action = Callable[[str, dict[str, Any], Request], Awaitable[Any]]


class ControlApi:
    """The control API. Without a key its paths do not exist."""

    def __init__(self, key: str, server: DokployServer) -> None:
        self.key = key
        self._server = server
        self._actions: dict[tuple[str, str], Action] = {
            ("GET", "state"): self._get_state,
            ("GET", "gates"): self._get_gates,
            ("PUT", "gates"): self._close_gate,
            ("DELETE", "gates"): self._open_gate,
            ("POST", "faults"): self._add_fault,
            ("DELETE", "faults"): self._clear_faults,
            ("GET", "settings"): self._get_settings,
            ("POST", "settings"): self._change_settings,
            ("POST", "keys"): self._add_key,
            ("DELETE", "keys"): self._clear_keys,
            ("DELETE", "services"): self._remove_service,
            ("POST", "restart"): self._restart,
            ("POST", "stall"): self._stall,
        }

    async def answer(self, request: Request) -> Response:
        given_key = request.headers.get("x-simulator-key", "").encode("latin-1")
        if not self.key or not hmac.compare_digest(given_key, self.key.encode()):
            return text_response(NOT_FOUND_PAGE, 404)
        name, _, rest = request.path.removeprefix(PATH).partition("/")
        action = self._actions.get((request.method, name))
        if action is None:
            return text_response(NOT_FOUND_PAGE, 404)
        try:
            body = json.loads(request.body or b"{}")
            if not isinstance(body, dict):
                raise InvalidRequest("The body must be a JSON object.")
            return json_response(await action(rest, body, request))
        except (InvalidRequest, json.JSONDecodeError) as error:
            return json_response({"message": str(error)}, 400)

    async def _get_state(self, rest: str, body: dict[str, Any], request: Request) -> Any:
        return {
            **self._server.state(),
            "calls": dict(self._server.calls),
            "faults": self._server.faults.pending(),
            "gates": self._server.gates.waiting(),
            "settings": asdict(self._server.settings),
        }

    async def _get_gates(self, rest: str, body: dict[str, Any], request: Request) -> Any:
        """Return all closed gates, or wait at most `wait` seconds until one gate holds a call or a job."""
        if not rest:
            return self._server.gates.waiting()
        try:
            seconds = float(request.query.get("wait") or 0)
        except ValueError as error:
            raise InvalidRequest("wait must be a number of seconds.") from error
        return {"waiting": await self._server.gates.wait(validate_gate(rest), seconds)}

    async def _close_gate(self, rest: str, body: dict[str, Any], request: Request) -> Any:
        self._server.gates.close(validate_gate(rest))
        return self._server.gates.waiting()

    async def _open_gate(self, rest: str, body: dict[str, Any], request: Request) -> Any:
        return {"released": self._server.gates.open(validate_gate(rest))}

    async def _add_fault(self, rest: str, body: dict[str, Any], request: Request) -> Any:
        self._server.faults.add(body, PROCEDURE_NAMES)
        return self._server.faults.pending()

    async def _clear_faults(self, rest: str, body: dict[str, Any], request: Request) -> Any:
        self._server.faults.clear()
        return self._server.faults.pending()

    async def _get_settings(self, rest: str, body: dict[str, Any], request: Request) -> Any:
        return asdict(self._server.settings)

    async def _change_settings(self, rest: str, body: dict[str, Any], request: Request) -> Any:
        self._server.settings.update(body)
        if "rate_limit" in body:
            self._server.keys.owner.reset()
        return asdict(self._server.settings)

    async def _add_key(self, rest: str, body: dict[str, Any], request: Request) -> Any:
        self._server.keys.add(body)
        return {}

    async def _clear_keys(self, rest: str, body: dict[str, Any], request: Request) -> Any:
        self._server.keys.clear()
        return {}

    async def _remove_service(self, rest: str, body: dict[str, Any], request: Request) -> Any:
        """Remove a service as an administrator of the host does with `docker service rm`."""
        self._server.store.services.drop(rest)
        return {}

    async def _restart(self, rest: str, body: dict[str, Any], request: Request) -> Any:
        seconds = body.get("seconds", 0)
        if not isinstance(seconds, int | float):
            raise InvalidRequest("seconds must be a number.")
        await self._server.restart(seconds)
        return {"restarted": True}

    async def _stall(self, rest: str, body: dict[str, Any], request: Request) -> Any:
        """Keep deploy jobs in the status `running`, or let them continue."""
        if body.get("running"):
            self._server.gates.close("stall")
        else:
            self._server.gates.open("stall")
        return {"running": bool(body.get("running"))}


def validate_gate(name: str) -> str:
    if name not in JOB_GATES and name.removesuffix(":answer") not in PROCEDURE_NAMES:
        gates = f"a procedure, procedure:answer, {', '.join(JOB_GATES)}"
        raise InvalidRequest(f"Unknown gate {name!r}. The gates are {gates}.")
    return name
