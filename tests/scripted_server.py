"""An HTTP server on a real socket that sends what a test tells it to, byte for byte."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from deployments.engine.errors import DokployError


@dataclass
class Request:
    method: str
    path: str
    head: str
    body: bytes


Behaviour = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]
"""Responds to one request, or does not."""


def http_response(status: int, body: bytes, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def responds(status: int, body: bytes, **headers: str) -> Behaviour:
    async def behave(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(http_response(status, body, **headers))
        await writer.drain()

    return behave


def responds_json(status: int, value: Any) -> Behaviour:
    return responds(status, json.dumps(value).encode(), Content_Type="application/json")


def in_turn(*behaviours: Behaviour) -> Behaviour:
    """Return a behaviour that uses each of these once, in order, and then always the last one."""
    remaining = list(behaviours)

    async def behave(request: Request, writer: asyncio.StreamWriter) -> None:
        await (remaining.pop(0) if len(remaining) > 1 else remaining[0])(request, writer)

    return behave


class Server:
    """Records its requests. `behaviour` responds to them, but `health` to those for Dokploy's health."""

    def __init__(self) -> None:
        self.behaviour: Behaviour = responds(200, b"[]")
        self.health: Behaviour = responds(200, b"{}")
        self.requests: list[Request] = []
        self.connections = 0
        self.arrived = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self.url

    async def stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def procedures(self) -> list[str]:
        """Return the names of the called procedures, in order."""
        return [request.path.partition("?")[0].removeprefix("/api/") for request in self.requests]

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort() if task.cancelling() else writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            lengths = [line.partition(":")[2] for line in head.lower().split("\r\n") if "content-length:" in line]
            method, path, _ = head.split(" ", 2)
            request = Request(method, path, head, await reader.readexactly(int(lengths[0]) if lengths else 0))
            self.requests.append(request)
            self.arrived.set()
            await (self.health if "trpc/settings.health" in path else self.behaviour)(request, writer)
            if writer.is_closing():
                break


async def error_of(call: Awaitable[Any]) -> DokployError:
    """Return the error that the call raises."""
    with pytest.raises(DokployError) as caught:
        await asyncio.wait_for(call, 20)
    return caught.value
