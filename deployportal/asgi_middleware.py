"""ASGI middleware, in front of Django: static files, the limit on request bodies, the origin of WebSockets."""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.staticfiles import finders
from whitenoise.base import WhiteNoise

from deployments.identity import scope_headers

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Application = Callable[[Any, Any, Any], Awaitable[None]]

# Close codes. Daphne sends HTTP 403 instead, because the WebSocket is not open yet.
FORBIDDEN = 4403
NOT_FOUND = 4404


class StaticFiles:
    """Serve static files with WhiteNoise, not its Django middleware, which would use a thread for every request."""

    def __init__(self, application: Application) -> None:
        self.application = application
        self.files = WhiteNoise(None, max_age=3600, add_headers_function=self._add_headers)
        for finder in finders.get_finders():
            for path, storage in finder.list(["*.map"]):
                self.files.add_file_to_dictionary(f"{settings.STATIC_URL}{path}", storage.path(path))

    @staticmethod
    def _add_headers(headers: Any, path: str, url: str) -> None:
        headers["X-Content-Type-Options"] = "nosniff"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        static_file = self.files.files.get(scope["path"])
        if static_file is None:
            await self.application(scope, receive, send)
            return
        environ = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in scope_headers(scope).items()}
        response = static_file.get_response(scope["method"], environ)
        headers = [(name.lower().encode(), value.encode()) for name, value in response.headers]
        await send({"type": "http.response.start", "status": int(response.status), "headers": headers})
        body = b""
        if response.file is not None:
            with response.file:
                body = response.file.read()
        await send({"type": "http.response.body", "body": body})


class BodyLimit:
    """Answer 413 to a request whose body is too large, with or without a Content-Length."""

    def __init__(self, application: Application) -> None:
        self.application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
        content_length = scope_headers(scope).get("content-length", "")
        if content_length.isdecimal() and int(content_length) > limit:
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
    """Refuse WebSockets whose Origin (scheme, host, port) is not exactly the portal's own, or is missing."""

    def __init__(self, application: Application) -> None:
        self.application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._is_same_origin(scope):
            await self.application(scope, receive, send)
        else:
            await receive()
            await send({"type": "websocket.close", "code": FORBIDDEN})

    def _is_same_origin(self, scope: Scope) -> bool:
        headers = scope_headers(scope)
        origin, host = headers.get("origin", "").lower(), headers.get("host", "").lower()
        scheme = "https" if settings.TLS or scope.get("scheme") == "wss" else "http"
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:  # unbalanced brackets
            return False
        allowed = [entry.strip("[]").lower() for entry in settings.ALLOWED_HOSTS]
        return origin == f"{scheme}://{host}" and (name in allowed)


class KnownSockets:
    """Refuse WebSockets at unknown paths, for which Channels' router raises an exception."""

    def __init__(self, application: Application) -> None:
        self.application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.application(scope, receive, send)
        except ValueError as error:
            if not str(error).startswith("No route found"):
                raise
            await send({"type": "websocket.close", "code": NOT_FOUND})
