"""Gates: named points at which a test can hold API calls and deploy jobs."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field

# A deploy job passes "job" once its deployment exists, "pull" after the first line of the pull, and "stall" before
# it updates the service. A task passes "container" before it is up. An API call passes its procedure's name before
# it is executed and "name:answer" before the response is sent.
JOB_GATES = ("job", "pull", "stall", "container")


@dataclass
class Gate:
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: int = 0


class Gates:
    def __init__(self) -> None:
        self._closed: dict[str, Gate] = {}

    async def pass_through(self, name: str) -> None:
        """Wait until the gate is open."""
        gate = self._closed.get(name)
        if gate is None:
            return
        gate.waiting += 1
        gate.arrived.set()
        try:
            await gate.opened.wait()
        finally:
            gate.waiting -= 1
            if not gate.waiting:
                gate.arrived.clear()

    def close(self, name: str) -> None:
        self._closed.setdefault(name, Gate())

    def open(self, name: str) -> int:
        """Open a gate and return how many calls or jobs were held at it."""
        gate = self._closed.pop(name, None)
        if gate is None:
            return 0
        gate.opened.set()
        return gate.waiting

    async def wait(self, name: str, seconds: float) -> int:
        """Wait at most this many seconds until a closed gate holds a call or a job. Return how many it holds."""
        gate = self._closed.get(name)
        if gate is None:
            return 0
        with suppress(TimeoutError):
            await asyncio.wait_for(gate.arrived.wait(), seconds)
        return gate.waiting

    def waiting(self) -> dict[str, int]:
        """Return the number of held calls or jobs of each closed gate."""
        return {name: gate.waiting for name, gate in self._closed.items()}
