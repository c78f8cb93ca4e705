"""Repeat tasks and database queries despite errors and while the database is unavailable."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from asgiref.sync import sync_to_async
from django.db import close_old_connections

from .models import DATABASE_AWAY

RECONNECT_SECONDS = 0.5

T = TypeVar("T")

log = logging.getLogger(__name__)


async def repeat(
    task: Callable[[], Awaitable[None]], seconds: float, name: str, *, expected: tuple[type[Exception], ...] = ()
) -> None:
    """Run the task every `seconds` until cancelled, the first time after one such pause.

    An error does not end the repetition. It is logged under the task's name: on one line if the database is unavailable
    or the error is expected, otherwise with a traceback.
    """
    temporary: tuple[type[Exception], ...] = (*DATABASE_AWAY, *expected)
    while True:
        await asyncio.sleep(seconds)
        try:
            await task()
        except temporary as error:
            log.warning("%s failed, retrying: %s", name, str(error).strip() or type(error).__name__)
            await reconnect()
        except Exception:
            log.exception("%s failed, retrying", name)


async def in_database(
    query: Callable[..., T], *arguments: Any, before_try: Callable[[], None] = lambda: None, name: str
) -> T:
    """Return the result of a database function, run in a thread.

    While the database is unavailable, try again every RECONNECT_SECONDS, and log the error under `name`.
    `before_try` is called before each try; an exception that it raises ends the waiting.
    """
    while True:
        before_try()
        try:
            return await sync_to_async(query)(*arguments)
        except DATABASE_AWAY as error:
            log.warning("%s waits for the database: %s", name, str(error).strip())
        await reconnect()


async def reconnect() -> None:
    """Wait RECONNECT_SECONDS, then drop database connections that no longer work."""
    await asyncio.sleep(RECONNECT_SECONDS)
    await sync_to_async(close_old_connections)()
