"""Light clients, so that the server is what is measured: many WebSockets in one epoll loop, and HTTP under load."""

import base64
import os
import re
import select
import socket
import struct
import time
from collections.abc import Callable

BATCH = 40  # sockets that open at the same time; the server's backlog is 50
VERSION = re.compile(rb'data-version="(\d+)"')
TEXT, CLOSE, PING = 1, 8, 9


class Gone(Exception):
    """The server closed a socket."""


class Watcher:
    """One WebSocket: which version its newest frame shows, when that arrived, and how many frames came."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.open = False
        self.version, self.at, self.frames = 0, 0, 0
        self._rest = b""

    def take(self, data: bytes | memoryview, now: int) -> None:
        buffer = self._rest + data if self._rest else bytes(data)
        if not self.open:
            head, separator, buffer = buffer.partition(b"\r\n\r\n")
            if not separator:
                self._rest = head
                return
            if b" 101 " not in head:
                raise Gone(head[:80].decode("latin-1"))
            self.open = True
        while len(buffer) >= 2:
            code, length, start = buffer[0] & 15, buffer[1], 2
            if length == 126:
                start = 4
                length = struct.unpack_from("!H", buffer, 2)[0] if len(buffer) >= 4 else 1 << 62
            elif length == 127:
                start = 10
                length = struct.unpack_from("!Q", buffer, 2)[0] if len(buffer) >= 10 else 1 << 62
            if len(buffer) < start + length:
                break
            self._frame(code, buffer[start : start + length], now)
            buffer = buffer[start + length :]
        self._rest = buffer

    def _frame(self, code: int, payload: bytes, now: int) -> None:
        if code == TEXT:
            self.frames += 1
            found = VERSION.search(payload, 0, 2000)
            if found:
                self.version, self.at = int(found[1]), now
        elif code == PING:  # masked with nought, which leaves the payload as it is
            self.connection.send(bytes([0x8A, 0x80 | len(payload)]) + bytes(4) + payload)
        elif code == CLOSE:
            raise Gone(repr(payload))


class Watchers:
    """All the sockets of this process. Whoever waits, waits here: pings must be answered meanwhile."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._all: dict[int, Watcher] = {}
        self._space = bytearray(1 << 18)
        self._view = memoryview(self._space)

    def open(self, port: int, path: str, count: int, *, first_frame: bool) -> list[Watcher]:
        """Opens so many; they are there when each has the handshake's answer, or its first frame."""
        opened: list[Watcher] = []
        while len(opened) < count:
            batch = [self._begin(port, path) for _ in range(min(BATCH, count - len(opened)))]
            ready = lambda batch=batch: all(w.frames if first_frame else w.open for w in batch)  # noqa: E731
            self.until(ready, 30)
            opened += batch
        return opened

    def _begin(self, port: int, path: str) -> Watcher:
        connection = socket.create_connection(("127.0.0.1", port), 10)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [
            f"GET {path} HTTP/1.1",
            f"Host: 127.0.0.1:{port}",
            f"Origin: http://127.0.0.1:{port}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {key}",
        ]
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        connection.setblocking(False)
        watcher = Watcher(connection)
        self._all[connection.fileno()] = watcher
        self._epoll.register(connection.fileno(), select.EPOLLIN)
        return watcher

    def close(self, watchers: list[Watcher]) -> None:
        for watcher in watchers:
            self._epoll.unregister(watcher.connection.fileno())
            del self._all[watcher.connection.fileno()]
            watcher.connection.close()

    def close_all(self) -> None:
        self.close(list(self._all.values()))
        self._epoll.close()

    def until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Reads until the condition holds; whether it came to that in time."""
        deadline = time.monotonic() + seconds
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self._read(min(left, 0.05))
        return True

    def pause(self, seconds: float) -> None:
        self.until(lambda: False, seconds)

    def shown(self, watchers: list[Watcher], version: int, seconds: float) -> list[int]:
        """When each was shown this version or a newer one, as far as they were within so many seconds."""
        waiting = list(watchers)

        def all_have() -> bool:
            while waiting and waiting[-1].version >= version:
                waiting.pop()
            return not waiting

        self.until(all_have, seconds)
        return [watcher.at for watcher in watchers if watcher.version >= version]

    def _read(self, seconds: float) -> None:
        for number, _ in self._epoll.poll(seconds):
            watcher = self._all[number]
            size = watcher.connection.recv_into(self._space)
            now = time.monotonic_ns()
            if not size:
                raise Gone("closed without a word")
            watcher.take(self._view[:size], now)


class Load:
    """Keep-alive connections that ask the same thing again and again."""

    def __init__(self, port: int, request: bytes, connections: int) -> None:
        self._request = request
        self._connections = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(connections)]
        for connection in self._connections:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def per_second(self, seconds: float, status: int) -> float:
        """How many answers of this status come in a second. Any other status is an error."""
        answers, began = 0, time.monotonic()
        with select.epoll() as epoll:
            for connection in self._connections:
                epoll.register(connection.fileno(), select.EPOLLIN)
                connection.sendall(self._request)
            by_number = {connection.fileno(): connection for connection in self._connections}
            parts = dict.fromkeys(by_number, b"")
            waiting = len(by_number)
            while waiting:
                for number, _ in epoll.poll(5):
                    parts[number] += by_number[number].recv(65536)
                    if not _is_whole(parts[number]):
                        continue
                    if not parts[number].startswith(b"HTTP/1.1 %d" % status):
                        raise Gone(parts[number][:200].decode("latin-1"))
                    parts[number] = b""
                    answers += 1
                    if time.monotonic() - began < seconds:
                        by_number[number].sendall(self._request)
                    else:
                        waiting -= 1
        return answers / (time.monotonic() - began)

    def times(self, requests: list[bytes], status: int) -> list[float]:
        """Milliseconds of each of these requests, one after the other on the first connection."""
        connection, took = self._connections[0], []
        for request in requests:
            began = time.monotonic_ns()
            connection.sendall(request)
            answer = b""
            while not _is_whole(answer):
                part = connection.recv(65536)
                if not part:
                    raise Gone("closed without a word")
                answer += part
            took.append((time.monotonic_ns() - began) / 1e6)
            if not answer.startswith(b"HTTP/1.1 %d" % status):
                raise Gone(answer[:300].decode("latin-1"))
        return took

    def close(self) -> None:
        for connection in self._connections:
            connection.close()


def request(port: int, method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def _is_whole(answer: bytes) -> bool:
    head, separator, body = answer.partition(b"\r\n\r\n")
    if not separator:
        return False
    if b" 304 " in head[:16]:
        return True
    head = head.lower()
    if b"transfer-encoding: chunked" in head:
        return body.endswith(b"0\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: *(\d+)", head)
    return length is not None and len(body) >= int(length[1])
