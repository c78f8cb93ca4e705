"""The server's side of a WebSocket (RFC 6455), limited to what a log needs: text, ping and close."""

import asyncio
import base64
import hashlib
import struct

MAGIC = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, CLOSE, PING, PONG = 1, 8, 9, 10
# The largest payload in bytes of a client's frame. Clients send control frames only.
FRAME_LIMIT = 64 * 1024


def accept_token(key: str) -> str:
    """Return the value of Sec-WebSocket-Accept for a client's key."""
    return base64.b64encode(hashlib.sha1((key + MAGIC).encode(), usedforsecurity=False).digest()).decode()


class WebSocket:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, received: bytes = b"") -> None:
        self._reader = reader
        self._writer = writer
        self._received = bytearray(received)

    async def send(self, text: str) -> None:
        await self._send(TEXT, text.encode())

    async def close(self, code: int | None = None, reason: str = "") -> None:
        """Send a close frame and wait until the client closes."""
        await self._send(CLOSE, b"" if code is None else struct.pack("!H", code) + reason.encode())
        await self.until_closed()

    async def until_closed(self) -> None:
        """Answer pings until the client closes or disconnects."""
        try:
            while True:
                opcode, payload = await self._receive()
                if opcode == PING:
                    await self._send(PONG, payload)
                elif opcode == CLOSE:
                    await self._send(CLOSE, payload)
                    return
        except (asyncio.IncompleteReadError, OSError):
            return

    async def _send(self, opcode: int, payload: bytes) -> None:
        size = len(payload)
        if size < 126:
            head = struct.pack("!BB", 0x80 | opcode, size)
        elif size < 65536:
            head = struct.pack("!BBH", 0x80 | opcode, 126, size)
        else:
            head = struct.pack("!BBQ", 0x80 | opcode, 127, size)
        self._writer.write(head + payload)
        await self._writer.drain()

    async def _receive(self) -> tuple[int, bytes]:
        first, second = await self._read(2)
        size = second & 0x7F
        if size >= 126:
            size = int.from_bytes(await self._read(2 if size == 126 else 8))
        if not second & 0x80 or size > FRAME_LIMIT:
            raise ConnectionError("the client sent an invalid frame")
        mask = await self._read(4)
        payload = await self._read(size)
        return first & 0x0F, bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))

    async def _read(self, size: int) -> bytes:
        while len(self._received) < size:
            more = await self._reader.read(4096)
            if not more:
                raise asyncio.IncompleteReadError(bytes(self._received), size)
            self._received += more
        taken = bytes(self._received[:size])
        del self._received[:size]
        return taken
