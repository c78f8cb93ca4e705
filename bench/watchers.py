"""Many WebSockets in one process, with negligible cost for the measured server.

The kernel stamps each segment with its time of arrival, so this process need not be running then. It reads all sockets
every few milliseconds and takes the time from the stamp (SO_TIMESTAMPNS, socket(7); TCP since Linux 4.14).
"""

import base64
import os
import re
import select
import socket
import struct
import time
from collections.abc import Callable

SO_TIMESTAMPNS = 35  # the socket module does not name it
READ_SECONDS = 0.01  # between two readings of all sockets
OPEN_SECONDS = 30
BATCH = 40  # sockets that open at the same time; the server's backlog is 50
VERSION = re.compile(rb'data-version="(\d+)"')
TEXT, CLOSE, PING = 1, 8, 9


class Closed(Exception):
    """The server closed a connection."""


class Watcher:
    """One WebSocket: the version and size of its newest frame, when that arrived, and how many frames have come."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.open = False
        self.version, self.size, self.frames = 0, 0, 0
        self.at = 0
        """When the newest frame arrived, in nanoseconds since 1970."""
        self._rest = b""

    def receive(self, data: bytes | memoryview, now: int) -> None:
        """Read what has arrived: the answer to the handshake, then frames."""
        buffer = self._rest + data if self._rest else bytes(data)
        if not self.open:
            head, separator, buffer = buffer.partition(b"\r\n\r\n")
            if not separator:
                self._rest = head
                return
            if b" 101 " not in head:
                raise Closed(head[:80].decode("latin-1"))
            self.open = True
        while len(buffer) >= 2:
            start, length = _payload_span(buffer)
            if len(buffer) < start + length:
                break
            self._frame(buffer[0] & 15, buffer[start : start + length], now)
            buffer = buffer[start + length :]
        self._rest = buffer

    def _frame(self, code: int, payload: bytes, now: int) -> None:
        if code == TEXT:
            self.frames += 1
            found = VERSION.search(payload, 0, 2000)
            if found:
                self.version, self.size, self.at = int(found[1]), len(payload), now
        elif code == PING:  # the mask of four zero bytes leaves the payload as it is
            self.connection.send(bytes([0x8A, 0x80 | len(payload)]) + bytes(4) + payload)
        elif code == CLOSE:
            raise Closed(repr(payload))


class Watchers:
    """All WebSockets of this process. Every wait happens here, because pings must be answered meanwhile."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._all: dict[int, Watcher] = {}
        self._space = bytearray(1 << 18)
        self._view = memoryview(self._space)

    def open(self, port: int, path: str, count: int, *, first_frame: bool) -> list[Watcher]:
        """Open this many WebSockets, and return them when each has the handshake's answer or its first frame."""
        opened: list[Watcher] = []
        while len(opened) < count:
            batch = [self._begin(port, path) for _ in range(min(BATCH, count - len(opened)))]
            ready = lambda batch=batch: all(w.frames if first_frame else w.open for w in batch)  # noqa: E731
            assert self.until(ready, OPEN_SECONDS), f"{path} sends nothing to some of {count} sockets"
            opened += batch
        return opened

    def _begin(self, port: int, path: str) -> Watcher:
        connection = socket.create_connection(("127.0.0.1", port), 10)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        lines = [
            f"GET {path} HTTP/1.1",
            f"Host: 127.0.0.1:{port}",
            f"Origin: http://127.0.0.1:{port}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        ]
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        connection.setblocking(False)
        watcher = Watcher(connection)
        self._all[connection.fileno()] = watcher
        self._epoll.register(connection.fileno(), select.EPOLLIN)
        return watcher

    def close(self, watchers: list[Watcher]) -> None:
        """Close these WebSockets."""
        for watcher in watchers:
            self._epoll.unregister(watcher.connection.fileno())
            del self._all[watcher.connection.fileno()]
            watcher.connection.close()

    def close_all(self) -> None:
        """Close every WebSocket."""
        self.close(list(self._all.values()))
        self._epoll.close()

    def until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Read until the condition is true; return whether it became true within this many seconds."""
        deadline = time.monotonic() + seconds
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(left, READ_SECONDS))
            self._read()
        return True

    def pause(self, seconds: float) -> None:
        """Read for this many seconds."""
        self.until(lambda: False, seconds)

    def arrivals(self, watchers: list[Watcher], version: int, seconds: float) -> list[int]:
        """Wait up to this many seconds for this version or a newer one; return its times of arrival at the watchers."""
        waiting = list(watchers)

        def all_have_it() -> bool:
            while waiting and waiting[-1].version >= version:
                waiting.pop()
            return not waiting

        self.until(all_have_it, seconds)
        return [watcher.at for watcher in watchers if watcher.version >= version]

    def _read(self) -> None:
        for number, _ in self._epoll.poll(0):
            watcher = self._all[number]
            size, ancillary, _, _ = watcher.connection.recvmsg_into([self._space], 64)
            if not size:
                raise Closed("closed without a close frame")
            watcher.receive(self._view[:size], _stamp(ancillary))


def _payload_span(buffer: bytes) -> tuple[int, int]:
    """Return where a frame's payload starts and how long it is (RFC 6455, 5.2), in bytes.

    The length is huge while the header is incomplete.
    """
    if buffer[1] < 126:
        return 2, buffer[1]
    start, form = (4, "!H") if buffer[1] == 126 else (10, "!Q")
    return start, int(struct.unpack_from(form, buffer, 2)[0]) if len(buffer) >= start else 1 << 62


def _stamp(ancillary: list[tuple[int, int, bytes]]) -> int:
    """Return the kernel's stamp in nanoseconds since 1970, or the current time if the kernel gave none."""
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
            seconds, nanoseconds = struct.unpack("qq", data)
            return int(seconds) * 1_000_000_000 + int(nanoseconds)
    return time.time_ns()
