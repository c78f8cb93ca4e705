"""The hub: it connects the viewers of this process to the topics that they watch.

WebSockets get the rendered page. Streams, long polls and the command line are notified and read the topic's new events.
A lost message delays an update by RESYNC_SECONDS at most: the resync then finds the change in the database.
"""

import asyncio
import contextvars
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, ClassVar, TypeVar

from asgiref.sync import sync_to_async
from django.conf import settings

from ..background import repeat
from ..identity import Credential, valid_credentials
from ..models import Refusal
from . import pubsub
from .topics import DeploymentTopic, StackListTopic, Topic, stale_topics
from .watcher import Watcher

RESYNC_SECONDS = 3.0
CREDENTIAL_CHECK_SECONDS = 30.0

T = TypeVar("T", bound=Topic)


class Hub:
    """The topics that are watched in this process, with one subscription to the channel layer."""

    _current: ClassVar["Hub | None"] = None

    def __init__(self) -> None:
        self._topics: dict[str, Topic] = {}
        self._viewers: Counter[str] = Counter()
        self._subscription = pubsub.Subscription()
        self._opened = asyncio.Event()
        self._tasks = [
            _start(self._listen()),
            _start(repeat(self._resync, RESYNC_SECONDS, "Version resync")),
            _start(repeat(self._check_credentials, CREDENTIAL_CHECK_SECONDS, "Check of the viewers' credentials")),
        ]
        self._loop = asyncio.get_running_loop()

    @classmethod
    def current(cls) -> "Hub":
        """Return the process's hub. The first viewer creates it, because the server has no lifespan events."""
        hub = cls._current
        if hub is None or hub._loop is not asyncio.get_running_loop():
            pubsub.bind_loop()
            hub = cls._current = cls()
        return hub

    # -- watching ------------------------------------------------------------------------------------------------------

    def watch_deployment(
        self,
        deployment_id: str,
        credential: Credential,
        audience: str,
        *,
        viewer: str,
        push: Callable[[str], Awaitable[None]] | None = None,
    ) -> AbstractAsyncContextManager[tuple[Watcher, DeploymentTopic]]:
        """Watch a deployment. The first frame is pushed at once.

        viewer: the user or address whose limit this watcher counts against. push: sends a frame to a WebSocket.
        Entering raises Refusal QUOTA when that limit, or the process's limit, is reached.
        """
        name = pubsub.deployment_topic(deployment_id)
        return self._watch(
            name, lambda: DeploymentTopic(name, deployment_id), Watcher(credential, audience, push), viewer
        )

    def watch_stack_list(
        self, user_id: int, credential: Credential, *, viewer: str, push: Callable[[str], Awaitable[None]]
    ) -> AbstractAsyncContextManager[tuple[Watcher, StackListTopic]]:
        """Watch a user's list of stacks; see watch_deployment."""
        name = pubsub.stack_list_topic(user_id)
        return self._watch(name, lambda: StackListTopic(name, user_id), Watcher(credential, "owner", push), viewer)

    @asynccontextmanager
    async def _watch(
        self, name: str, create: Callable[[], T], watcher: Watcher, viewer: str
    ) -> AsyncIterator[tuple[Watcher, T]]:
        self._require_capacity(viewer)
        self._viewers[viewer] += 1
        topic: Any = self._topics.get(name)
        try:
            if topic is None:
                topic = self._topics[name] = create()
                topic.task = _start(topic.publish_loop())
                async with topic.lock:  # a second watcher waits for the subscription too
                    await self._subscribe(name)
            # Join before reading: in the other order, a change between the two would be missed.
            topic.watchers.add(watcher)
            version = await topic.refresh_frames()
            if watcher.push:
                await watcher.push(topic.frames[watcher.audience])
            if topic.sent_version is None:
                topic.sent_version = version
            if version != topic.sent_version:  # this read found a change that the earlier watchers do not have yet
                topic.changed.set()
            yield watcher, topic
        finally:
            self._viewers[viewer] -= 1
            if not self._viewers[viewer]:
                del self._viewers[viewer]
            if topic is not None:
                topic.watchers.discard(watcher)
                await self._close_unwatched(topic)

    def _require_capacity(self, viewer: str) -> None:
        full = self._viewers.total() >= settings.PORTAL_VIEWERS
        if full or self._viewers[viewer] >= settings.PORTAL_VIEWERS_EACH:
            raise Refusal("QUOTA", "Too many pages and streams are open. Close some, then try again.", retry_after=10)

    async def _subscribe(self, name: str) -> None:
        with suppress(TimeoutError):  # while the layer is away, only the resync updates a page
            async with asyncio.timeout(pubsub.SEND_SECONDS):
                await self._opened.wait()
        await self._subscription.join(name)

    async def _close_unwatched(self, topic: Topic) -> None:
        if topic.watchers or self._topics.get(topic.name) is not topic:
            return
        del self._topics[topic.name]
        if topic.task:
            topic.task.cancel()
        await self._subscription.leave(topic.name)

    # -- the process's three tasks -------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        await self._subscription.open()
        self._opened.set()
        async for name in self._subscription.topics():
            if topic := self._topics.get(name):
                topic.changed.set()

    async def _resync(self) -> None:
        """Find changes whose messages were lost, by comparing the versions in the database."""
        topics = list(self._topics.values())
        for topic in await sync_to_async(stale_topics)(topics):
            topic.changed.set()

    async def _check_credentials(self) -> None:
        """Expire the watchers whose credentials are no longer valid."""
        watchers = [watcher for topic in self._topics.values() for watcher in topic.watchers]
        valid = await sync_to_async(valid_credentials)({watcher.credential for watcher in watchers})
        for watcher in watchers:
            if watcher.credential not in valid:
                watcher.expire()


def _start(task: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Start a task in an empty context.

    Django gives each request a thread and a database connection, and finds them through the context. A task in the
    context of the first viewer's request would keep both for as long as it runs.
    """
    return asyncio.create_task(task, context=contextvars.Context())
