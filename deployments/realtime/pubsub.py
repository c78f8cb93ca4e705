"""The channel layer and nothing else. A message only ever says “look”; losing one costs time, never truth.

Nothing here is awaited by a report or a request, and nothing here fails: sending is bounded to a second, and errors of
the layer are swallowed (the sweep and the hub's comparison of versions make up for a lost message).
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer

RUNNER_CHANNEL = "runner"
SEND_SECONDS = 1.0

log = logging.getLogger(__name__)
_loop: asyncio.AbstractEventLoop | None = None
_sending: set[asyncio.Task[None]] = set()


def bind_loop() -> None:
    """Remembers the running loop as the one that sends for this process's threads."""
    global _loop
    _loop = asyncio.get_running_loop()


def notify_worker() -> None:
    """Rings the runner's bell: something is due."""
    _send(partial(get_channel_layer().send, RUNNER_CHANNEL, {"type": "wake"}))


def publish(topics: Iterable[str]) -> None:
    """Tells every process that watches one of these topics to look."""
    layer = get_channel_layer()
    for topic in topics:
        _send(partial(layer.group_send, topic, {"type": "changed", "topic": topic}))


async def unsubscribe(channel: str) -> None:
    """Ends this process's subscription, so that the next receive subscribes anew.

    The layer takes a subscription that failed for a live one. It forgets the channel of a receive that is cancelled.
    """
    with suppress(Exception):  # its end, or a message that cannot be read
        async with asyncio.timeout(0):
            await get_channel_layer().receive(channel)


async def flush() -> None:
    """Until what is being sent is sent or given up, SEND_SECONDS at most."""
    if _sending:
        await asyncio.wait(_sending)


class Subscription:
    """One subscription of this process; hears of all the topics that were joined."""

    def __init__(self) -> None:
        self._layer = get_channel_layer()
        self._channel: str | None = None
        self._joined: set[str] = set()

    async def open(self) -> None:
        """Subscribes, however long the layer stays away, and then to all that was joined meanwhile."""
        while self._channel is None:
            try:
                self._channel = await self._layer.new_channel()
            except Exception as error:
                log.warning("The channel layer does not answer: %s", type(error).__name__)
                await asyncio.sleep(SEND_SECONDS)
        for topic in list(self._joined):
            await _quietly(self._layer.group_add(topic, self._channel))

    async def join(self, topic: str) -> None:
        self._joined.add(topic)
        if self._channel is not None:
            await _quietly(self._layer.group_add(topic, self._channel))

    async def leave(self, topic: str) -> None:
        self._joined.discard(topic)
        if self._channel is not None:
            await _quietly(self._layer.group_discard(topic, self._channel))

    async def topics(self) -> AsyncIterator[str]:
        """Each topic of which somebody said that it changed. What a message holds besides is not looked at."""
        while True:
            try:
                message = await self._layer.receive(self._channel)
            except Exception as error:  # the layer is away: the comparison of versions goes on
                log.warning("The channel layer does not answer: %s", type(error).__name__)
                await asyncio.sleep(SEND_SECONDS)
                continue
            topic = message.get("topic") if isinstance(message, dict) else None
            if isinstance(topic, str):
                yield topic


def _send(send: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """From a thread, or from the loop: starts it and returns. Without a loop (a command) it is awaited, bounded.

    Where the loop has stopped the process is about to end, and a thread that waited for it would keep it from that.
    """
    if _loop is None:
        async_to_sync(_now)(send)
    elif _loop.is_running():
        _loop.call_soon_threadsafe(_start, send)


def _start(send: Callable[[], Coroutine[Any, Any, None]]) -> None:
    task = asyncio.ensure_future(_now(send))
    _sending.add(task)
    task.add_done_callback(_sending.discard)


async def _now(send: Callable[[], Coroutine[Any, Any, None]]) -> None:
    await _quietly(send())


async def _quietly(sending: Coroutine[Any, Any, None]) -> None:
    try:
        async with asyncio.timeout(SEND_SECONDS):
            await sending
    except Exception as error:
        log.warning("The channel layer does not answer: %s", type(error).__name__)
