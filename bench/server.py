"""The process of a measured server: `python -m bench.server product|stock`.

It runs the portal's own `serve` command, with a control address under /bench/ through which the bench makes changes
from inside the process. As the baseline, the same command serves stock Channels and stock Django views.
The process ends when its standard input is closed, so it never outlives the bench.
"""

import asyncio
import inspect
import json
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

from . import pauses

Scope = dict[str, Any]
Application = Callable[[Scope, Any, Any], Awaitable[None]]

CHANGE_DELAY_SECONDS = 0.02  # so that the answer to the request does not delay the change
STARTPROJECT = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]


class Control:
    """ASGI application that answers /bench/… and passes everything else to the measured application."""

    def __init__(self, application: Application, *, stock: bool) -> None:
        from . import changes

        self.application = application
        self.changes = changes.StockChanges() if stock else changes.Changes()
        self._change: asyncio.Task[dict[str, int]] | None = None

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/bench/"):
            await self.application(scope, receive, send)
            return
        query = {name: values[0] for name, values in parse_qs(scope["query_string"].decode()).items()}
        answer = await self.answer(scope["path"].removeprefix("/bench/"), query)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

    async def answer(self, action: str, query: dict[str, str]) -> Any:
        """Perform one action and return its result as JSON values."""
        changes = self.changes
        actions: dict[str, Callable[[], Any]] = {
            "ready": dict,
            "new": lambda: changes.new(query["name"], anonymous="anonymous" in query),
            "change": lambda: self._start_change(query["id"], int(query.get("times", "1"))),
            "changed": self._finish_change,
            "renders": lambda: changes.renders(query["id"]),
            "prepare": lambda: changes.prepare(query["name"], int(query["count"])),
            "begin": changes.begin,
            "pause": changes.pause,
            "resume": changes.resume,
            "pauses": pauses.take,
        }
        result = actions[action]()
        return await result if inspect.isawaitable(result) else result

    def _start_change(self, id: str, times: int) -> dict[str, int]:
        self._change = asyncio.create_task(self._make(id, times))
        return {"version": self.changes.deployments[id].version + times}

    async def _finish_change(self) -> dict[str, int]:
        """Return {} until the changes are complete. Raise the error if they failed."""
        assert self._change is not None
        return await self._change if self._change.done() else {}

    async def _make(self, id: str, times: int) -> dict[str, int]:
        await asyncio.sleep(CHANGE_DELAY_SECONDS)
        return await self.changes.make(id, times)


def end_with_the_bench() -> None:
    """Stop this process when the bench closes its standard input, however the bench ends."""

    def wait() -> None:
        os.read(sys.stdin.fileno(), 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def main(kind: str) -> None:
    """Serve until a signal arrives. kind: "product" or "stock"."""
    end_with_the_bench()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "deployportal.settings")
    import django
    from django.conf import settings

    if kind == "stock":
        settings.MIDDLEWARE = STARTPROJECT
        settings.ROOT_URLCONF = "bench.stock"
        settings.CHANNEL_LAYERS["default"].pop("CONFIG", None)
    django.setup()
    from django.core.management import call_command

    from deployportal import asgi

    application: Any = asgi.application
    if kind == "stock":
        from . import stock

        application = stock.application()
    asgi.application = Control(application, stock=kind == "stock")
    pauses.record()
    call_command("serve", no_sample=True)


if __name__ == "__main__":
    main(sys.argv[1])
