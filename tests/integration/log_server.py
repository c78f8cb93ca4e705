"""A WebSocket server for followed logs, which a test can make fail. It forwards every other request."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

from websockets.utils import accept_key

TEXT, BINARY, CLOSE = 1, 2, 8


class Peer:
    """The server's side of one connection whose request head has been read."""

    def __init__(self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.head, self.reader, self.writer = head, reader, writer

    async def send(self, *parts: bytes) -> None:
        self.writer.write(b"".join(parts))
        await self.writer.drain()

    async def upgrade(self) -> None:
        key = next(line.split(": ")[1] for line in self.head.split("\r\n") if line.startswith("Sec-WebSocket-Key"))
        head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        await self.send(f"{head}Sec-WebSocket-Accept: {accept_key(key)}\r\n\r\n".encode())

    async def wait_until_closed(self) -> None:
        while await self.reader.read(65536):
            pass

    def reset(self) -> None:
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Behaviour = Callable[[Peer], Awaitable[None]]


def frame(payload: str | bytes, kind: int = TEXT, *, fin: bool = True) -> bytes:
    """Return an unmasked WebSocket frame (RFC 6455)."""
    data = payload.encode() if isinstance(payload, str) else payload
    head = bytes([0x80 * fin | kind])
    if len(data) < 126:
        return head + bytes([len(data)]) + data
    if len(data) < 65536:
        return head + b"\x7e" + struct.pack("!H", len(data)) + data
    return head + b"\x7f" + struct.pack("!Q", len(data)) + data


class LogServer:
    """Answers requests to follow a log with `on_listen`, and forwards every other request to the upstream port.

    Attributes:
        request_heads: the heads of the requests to follow a log.
        ended_count: how many followed logs have ended.
        connections: the number of connections of any kind.
    """

    def __init__(self, upstream: int = 0) -> None:
        self.upstream = upstream
        self.on_listen: Behaviour = self.forward
        self.request_heads: list[str] = []
        self.ended_count = 0
        self.connections = 0
        self._peers: set[Peer] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, **options: Any) -> str:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, **options)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self.url

    async def stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def reset_all(self) -> None:
        """Reset the connection of every followed log."""
        for peer in self._peers:
            peer.reset()

    async def forward(self, peer: Peer) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        writer.write(peer.head.encode())
        pumps = {asyncio.create_task(pump(peer.reader, writer)), asyncio.create_task(pump(reader, peer.writer))}
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in pumps:
                task.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            writer.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            peer = Peer((await reader.readuntil(b"\r\n\r\n")).decode(), reader, writer)
            if " /listen-deployment" in peer.head.partition("?")[0]:
                await self._listen(peer)
            else:
                await self.forward(peer)
        writer.close()
        self._tasks.discard(task)

    async def _listen(self, peer: Peer) -> None:
        self.request_heads.append(peer.head)
        self._peers.add(peer)
        try:
            await self.on_listen(peer)
        finally:
            self._peers.discard(peer)
            self.ended_count += 1


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


# -- behaviours --------------------------------------------------------------------------------------------------------


def sends(*frames: bytes, stays: bool = True) -> Behaviour:
    """Return a behaviour: upgrade, send the frames and, unless `stays` is false, wait until the client closes."""

    async def behave(peer: Peer) -> None:
        await peer.upgrade()
        await peer.send(*frames)
        if stays:
            await peer.wait_until_closed()

    return behave


def answers(status: int, body: str, *headers: str) -> Behaviour:
    """Return a behaviour: answer the request instead of upgrading the connection."""

    async def behave(peer: Peer) -> None:
        lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", *headers, "", body]
        await peer.send("\r\n".join(lines).encode())

    return behave


def closes(code: int | None = None, reason: str = "") -> Behaviour:
    """Return a behaviour: upgrade and send a close frame, with this code and reason."""
    payload = b"" if code is None else struct.pack("!H", code) + reason.encode()

    async def behave(peer: Peer) -> None:
        await peer.upgrade()
        await peer.send(frame(payload, CLOSE))

    return behave


async def resets(peer: Peer) -> None:
    peer.reset()


async def says_nothing(peer: Peer) -> None:
    await peer.wait_until_closed()
