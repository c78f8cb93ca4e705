"""A small HTTP/1.1 server on h11 that can also misbehave: reset, stall, dribble, flood."""

import asyncio
import json
import logging
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import h11

from .websocket import WebSocket, accept

logger = logging.getLogger(__name__)

# Node announces `timeout=5` and closes an idle connection after 6 s.
IDLE = 6.0
# What is read of a request's body at most; the API's own limit is lower.
BODY_LIMIT = 8 * 1024 * 1024
HUGE = 50 * 1024 * 1024


@dataclass
class Request:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return unquote(urlsplit(self.target).path)

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.target).query, keep_blank_values=True))


@dataclass
class Response:
    """An answer and how it is given: plain, reset, hang, slow (a byte at a time), huge, or a WebSocket's talk."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    delivery: str = "plain"
    seconds: float | None = None
    talk: Callable[[WebSocket], Awaitable[None]] | None = None


def json_response(value: Any, status: int = 200) -> Response:
    """As Dokploy's procedures answer: chunked, without a character set."""
    return Response(status, {"Content-Type": "application/json"}, json.dumps(value, ensure_ascii=False).encode())


def sized_response(content_type: str, text: str, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """As its other routes and most other servers answer: with a character set and a length."""
    body = text.encode()
    framing = {"Content-Type": f"{content_type}; charset=utf-8", "Content-Length": str(len(body))}
    return Response(status, {**framing, **(headers or {})}, body)


def text_response(text: str, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return sized_response("text/plain", text, status, headers)


Handler = Callable[[Request], Awaitable[Response]]


class Server:
    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def listen(self, host: str, port: int) -> int:
        self._server = await asyncio.start_server(self._connected, host, port, reuse_address=True)
        address: tuple[Any, ...] = self._server.sockets[0].getsockname()
        return int(address[1])

    async def close(self) -> None:
        if self._server:
            self._server.close()
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await Connection(reader, writer, self._handler).serve()
        except (OSError, h11.RemoteProtocolError, h11.LocalProtocolError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            writer.close()


class Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: Handler) -> None:
        self._reader = reader
        self._writer = writer
        self._handler = handler
        self._h11 = h11.Connection(h11.SERVER)

    async def serve(self) -> None:
        while True:
            request = await self._receive()
            if request is None:
                return
            try:
                response = await self._handler(request)
            except Exception:
                logger.exception("%s %s failed", request.method, request.target)
                response = text_response("Internal Server Error", 500)
            await self._deliver(request, response)
            if self._h11.our_state is not h11.DONE or self._h11.their_state is not h11.DONE:
                return
            self._h11.start_next_cycle()

    async def _receive(self) -> Request | None:
        head: h11.Request | None = None
        body = bytearray()
        while True:
            event = self._h11.next_event()
            if event is h11.NEED_DATA:
                if self._h11.they_are_waiting_for_100_continue:
                    await self._send(h11.InformationalResponse(status_code=100, headers=[]))
                try:
                    data = await asyncio.wait_for(self._reader.read(65536), IDLE)
                except TimeoutError:
                    return None
                self._h11.receive_data(data)
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > BODY_LIMIT:
                    return None
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}
                return Request(head.method.decode(), head.target.decode("latin-1"), headers, bytes(body))
            else:
                return None

    async def _deliver(self, request: Request, response: Response) -> None:
        if response.delivery == "hang":
            await self._hang(response.seconds)
            return
        if response.delivery == "reset":
            self._reset()
            return
        if response.talk is not None:
            await self._talk(request, response.talk)
            return
        headers = {**response.headers, "Keep-Alive": "timeout=5"}
        await self._send(h11.Response(status_code=response.status, headers=list(headers.items())))
        if request.method != "HEAD" and response.status != 204:
            await self._send_body(response)
        await self._send(h11.EndOfMessage())

    async def _talk(self, request: Request, talk: Callable[[WebSocket], Awaitable[None]]) -> None:
        token = accept(request.headers.get("sec-websocket-key", ""))
        headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": token}
        await self._send(h11.InformationalResponse(status_code=101, headers=list(headers.items())))
        await talk(WebSocket(self._reader, self._writer, self._h11.trailing_data[0]))

    async def _send_body(self, response: Response) -> None:
        if response.delivery == "slow":
            for byte in response.body:
                await asyncio.sleep(1.0 if response.seconds is None else response.seconds)
                await self._send(h11.Data(data=bytes([byte])))
        elif response.delivery == "huge":
            block = b"x" * (1024 * 1024)
            await self._send(h11.Data(data=b'"'))
            for _ in range(HUGE // len(block)):
                await self._send(h11.Data(data=block))
            await self._send(h11.Data(data=b'"'))
        elif response.body:
            await self._send(h11.Data(data=response.body))

    async def _send(self, event: h11.Event) -> None:
        self._writer.write(self._h11.send(event) or b"")
        await self._writer.drain()

    async def _hang(self, seconds: float | None) -> None:
        """Say nothing until the client has gone, or for so long."""
        try:
            async with asyncio.timeout(seconds):
                while await self._reader.read(65536):
                    pass
        except TimeoutError:
            self._reset()

    def _reset(self) -> None:
        """Closing with a linger time of nought sends RST instead of FIN."""
        connection = self._writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()
