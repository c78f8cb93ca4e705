"""A server of the tests' own on a real socket, that answers what a test says, byte for byte."""

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


class Server:
    """Remembers what it was sent; `does` answers, and `health` answers the question after Dokploy's health."""

    def __init__(self) -> None:
        self.does: Behaviour = says(200, b"[]")
        self.health: Behaviour = says(200, b"{}")
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
    def asked(self) -> list[str]:
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
            length = [line.partition(":")[2] for line in head.lower().split("\r\n") if "content-length:" in line]
            method, path, _ = head.split(" ", 2)
            request = Request(method, path, head, await reader.readexactly(int(length[0]) if length else 0))
            self.requests.append(request)
            self.arrived.set()
            await (self.health if "trpc/settings.health" in path else self.does)(request, writer)
            if writer.is_closing():
                break


def answer(status: int, body: bytes, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def says(status: int, body: bytes, **headers: str) -> Behaviour:
    async def does(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(status, body, **headers))
        await writer.drain()

    return does


def says_json(status: int, value: Any) -> Behaviour:
    return says(status, json.dumps(value).encode(), Content_Type="application/json")


def in_turn(*behaviours: Behaviour) -> Behaviour:
    left = list(behaviours)

    async def does(request: Request, writer: asyncio.StreamWriter) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(request, writer)

    return does


async def error_of(call: Awaitable[Any]) -> DokployError:
    with pytest.raises(DokployError) as caught:
        await asyncio.wait_for(call, 20)
    return caught.value


def kind_of(error: DokployError) -> type[DokployError]:
    return type(error)
