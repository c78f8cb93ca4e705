"""A small HTTP/1.1 server on h11 that can also misbehave: reset a connection, hang, send slowly or too much."""

import asyncio
import logging
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import h11

from .websocket import WebSocket, accept_token

logger = logging.getLogger(__name__)
WebSocketHandler = Callable[[WebSocket], Awaitable[None]]

# Node announces `timeout=5` and closes an idle connection after 6 seconds.
IDLE_SECONDS = 6.0
# The largest request body in bytes that is read. The API's own limit is lower.
BODY_LIMIT = 8 * 1024 * 1024
HUGE_BYTES = 50 * 1024 * 1024


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
    """A response and its delivery: plain, reset, hang, slow (one byte per `seconds`) or huge.

    With websocket_handler the connection becomes a WebSocket.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    delivery: str = "plain"
    seconds: float | None = None
    websocket_handler: WebSocketHandler | None = None


Handler = Callable[[Request], Awaitable[Response]]


class Server:
    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def listen(self, host: str, port: int) -> int:
        """Start to listen and return the port. If the given port is 0, the system chooses one. Raises OSError."""
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
                response = Response(500, {"Content-Type": "text/plain"}, b"Internal Server Error")
            await self._deliver(request, response)
            if self._h11.our_state is not h11.DONE or self._h11.their_state is not h11.DONE:
                return
            self._h11.start_next_cycle()

    async def _receive(self) -> Request | None:
        """Return the next request, or None if the connection is to be closed."""
        head: h11.Request | None = None
        body = bytearray()
        while len(body) <= BODY_LIMIT:
            match self._h11.next_event():
                case h11.NEED_DATA:
                    if not await self._read_more():
                        return None
                case h11.Request() as head:
                    pass
                case h11.Data(data=data):
                    body += data
                case h11.EndOfMessage() if head is not None:
                    headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}
                    return Request(head.method.decode(), head.target.decode("latin-1"), headers, bytes(body))
                case _:
                    return None
        return None

    async def _read_more(self) -> bool:
        """Pass what arrives next to the parser. Return False if nothing arrives in IDLE_SECONDS."""
        if self._h11.they_are_waiting_for_100_continue:
            await self._send(h11.InformationalResponse(status_code=100, headers=[]))
        try:
            self._h11.receive_data(await asyncio.wait_for(self._reader.read(65536), IDLE_SECONDS))
        except TimeoutError:
            return False
        return True

    async def _deliver(self, request: Request, response: Response) -> None:
        if response.delivery == "hang":
            await self._hang(response.seconds)
            return
        if response.delivery == "reset":
            self._reset()
            return
        if response.websocket_handler is not None:
            await self._upgrade(request, response.websocket_handler)
            return
        headers = {**response.headers, "Keep-Alive": "timeout=5"}
        await self._send(h11.Response(status_code=response.status, headers=list(headers.items())))
        if request.method != "HEAD" and response.status != 204:
            await self._send_body(response)
        await self._send(h11.EndOfMessage())

    async def _upgrade(self, request: Request, handler: WebSocketHandler) -> None:
        token = accept_token(request.headers.get("sec-websocket-key", ""))
        headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": token}
        await self._send(h11.InformationalResponse(status_code=101, headers=list(headers.items())))
        await handler(WebSocket(self._reader, self._writer, self._h11.trailing_data[0]))

    async def _send_body(self, response: Response) -> None:
        if response.delivery == "slow":
            for byte in response.body:
                await asyncio.sleep(1.0 if response.seconds is None else response.seconds)
                await self._send(h11.Data(data=bytes([byte])))
        elif response.delivery == "huge":
            block = b"x" * (1024 * 1024)
            await self._send(h11.Data(data=b'"'))
            for _ in range(HUGE_BYTES // len(block)):
                await self._send(h11.Data(data=block))
            await self._send(h11.Data(data=b'"'))
        elif response.body:
            await self._send(h11.Data(data=response.body))

    async def _send(self, event: h11.Event) -> None:
        self._writer.write(self._h11.send(event) or b"")
        await self._writer.drain()

    async def _hang(self, seconds: float | None) -> None:
        """Send nothing until the client disconnects. After this many seconds reset the connection; None is no limit."""
        try:
            async with asyncio.timeout(seconds):
                while await self._reader.read(65536):
                    pass
        except TimeoutError:
            self._reset()

    def _reset(self) -> None:
        """Close with a linger time of zero, which sends RST instead of FIN."""
        connection = self._writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()
