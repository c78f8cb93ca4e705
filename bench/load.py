"""A client for HTTP requests over keep-alive connections that itself needs little CPU."""

import re
import select
import socket
import time
from dataclasses import dataclass

from .watchers import Closed

ANSWER_SECONDS = 20


@dataclass(frozen=True, slots=True)
class Rate:
    """The number of answers that arrived in this number of seconds."""

    answers: int
    seconds: float

    @property
    def per_second(self) -> float:
        return self.answers / self.seconds


class Load:
    """Keep-alive connections to one port of this machine."""

    def __init__(self, port: int, connections: int) -> None:
        self._connections = [socket.create_connection(("127.0.0.1", port), ANSWER_SECONDS) for _ in range(connections)]
        for connection in self._connections:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> "Load":
        return self

    def __exit__(self, *error: object) -> None:
        for connection in self._connections:
            connection.close()

    def rate(self, request: bytes, status: int, seconds: float) -> Rate:
        """Send the same request repeatedly on every connection. Raises Closed for an answer with another status."""
        answers, began = 0, time.monotonic()
        with select.epoll() as epoll:
            by_number = {connection.fileno(): connection for connection in self._connections}
            for number, connection in by_number.items():
                epoll.register(number, select.EPOLLIN)
                connection.sendall(request)
            received = dict.fromkeys(by_number, b"")
            waiting = len(by_number)
            while waiting:
                ready = epoll.poll(ANSWER_SECONDS)
                if not ready:
                    raise Closed(f"no answer within {ANSWER_SECONDS} s")
                for number, _ in ready:
                    received[number] += _receive(by_number[number])
                    if not _is_whole(received[number]):
                        continue
                    _require(received[number], status)
                    received[number] = b""
                    answers += 1
                    if time.monotonic() - began < seconds:
                        by_number[number].sendall(request)
                    else:
                        waiting -= 1
        return Rate(answers, time.monotonic() - began)

    def times(self, requests: list[bytes], status: int) -> list[float]:
        """Send the requests one after the other on the first connection; return the milliseconds of each."""
        connection, took = self._connections[0], []
        for request in requests:
            began = time.monotonic_ns()
            connection.sendall(request)
            answer = b""
            while not _is_whole(answer):
                answer += _receive(connection)
            took.append((time.monotonic_ns() - began) / 1e6)
            _require(answer, status)
        return took


def request(port: int, method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """Return an HTTP request. An underscore in a header's name stands for a hyphen."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def _receive(connection: socket.socket) -> bytes:
    part = connection.recv(65536)
    if not part:
        raise Closed("closed before the answer was complete")
    return part


def _require(answer: bytes, status: int) -> None:
    if not answer.startswith(b"HTTP/1.1 %d" % status):
        raise Closed(answer[:300].decode("latin-1"))


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
