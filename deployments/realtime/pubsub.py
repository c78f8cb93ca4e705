"""Publish and subscribe through the channel layer.

A message only says that something changed; the receiver reads the state from the database. A lost message therefore
delays an update and loses nothing. Sending takes SEND_SECONDS at most and never raises: an error of the channel layer
is logged, and the runner's sweep and the hub's resync find what the message would have announced.
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


def deployment_topic(deployment_id: str) -> str:
    """Return the name of a deployment's topic. Processes of two versions exchange it: do not change it."""
    return f"run.{deployment_id}"


def stack_list_topic(user_id: int) -> str:
    """Return the name of the topic of a user's stacks. Processes of two versions exchange it: do not change it."""
    return f"stacks.{user_id}"


def bind_loop() -> None:
    """Send the messages of this process, including those from its threads, on the running event loop."""
    global _loop
    _loop = asyncio.get_running_loop()


def notify_worker() -> None:
    """Tell one worker that a deployment may be due."""
    _send(partial(get_channel_layer().send, RUNNER_CHANNEL, {"type": "wake"}))


def publish(topics: Iterable[str]) -> None:
    """Tell every process that subscribes to one of these topics that the topic changed."""
    layer = get_channel_layer()
    for topic in topics:
        _send(partial(layer.group_send, topic, {"type": "changed", "topic": topic}))


async def unsubscribe(channel: str) -> None:
    """End this process's subscription to a channel, so that the next receive subscribes again.

    The layer does not renew a subscription that failed, but forgets a channel when a receive on it is cancelled.
    """
    with suppress(Exception):  # the timeout, or a message that cannot be decoded
        async with asyncio.timeout(0):
            await get_channel_layer().receive(channel)


async def flush() -> None:
    """Wait until every message was sent or has failed, SEND_SECONDS at most."""
    if _sending:
        await asyncio.wait(_sending)


class Subscription:
    """This process's subscription to the topics that it joined."""

    def __init__(self) -> None:
        self._layer = get_channel_layer()
        self._channel: str | None = None
        self._joined: set[str] = set()

    async def open(self) -> None:
        """Create the channel, retrying until the layer answers, and subscribe it to the topics joined until then."""
        while self._channel is None:
            try:
                self._channel = await self._layer.new_channel()
            except Exception as error:
                _log_failure(error)
                await asyncio.sleep(SEND_SECONDS)
        for topic in list(self._joined):
            await _call_safely(self._layer.group_add(topic, self._channel))

    async def join(self, topic: str) -> None:
        """Subscribe to a topic, at once or when the channel is open."""
        self._joined.add(topic)
        if self._channel is not None:
            await _call_safely(self._layer.group_add(topic, self._channel))

    async def leave(self, topic: str) -> None:
        """Unsubscribe from a topic."""
        self._joined.discard(topic)
        if self._channel is not None:
            await _call_safely(self._layer.group_discard(topic, self._channel))

    async def topics(self) -> AsyncIterator[str]:
        """Yield the name of each topic that changed. Ignore messages of any other form."""
        while True:
            try:
                message = await self._layer.receive(self._channel)
            except Exception as error:
                _log_failure(error)
                await asyncio.sleep(SEND_SECONDS)
                continue
            topic = message.get("topic") if isinstance(message, dict) else None
            if isinstance(topic, str):
                yield topic


def _send(send: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Start sending on the bound loop and return. Without a bound loop (in a command), send before returning.

    A stopped loop means that the process is ending: the message is dropped, because a thread that waited for the loop
    would keep the process from ending.
    """
    if _loop is None:
        async_to_sync(_send_now)(send)
    elif _loop.is_running():
        _loop.call_soon_threadsafe(_start_sending, send)


def _start_sending(send: Callable[[], Coroutine[Any, Any, None]]) -> None:
    task = asyncio.ensure_future(_send_now(send))
    _sending.add(task)
    task.add_done_callback(_sending.discard)


async def _send_now(send: Callable[[], Coroutine[Any, Any, None]]) -> None:
    await _call_safely(send())


async def _call_safely(call: Coroutine[Any, Any, None]) -> None:
    """Await a call of the layer for SEND_SECONDS at most, and log its failure."""
    try:
        async with asyncio.timeout(SEND_SECONDS):
            await call
    except Exception as error:
        _log_failure(error)


def _log_failure(error: Exception) -> None:
    log.warning("The channel layer does not answer: %s", type(error).__name__)
