"""What is decided before Django sees a request: static files, the cap on bodies, the origin of sockets."""

import json
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.staticfiles import finders
from whitenoise.base import WhiteNoise

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Application = Callable[[Any, Any, Any], Awaitable[None]]

FORBIDDEN = 4403
NOT_FOUND = 4404


def _header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name), "")


class StaticFiles:
    """Whitenoise's files, without Django's middleware: it is synchronous and would cost every request a thread."""

    def __init__(self, application: Application) -> None:
        self.application = application
        self.files = WhiteNoise(None, max_age=3600, add_headers_function=self._headers)
        for finder in finders.get_finders():
            for path, storage in finder.list(["*.map"]):
                self.files.add_file_to_dictionary(f"{settings.STATIC_URL}{path}", storage.path(path))

    @staticmethod
    def _headers(headers: Any, path: str, url: str) -> None:
        headers["X-Content-Type-Options"] = "nosniff"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self.files.files.get(scope["path"])
        if found is None:
            await self.application(scope, receive, send)
            return
        environ = {
            f"HTTP_{key.decode('latin-1').upper().replace('-', '_')}": value.decode("latin-1")
            for key, value in scope["headers"]
        }
        response = found.get_response(scope["method"], environ)
        headers = [(key.lower().encode(), value.encode()) for key, value in response.headers]
        await send({"type": "http.response.start", "status": int(response.status), "headers": headers})
        body = b""
        if response.file is not None:
            with response.file:
                body = response.file.read()
        await send({"type": "http.response.body", "body": body})


class BodyLimit:
    """Answers 413 to a body that is too large, whether its length is announced or not."""

    def __init__(self, application: Application) -> None:
        self.application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
        announced = _header(scope, b"content-length")
        if announced.isdecimal() and int(announced) > limit:
            await self._refuse(send)
            return
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if len(body) > limit:
                await self._refuse(send)
                return
            if not message.get("more_body"):
                break
        whole: list[dict[str, Any]] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def receive_whole() -> dict[str, Any]:
            return whole.pop() if whole else await receive()

        await self.application(scope, receive_whole, send)

    async def _refuse(self, send: Send) -> None:
        message = f"The body is larger than {settings.DATA_UPLOAD_MAX_MEMORY_SIZE // 1024} KiB."
        body = json.dumps({"success": False, "error": {"code": "TOO_LARGE", "message": message}}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
        ]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class SameOrigin:
    """A socket's Origin is this portal's own: scheme, host and port, to the letter. No Origin, no socket."""

    def __init__(self, application: Application) -> None:
        self.application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._is_own(scope):
            await self.application(scope, receive, send)
        else:
            await receive()
            await send({"type": "websocket.close", "code": FORBIDDEN})

    def _is_own(self, scope: Scope) -> bool:
        origin, host = _header(scope, b"origin").lower(), _header(scope, b"host").lower()
        scheme = "https" if settings.TLS or scope.get("scheme") == "wss" else "http"
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:  # brackets that do not close
            return False
        allowed = [entry.strip("[]").lower() for entry in settings.ALLOWED_HOSTS]
        return origin == f"{scheme}://{host}" and (name in allowed)


class KnownSockets:
    """An address that no socket has is a refusal, not an error."""

    def __init__(self, application: Application) -> None:
        self.application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.application(scope, receive, send)
        except ValueError as error:
            if not str(error).startswith("No route found"):
                raise
            await send({"type": "websocket.close", "code": NOT_FOUND})
