"""The HTTP face of the pretend Dokploy: transport rules, keys, errors, then the table of procedures."""

import asyncio
import hmac
import json
import time
from typing import Any
from urllib.parse import urlsplit

from .dokploy import CODES, NOTHING, PROCEDURES, Dokploy, Procedure, Refusal
from .http import Request, Response, json_response, sized_response, text_response
from .schema import check, flattened
from .switches import NOT_FOUND, Settings, Switchboard, unauthorized

BODY_LIMIT = 1024 * 1024
NAMES = {name.lower(): name for name in PROCEDURES}


class Key:
    """The owner's API key and its rate limit. A REST call verifies it twice, so it costs two."""

    def __init__(self, key: str, settings: Settings) -> None:
        self._key = key.encode()
        self._settings = settings
        self._used = 0
        self._last = 0.0

    def matches(self, given: str) -> bool:
        return self._settings.database == "up" and hmac.compare_digest(given.encode("latin-1"), self._key)

    def verify(self) -> bool:
        """Refused calls do not lengthen the window."""
        limit = self._settings.rate_limit
        if limit is None:
            return True
        if time.monotonic() - self._last > self._settings.rate_window:
            self._used = 0
        if self._used >= limit:
            return False
        self._used += 1
        self._last = time.monotonic()
        return True

    def reset(self) -> None:
        self._used = 0


class Api:
    def __init__(self, dokploy: Dokploy, key: Key, switches: Switchboard) -> None:
        self._dokploy = dokploy
        self._key = key
        self._switches = switches
        self._down_until = 0.0

    def go_down(self, seconds: float) -> None:
        self._down_until = time.monotonic() + seconds

    async def answer(self, request: Request) -> Response:
        path = request.path
        if path.startswith("/_simulator/") and self._switches.key:
            return await self._switches.answer(request)
        if time.monotonic() < self._down_until:
            return Response(delivery="reset")
        if path != "/" and path.endswith("/"):
            location = urlsplit(request.target).path.rstrip("/") or "/"
            return Response(308, {"Location": location}, location.encode())
        if path == "/api/health":
            return sized_response("application/json", '{"ok":true}')
        if path == "/api/trpc/settings.health":
            return await self._health()
        if path.startswith("/api/trpc/"):
            return self._trpc(request, path.removeprefix("/api/trpc/"))
        if path.startswith("/api/"):
            return await self._rest(request, path.removeprefix("/api/"))
        return text_response(NOT_FOUND, 404)

    async def _health(self) -> Response:
        name = "settings.health"
        fault = self._switches.faults.take(name)
        self._switches.calls[name] += 1
        if self._switches.settings.database == "down":
            message = "Failed query: SELECT 1\nparams: "
            answer = trpc_error(500, -32603, "INTERNAL_SERVER_ERROR", name, message)
        else:
            answer = json_response({"result": {"data": {"json": {"status": "ok"}}}})
        return fault.twist(name, answer) if fault else answer

    def _trpc(self, request: Request, path: str) -> Response:
        """Only the health check is offered in this shape."""
        if self._key.matches(request.headers.get("x-api-key", "")) and self._key.verify():
            return trpc_error(404, -32004, "NOT_FOUND", path, f'No procedure found on path "{path}"')
        return trpc_error(401, -32001, "UNAUTHORIZED", path)

    async def _rest(self, request: Request, path: str) -> Response:
        is_json = request.headers.get("content-type", "").startswith("application/json")
        if len(request.body) > BODY_LIMIT:
            return Response(413, {}, b"Body exceeded 1mb limit")
        try:
            body = json.loads(request.body) if is_json and request.body else {}
        except ValueError:
            return Response(400, {}, b"Invalid JSON")
        if not self._key.matches(request.headers.get("x-api-key", "")) or not self._key.verify():
            return unauthorized()
        if request.method == "HEAD":
            return Response(204, {"Content-Type": "application/json"})
        name = NAMES.get(path.lower(), "")
        procedure = PROCEDURES.get(name)
        if procedure is None or procedure.method != request.method:
            return error(404, "Not found")
        self._switches.calls[name] += 1
        await asyncio.sleep(self._switches.settings.latency)
        if request.method == "POST" and not is_json:
            given = request.headers.get("content-type")
            message = f'Unsupported content-type "{given}' if given else "Missing content-type header"
            return error(415, message, name)
        if request.method == "GET":
            body = {field: value for field, value in request.query.items() if value}
        return await self._call(name, procedure, body if isinstance(body, dict) else {})

    async def _call(self, name: str, procedure: Procedure, given: dict[str, Any]) -> Response:
        """Carry it out, between the gates and with whatever fault is due."""
        gates, faults = self._switches.gates, self._switches.faults
        await gates.pass_through(name)
        fault = faults.take(name)
        answer = Response()
        if fault is None or fault.done:
            answer = self._carry_out(name, procedure, given)
        await gates.pass_through(f"{name}:answer")
        if fault is None:
            return answer
        if fault.seconds and fault.what.removesuffix("_done") not in ("hang", "slow_bytes"):
            await asyncio.sleep(fault.seconds)
        return fault.twist(name, answer)

    def _carry_out(self, name: str, procedure: Procedure, given: dict[str, Any]) -> Response:
        if not self._key.verify():
            return error(401, "UNAUTHORIZED", name)
        values, issues = check(procedure.fields, given)
        if issues:
            answer = failure(400, "Input validation failed", name, flattened(issues))
            return json_response({**answer, "issues": issues}, 400)
        try:
            result = procedure.run(self._dokploy, values)
        except Refusal as refusal:
            return error(refusal.status, str(refusal), name)
        return Response(200, {"Content-Type": "application/json"}) if result is NOTHING else json_response(result)


def failure(status: int, message: str, path: str, zod: Any = None) -> dict[str, Any]:
    """The body of an error; `data.path` is there only if a procedure was found."""
    code = {**CODES, 415: "UNSUPPORTED_MEDIA_TYPE"}[status]
    data = {"code": code, "httpStatus": status, **({"path": path} if path else {}), "zodError": zod}
    return {"message": message, "code": code, "data": data}


def error(status: int, message: str, path: str = "") -> Response:
    return json_response(failure(status, message, path), status)


def trpc_error(status: int, number: int, code: str, path: str, message: str | None = None) -> Response:
    data = {"code": code, "httpStatus": status, "path": path, "zodError": None}
    body = {"message": code if message is None else message, "code": number, "data": data}
    return json_response({"error": {"json": body}}, status)
