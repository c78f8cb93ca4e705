"""The pauses of the engine: every `asyncio.sleep` that it makes, with the function that asks for it."""

import asyncio
import sys
from collections import defaultdict
from collections.abc import Coroutine
from typing import Any

ENGINE = "deployments.engine"

_slept: defaultdict[str, float] = defaultdict(float)


def record() -> None:
    """Replace `asyncio.sleep` in this process by one that notes how long the engine sleeps."""
    sleep = asyncio.sleep

    def noted(delay: float, result: Any = None) -> Coroutine[Any, Any, Any]:
        # The caller is found here, not in the coroutine: a task may run that one, and then the event loop calls it.
        caller = sys._getframe(1)
        if not str(caller.f_globals.get("__name__", "")).startswith(ENGINE):
            return sleep(delay, result)
        return timed(caller.f_code.co_qualname, delay, result)

    async def timed(function: str, delay: float, result: Any) -> Any:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            return await sleep(delay, result)
        finally:  # a pause may be cancelled early, or end late because the loop was busy; a negative one takes no time
            _slept[function] += min(loop.time() - began, max(delay, 0.0))

    asyncio.sleep = noted


def take() -> dict[str, float]:
    """Return the seconds slept since the last call, by function, and start again from nothing."""
    found = dict(_slept)
    _slept.clear()
    return found
