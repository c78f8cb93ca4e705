"""The pauses of the engine: every call of `asyncio.sleep` in it, by the calling function."""

import asyncio
import sys
from collections import defaultdict
from collections.abc import Coroutine
from typing import Any

ENGINE = "deployments.engine"

_slept: defaultdict[str, float] = defaultdict(float)


def record() -> None:
    """Replace `asyncio.sleep` in this process with a function that records how long the engine sleeps."""
    sleep = asyncio.sleep

    def noted(delay: float, result: Any = None) -> Coroutine[Any, Any, Any]:
        # Find the caller here, not in the coroutine: if a task runs the coroutine, the event loop is its caller.
        caller = sys._getframe(1)
        if not str(caller.f_globals.get("__name__", "")).startswith(ENGINE):
            return sleep(delay, result)
        return timed(caller.f_code.co_qualname, delay, result)

    async def timed(function: str, delay: float, result: Any) -> Any:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            return await sleep(delay, result)
        finally:
            # A cancelled pause counts for its real time, one that ends late for its delay, a negative one for nothing.
            _slept[function] += min(loop.time() - began, max(delay, 0.0))

    asyncio.sleep = noted


def take() -> dict[str, float]:
    """Return the seconds slept since the last call, by function, and reset them."""
    found = dict(_slept)
    _slept.clear()
    return found
