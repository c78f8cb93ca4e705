"""The HTTP face of the pretend Dokploy: transport rules, keys, errors, then the table of procedures."""

import asyncio
import json
import time
from typing import Any
from urllib.parse import urlsplit

from .dokploy import CODES, NOTHING, PROCEDURES, Dokploy, Procedure, Refusal
from .http import Request, Response, json_response, sized_response, text_response
from .keys import Key, Keys
from .members import CREATES, check_access, made, visible
from .schema import check, flattened
from .switches import NOT_FOUND, Switchboard, unauthorized
from .websocket import WebSocket

BODY_LIMIT = 1024 * 1024
LOGS = "/etc/dokploy/logs/"
NAMES = {name.lower(): name for name in PROCEDURES}


class Api:
    def __init__(self, dokploy: Dokploy, keys: Keys, switches: Switchboard) -> None:
        self._dokploy = dokploy
        self._keys = keys
        self._switches = switches
        self._down_until = 0.0
        self._followers: set[asyncio.Task[None]] = set()

    def go_down(self, seconds: float) -> None:
        self._down_until = time.monotonic() + seconds
        for follower in self._followers:
            follower.cancel()

    async def answer(self, request: Request) -> Response:
        path = request.path
        if path.startswith("/_simulator/") and self._switches.key:
            return await self._switches.answer(request)
        if time.monotonic() < self._down_until:
            return Response(delivery="reset")
        if path != "/" and path.endswith("/"):
            location = urlsplit(request.target).path.rstrip("/") or "/"
            return Response(308, {"Location": location}, location.encode())
        if path == "/listen-deployment" and request.headers.get("upgrade", "").lower() == "websocket":
            return Response(101, talk=lambda socket: self._listen(request, socket))
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
        if self._verified(request):
            return trpc_error(404, -32004, "NOT_FOUND", path, f'No procedure found on path "{path}"')
        return trpc_error(401, -32001, "UNAUTHORIZED", path)

    def _verified(self, request: Request) -> Key | None:
        key = self._keys.find(request.headers.get("x-api-key", ""))
        return key if key is not None and key.verify() else None

    async def _listen(self, request: Request, socket: WebSocket) -> None:
        """The log of a deployment over a WebSocket, from its start and on. Errors come after the upgrade."""
        path = request.query.get("logPath", "")
        if not self._verified(request):
            await socket.close()
        elif not path:
            await socket.close(4000, "logPath no provided")
        elif not path.startswith(LOGS) or ".." in path:
            await socket.close(4000, "Invalid log path")
        elif (deployment_id := self._dokploy.log_of(path)) is None:
            reason = f"cannot open '{path}' for reading: No such file or directory"
            await socket.send(f"tail error: tail: {reason}\ntail: no files remaining\n")
            await socket.close()
        else:
            await self._send_log(deployment_id, socket)

    async def _send_log(self, deployment_id: str, socket: WebSocket) -> None:
        """Until the client goes or this server is restarted."""

        async def send() -> None:
            async for text in self._dokploy.follow(deployment_id):
                await socket.send(text)

        tasks = {asyncio.create_task(send()), asyncio.create_task(socket.until_closed())}
        self._followers |= tasks
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._followers -= tasks
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _rest(self, request: Request, path: str) -> Response:
        is_json = request.headers.get("content-type", "").startswith("application/json")
        if len(request.body) > BODY_LIMIT:
            return Response(413, {}, b"Body exceeded 1mb limit")
        try:
            body = json.loads(request.body) if is_json and request.body else {}
        except ValueError:
            return Response(400, {}, b"Invalid JSON")
        key = self._verified(request)
        if key is None:
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
        return await self._call(key, name, procedure, body if isinstance(body, dict) else {})

    async def _call(self, key: Key, name: str, procedure: Procedure, given: dict[str, Any]) -> Response:
        """Carry it out, between the gates and with whatever fault is due."""
        reach = key.reach
        gates, faults = self._switches.gates, self._switches.faults
        await gates.pass_through(name)
        fault = faults.take(name)
        answer = Response()
        if fault is None or fault.done:
            answer = self._carry_out(key, name, procedure, given, reach)
        await gates.pass_through(f"{name}:answer")
        if fault is None:
            return answer
        if fault.seconds and fault.what.removesuffix("_done") not in ("hang", "slow_bytes"):
            await asyncio.sleep(fault.seconds)
        return fault.twist(name, answer)

    def _carry_out(
        self, key: Key, name: str, procedure: Procedure, given: dict[str, Any], reach: frozenset[str]
    ) -> Response:
        if not key.verify():
            return error(401, "UNAUTHORIZED", name)
        values, issues = check(procedure.fields, given)
        if issues:
            answer = failure(400, "Input validation failed", name, flattened(issues))
            return json_response({**answer, "issues": issues}, 400)
        try:
            if key.is_member:
                check_access(self._dokploy, key, name, values)
            result = procedure.run(self._dokploy, values)
        except Refusal as refusal:
            return error(refusal.status, str(refusal), name)
        if key.is_member:
            if name in CREATES:
                key.reach = reach.union(made(result))
            result = visible(key, name, result)
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
