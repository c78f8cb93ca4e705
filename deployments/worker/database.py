"""Database functions run from the event loop. While the database is away, they are tried again."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from asgiref.sync import sync_to_async
from django.db import close_old_connections

from ..models import DATABASE_AWAY

RECONNECT_SECONDS = 0.5

T = TypeVar("T")

log = logging.getLogger(__name__)


async def in_database(
    query: Callable[..., T], *arguments: Any, before_try: Callable[[], None] = lambda: None, name: str
) -> T:
    """Return the result of a database function, run in a thread.

    While the database is away, try again every RECONNECT_SECONDS, and log why under this name. `before_try` is called
    before each try; an exception that it raises ends the waiting.
    """
    while True:
        before_try()
        try:
            return await sync_to_async(query)(*arguments)
        except DATABASE_AWAY as error:
            log.warning("%s waits for the database: %s", name, str(error).strip())
        await asyncio.sleep(RECONNECT_SECONDS)
        await sync_to_async(close_old_connections)()  # those that no longer work
