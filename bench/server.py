"""`python -m bench.server product|stock`: the portal's own `serve`, with a door under /bench/ through which a bench
makes changes from inside the process. As the baseline the same command serves stock Channels and stock Django."""

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

Scope = dict[str, Any]
Application = Callable[[Scope, Any, Any], Awaitable[None]]

STARTPROJECT = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]


class Door:
    """Answers /bench/…; everything else is the application's.

    A change is made a moment after it was asked for, so that the answer is not in the way of what is measured.
    """

    def __init__(self, application: Application, *, stock: bool) -> None:
        from . import changes

        self.application = application
        self.changes = changes.Stock() if stock else changes.Changes()
        self._created: asyncio.Task[dict[str, int]] | None = None

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/bench/"):
            await self.application(scope, receive, send)
            return
        query = {name: values[0] for name, values in parse_qs(scope["query_string"].decode()).items()}
        answer = await self.answer(scope["path"].removeprefix("/bench/"), query)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

    async def answer(self, what: str, query: dict[str, str]) -> Any:
        match what:
            case "new":
                return await self.changes.new(query["name"], anonymous="anonymous" in query)
            case "change":
                id, times = query["id"], int(query.get("times", "1"))
                self._created = asyncio.create_task(self._make(id, times))
                return {"version": self.changes.runs[id].version + times}
            case "changed":
                assert self._created is not None
                return await self._created if self._created.done() or "wait" not in query else {}
            case "renders":
                return self.changes.renders(query["id"])
            case "run":
                return await self.changes.look(query["id"])
            case "ended":
                return await self.changes.ended()
            case "pauses":
                return pauses()
        return {"ready": time.monotonic_ns()}

    async def _make(self, id: str, times: int) -> dict[str, int]:
        await asyncio.sleep(0.02)
        return await self.changes.make(id, times)


_pauses: list[tuple[str, float]] = []


def note_pauses() -> None:
    """Every sleep that the engine takes is noted, with the function that takes it."""
    sleep = asyncio.sleep

    async def noted(delay: float, result: Any = None) -> Any:
        caller = sys._getframe(1)
        if str(caller.f_globals.get("__name__", "")).startswith("deployments.engine"):
            _pauses.append((caller.f_code.co_name, delay))
        return await sleep(delay, result)

    asyncio.sleep = noted


def pauses() -> list[tuple[str, float]]:
    """The sleeps since this was asked the last time."""
    noted = list(_pauses)
    _pauses.clear()
    return noted


def main(kind: str) -> None:
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

    if kind == "stock":
        from . import stock

        asgi.application = stock.application(asgi)
    asgi.application = Door(asgi.application, stock=kind == "stock")
    note_pauses()
    call_command("serve", no_sample=True)


if __name__ == "__main__":
    main(sys.argv[1])
