"""A coroutine that a cancellation of its caller does not interrupt."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def uninterrupted(call: Coroutine[Any, Any, T]) -> T:
    """Run the call to its end even if the caller is cancelled, and return its result.

    The caller's CancelledError is raised after the end of the call. A second cancellation also cancels the call.
    """
    task = asyncio.ensure_future(call)
    try:
        return await asyncio.shield(task)
    finally:
        await asyncio.gather(task, return_exceptions=True)
