"""Tasks that run again and again for as long as the process lives."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)


async def repeat(
    task: Callable[[], Awaitable[None]], seconds: float, name: str, *, expected: tuple[type[Exception], ...] = ()
) -> None:
    """Run the task every so many seconds until cancelled.

    The next run follows whatever the last one raised. An error is logged under the name of the task: one line for an
    expected error, with a traceback for any other.
    """
    while True:
        await asyncio.sleep(seconds)
        try:
            await task()
        except expected as error:
            log.warning("%s failed, retrying: %s", name, str(error).strip() or type(error).__name__)
        except Exception:
            log.exception("%s failed, retrying", name)
