"""Dokploy's HTTP API: transport rules, keys, errors, procedures, and the log over a WebSocket."""

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit

from . import control, zod
from .api_keys import ApiKey
from .control import ControlApi
from .faults import HEALTH
from .http_server import Request, Response
from .procedures import PROCEDURES
from .procedures.registry import NO_CONTENT, Procedure, Refusal
from .responses import (
    NOT_FOUND_PAGE,
    empty_response,
    error_body,
    error_response,
    json_response,
    sized_response,
    text_response,
    trpc_error,
    unauthorized,
)
from .server import DokployServer
from .websocket import WebSocket

BODY_LIMIT = 1024 * 1024
LOG_DIRECTORY = "/etc/dokploy/logs/"
# Dokploy's paths are case-insensitive.
NAMES = {name.lower(): name for name in PROCEDURES}


class Api:
    def __init__(self, server: DokployServer, control_api: ControlApi) -> None:
        self._server = server
        self._control_api = control_api

    async def answer(self, request: Request) -> Response:
        path = request.path
        if path.startswith(control.PATH) and self._control_api.key:
            return await self._control_api.answer(request)
        if self._server.is_down:
            return Response(delivery="reset")
        if path != "/" and path.endswith("/"):
            location = urlsplit(request.target).path.rstrip("/") or "/"
            return Response(308, {"Location": location}, location.encode())
        if path == "/listen-deployment" and request.headers.get("upgrade", "").lower() == "websocket":
            return Response(101, websocket_handler=lambda socket: self._send_log(request, socket))
        if path == "/api/health":
            return sized_response("application/json", '{"ok":true}')
        if path.startswith("/api/trpc/"):
            return self._answer_trpc(request, path.removeprefix("/api/trpc/"))
        if path.startswith("/api/"):
            return await self._answer_rest(request, path.removeprefix("/api/"))
        return text_response(NOT_FOUND_PAGE, 404)

    def _verified_key(self, request: Request) -> ApiKey | None:
        key = self._server.keys.find(request.headers.get("x-api-key", ""))
        return key if key is not None and key.verify() else None

    # tRPC

    def _answer_trpc(self, request: Request, path: str) -> Response:
        """Answer a call in tRPC's own format, in which the simulator has only the health check."""
        if path == HEALTH:
            return self._health()
        if self._verified_key(request):
            return trpc_error(404, path, f'No procedure found on path "{path}"')
        return trpc_error(401, path, "UNAUTHORIZED")

    def _health(self) -> Response:
        fault = self._server.faults.take(HEALTH)
        self._server.calls[HEALTH] += 1
        if self._server.settings.database == "down":
            response = trpc_error(500, HEALTH, "Failed query: SELECT 1\nparams: ")
        else:
            response = json_response({"result": {"data": {"json": {"status": "ok"}}}})
        return fault.respond(HEALTH, response) if fault else response

    # The log of a deployment

    async def _send_log(self, request: Request, socket: WebSocket) -> None:
        """Send a log from its start and follow it. Errors are reported after the upgrade, as in Dokploy."""
        path = request.query.get("logPath", "")
        if not self._verified_key(request):
            await socket.close()
        elif not path:
            await socket.close(4000, "logPath no provided")
        elif not path.startswith(LOG_DIRECTORY) or ".." in path:
            await socket.close(4000, "Invalid log path")
        elif (deployment_id := self._server.find_deployment_by_log(path)) is None:
            reason = f"cannot open '{path}' for reading: No such file or directory"
            await socket.send(f"tail error: tail: {reason}\ntail: no files remaining\n")
            await socket.close()
        else:
            await self._follow_log(deployment_id, socket)

    async def _follow_log(self, deployment_id: str, socket: WebSocket) -> None:
        """Send a log until the client disconnects or this server restarts."""

        async def send() -> None:
            async for text in self._server.follow_log(deployment_id):
                await socket.send(text)

        tasks = {asyncio.create_task(send()), asyncio.create_task(socket.until_closed())}
        self._server.log_followers |= tasks
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._server.log_followers -= tasks
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # REST

    async def _answer_rest(self, request: Request, path: str) -> Response:
        is_json = request.headers.get("content-type", "").startswith("application/json")
        if len(request.body) > BODY_LIMIT:
            return Response(413, {}, b"Body exceeded 1mb limit")
        try:
            body = json.loads(request.body) if is_json and request.body else {}
        except ValueError:
            return Response(400, {}, b"Invalid JSON")
        key = self._verified_key(request)
        if key is None:
            return unauthorized()
        if request.method == "HEAD":
            return Response(204, {"Content-Type": "application/json"})
        procedure = PROCEDURES.get(NAMES.get(path.lower(), ""))
        if procedure is None or procedure.method != request.method:
            return error_response(404, "Not found")
        self._server.calls[procedure.name] += 1
        await asyncio.sleep(self._server.settings.latency)
        if request.method == "POST" and not is_json:
            return unsupported_type(request.headers.get("content-type"), procedure.name)
        if request.method == "GET":
            body = {field: value for field, value in request.query.items() if value}
        return await self._call(key, procedure, body if isinstance(body, dict) else {})

    async def _call(self, key: ApiKey, procedure: Procedure, given: dict[str, Any]) -> Response:
        """Execute a call between its two gates, and apply the oldest pending fault for it."""
        gates = self._server.gates
        await gates.pass_through(procedure.name)
        fault = self._server.faults.take(procedure.name)
        response = Response()
        if fault is None or fault.executes_call:
            response = self._execute(key, procedure, given)
        await gates.pass_through(f"{procedure.name}:answer")
        if fault is None:
            return response
        if fault.delay:
            await asyncio.sleep(fault.delay)
        return fault.respond(procedure.name, response)

    def _execute(self, key: ApiKey, procedure: Procedure, given: dict[str, Any]) -> Response:
        if not key.verify():
            return error_response(401, "UNAUTHORIZED", procedure.name)
        values, issues = zod.validate(procedure.fields, given)
        if issues:
            error = error_body(400, "Input validation failed", procedure.name, zod.flatten_error(issues))
            return json_response({**error, "issues": issues}, 400)
        try:
            self._server.role = key.role
            result = procedure.run(self._server, values)
        except Refusal as refusal:
            return error_response(refusal.status, str(refusal), procedure.name)
        return empty_response() if result is NO_CONTENT else json_response(result)


def unsupported_type(content_type: str | None, procedure: str) -> Response:
    message = f'Unsupported content-type "{content_type}' if content_type else "Missing content-type header"
    return error_response(415, message, procedure)
