"""Who watches what in this process: each change is read once, rendered once per audience, handed to every watcher.

Sockets get the page's partial, straight to their send; streams, long polls and the command line are woken and take the
new events from the topic. A slow reader gets the newest state, not a queue. A lost message costs seconds: every
RESYNC_SECONDS one query per process compares versions.
"""

import asyncio
import contextvars
import copy
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, ClassVar

from asgiref.sync import sync_to_async
from django.conf import settings
from django.db import close_old_connections
from django.db.models import Count, Sum
from django.template.loader import render_to_string

from ..identity import Credential, valid_credentials
from ..models import DATABASE_AWAY, Deployment, Event, Refusal
from . import deployment_page, pubsub

FRAME_SECONDS = 0.1
RESYNC_SECONDS = 3.0
CREDENTIAL_CHECK_SECONDS = 30.0
# What a run's later reports change. The log of requests is not among them: it is filled in at the end, for the API.
CHANGING = [
    *("phase", "status", "progress", "message", "error", "resources", "version"),
    *("lease_until", "started_at", "updated_at", "completed_at", "cancel_requested_at"),
]

log = logging.getLogger(__name__)


class Watcher:
    """One watcher of a topic. `push` gets each new frame (sockets); without it the watcher waits, and reads."""

    def __init__(self, credential: Credential, audience: str, push: Callable[[str], Awaitable[None]] | None) -> None:
        self.credential, self.audience, self.push = credential, audience, push
        self.expired = False
        self._news = asyncio.Event()

    def wake(self) -> None:
        self._news.set()

    def expire(self) -> None:
        """The credential signed out, lost the role, or the token was revoked."""
        self.expired = True
        self._news.set()

    async def news(self, seconds: float) -> bool:
        """Waits for a change; False when there was none."""
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            return False
        self._news.clear()
        return True


class Topic:
    """What can be watched. Subclasses read it and render it; both happen in a thread, once per change."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.watches: set[Watcher] = set()
        self.version: Any = None
        self.frames: dict[str, str] = {}
        self.renders = 0
        self.sent_version: Any = None  # the version that all watchers have
        self.lock = asyncio.Lock()
        self.changed = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    def read(self) -> Any:
        """Reads what is new and returns the version that this is."""
        raise NotImplementedError

    def render(self, audience: str) -> str:
        raise NotImplementedError

    def refresh(self, audiences: set[str]) -> None:
        """Reads, and renders for each audience, unless nothing changed."""
        version = self.read()
        if version != self.version:
            self.frames = {}
            self.version = version
        for audience in audiences - self.frames.keys():
            # As ASCII, once: the server encodes a text for every socket, and any other costs it forty times as much.
            self.frames[audience] = self.render(audience).encode("ascii", "xmlcharrefreplace").decode("ascii")
            self.renders += 1

    async def refresh_frames(self) -> Any:
        """Reads, and renders for every audience that watches; returns the version that was read."""
        async with self.lock:
            await sync_to_async(self.refresh)({watch.audience for watch in self.watches if watch.push})
            return self.version

    async def publish_loop(self) -> None:
        """Hands out each change. At most ten frames a second: what happens meanwhile is in the next."""
        while True:
            await self.changed.wait()
            self.changed.clear()
            try:
                await self.refresh_frames()
            except DATABASE_AWAY as error:
                log.warning("%s waits for the database: %s", self.name, type(error).__name__)
                await asyncio.sleep(FRAME_SECONDS * 5)
                await sync_to_async(close_old_connections)()
                self.changed.set()
                continue
            except Exception:
                log.exception("%s could not be read", self.name)
                continue
            if self.version != self.sent_version:
                await self._hand_out()
                await asyncio.sleep(FRAME_SECONDS)

    async def _hand_out(self) -> None:
        self.sent_version = self.version
        for watch in list(self.watches):
            if watch.push is None:
                watch.wake()
            elif watch.audience in self.frames:
                try:
                    await watch.push(self.frames[watch.audience])
                except Exception:  # the socket is going away; its consumer tidies up
                    self.watches.discard(watch)


class DeploymentTopic(Topic):
    """One deployment: its events are kept, so that each is read once however many watch."""

    def __init__(self, name: str, deployment_id: str) -> None:
        super().__init__(name)
        self.deployment_id = deployment_id
        self.deployment: Deployment | None = None
        self.events: list[Event] = []

    def read(self) -> int:
        if self.deployment is None:
            deployment = self._whole()
        else:
            deployment = copy.copy(self.deployment)  # whoever holds the former one sees nothing change under their eyes
            deployment.refresh_from_db(fields=CHANGING)
            if deployment.done:  # the end changes the stack too
                deployment = self._whole()
        last = self.events[-1].seq if self.events else 0
        if deployment.version > last:
            new = list(deployment.events.filter(seq__gt=last, seq__lte=deployment.version))
            self.events = [*self.events, *new]
        self.deployment = deployment
        return deployment.version

    def _whole(self) -> Deployment:
        return Deployment.objects.select_related("stack__owner", "template", "requested_by").get(pk=self.deployment_id)

    def render(self, audience: str) -> str:
        assert self.deployment is not None
        return render_to_string("_live.html", {"live": deployment_page.live(self.deployment, self.events, audience)})

    def after(self, seq: int) -> list[Event]:
        """The events after this number; they are numbered from 1 without gaps."""
        return self.events[seq:]


class StackListTopic(Topic):
    """A person's list of stacks."""

    def __init__(self, name: str, user_id: int) -> None:
        super().__init__(name)
        self.user_id = user_id
        self.seen: tuple[int, int] | None = None
        self._runs: list[Deployment] = []

    def read(self) -> Any:
        self._runs = deployment_page.newest_deployments(self.user_id)
        return [(deployment.pk, deployment.version) for deployment in self._runs]

    def render(self, audience: str) -> str:
        return render_to_string("_stacks.html", {"stacks": deployment_page.stacks(self._runs)})


class Hub:
    """All the topics that are watched in this process, behind one subscription to the channel layer."""

    _current: ClassVar["Hub | None"] = None

    def __init__(self) -> None:
        self._topics: dict[str, Topic] = {}
        self._viewers: Counter[str] = Counter()
        self._subscription = pubsub.Subscription()
        self._opened = asyncio.Event()
        self._tasks = [_begin(task()) for task in (self._listen, self._resync, self._check_credentials)]
        self._loop = asyncio.get_running_loop()

    @classmethod
    def current(cls) -> "Hub":
        """The process's hub, started by the first watcher (the server has no lifespan to start it in)."""
        hub = cls._current
        if hub is None or hub._loop is not asyncio.get_running_loop():
            pubsub.bind_loop()
            hub = cls._current = cls()
        return hub

    # -- watching ------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def watch_deployment(
        self,
        deployment_id: str,
        credential: Credential,
        audience: str,
        *,
        viewer: str,
        push: Callable[[str], Awaitable[None]] | None = None,
    ) -> AsyncIterator[tuple[Watcher, DeploymentTopic]]:
        """Watches a deployment. Joins, then reads, so that nothing falls between; the first frame is pushed at once.

        viewer: whose cap this counts against. Raises Refusal QUOTA when that cap, or the process's, is reached.
        """
        make = lambda name: DeploymentTopic(name, deployment_id)  # noqa: E731
        async with self._watch(
            f"run.{deployment_id}", make, Watcher(credential, audience, push), viewer
        ) as watch_and_topic:
            yield watch_and_topic  # type: ignore[misc]

    @asynccontextmanager
    async def watch_stack_list(
        self, user_id: int, credential: Credential, *, viewer: str, push: Callable[[str], Awaitable[None]]
    ) -> AsyncIterator[tuple[Watcher, StackListTopic]]:
        """Watches a person's list of stacks."""
        make = lambda name: StackListTopic(name, user_id)  # noqa: E731
        async with self._watch(
            f"stacks.{user_id}", make, Watcher(credential, "owner", push), viewer
        ) as watch_and_topic:
            yield watch_and_topic  # type: ignore[misc]

    @asynccontextmanager
    async def _watch(
        self, name: str, make: Callable[[str], Topic], watch: Watcher, viewer: str
    ) -> AsyncIterator[tuple[Watcher, Topic]]:
        full = self._viewers.total() >= settings.PORTAL_VIEWERS
        if full or self._viewers[viewer] >= settings.PORTAL_VIEWERS_EACH:
            raise Refusal("QUOTA", "Too many pages and streams are open. Close some, then try again.", retry_after=10)
        self._viewers[viewer] += 1
        topic = self._topics.get(name)
        try:
            if topic is None:
                topic = self._topics[name] = make(name)
                topic.task = _begin(topic.publish_loop())
                async with topic.lock:  # whoever comes second waits for the subscription too
                    with suppress(TimeoutError):  # a layer that is away costs a second, and pages lag until it is back
                        async with asyncio.timeout(pubsub.SEND_SECONDS):
                            await self._opened.wait()
                    await self._subscription.join(name)
            topic.watches.add(watch)
            version = await topic.refresh_frames()
            if watch.push:
                await watch.push(topic.frames[watch.audience])
            if topic.sent_version is None:
                topic.sent_version = version
            if version != topic.sent_version:  # this look may have taken a change away from those who joined before
                topic.changed.set()
            yield watch, topic
        finally:
            self._viewers[viewer] -= 1
            if not self._viewers[viewer]:
                del self._viewers[viewer]
            if topic is not None:
                topic.watches.discard(watch)
                if not topic.watches and self._topics.get(name) is topic:
                    del self._topics[name]
                    if topic.task:
                        topic.task.cancel()
                    await self._subscription.leave(name)

    # -- the process's three tasks -------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        await self._subscription.open()
        self._opened.set()
        async for name in self._subscription.topics():
            if topic := self._topics.get(name):
                topic.changed.set()

    async def _resync(self) -> None:
        """Messages may be lost: compares the versions of what is watched, all in two queries."""
        while True:
            await asyncio.sleep(RESYNC_SECONDS)
            topics = list(self._topics.values())
            try:
                stale = await sync_to_async(_stale)(topics)
            except Exception as error:
                log.warning("Comparing versions waits: %s", str(error).strip())
                await sync_to_async(close_old_connections)()
                continue
            for topic in stale:
                topic.changed.set()

    async def _check_credentials(self) -> None:
        while True:
            await asyncio.sleep(CREDENTIAL_CHECK_SECONDS)
            watches = [watch for topic in self._topics.values() for watch in topic.watches]
            try:
                valid = await sync_to_async(valid_credentials)({watch.credential for watch in watches})
            except Exception as error:
                log.warning("Looking at who watches waits: %s", str(error).strip())
                continue
            for watch in watches:
                if watch.credential not in valid:
                    watch.expire()


def _begin(task: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """In a context of its own: Django gives each request a thread, and a connection to the database with it. In the
    first watcher's context this would keep both for as long as it goes on."""
    return asyncio.create_task(task, context=contextvars.Context())


def _stale(topics: list[Topic]) -> list[Topic]:
    runs = {topic.deployment_id: topic for topic in topics if isinstance(topic, DeploymentTopic)}
    lists = {topic.user_id: topic for topic in topics if isinstance(topic, StackListTopic)}
    found: list[Topic] = []
    if runs:
        for id, version in Deployment.objects.filter(pk__in=runs).values_list("pk", "version"):
            if runs[id].version != version:
                found.append(runs[id])
    if lists:
        changes = Deployment.objects.filter(stack__owner__in=lists).values("stack__owner")
        for row in changes.annotate(runs=Count("pk"), versions=Sum("version")):
            topic = lists[row["stack__owner"]]
            seen = (row["runs"], row["versions"])
            if topic.seen != seen:
                found.append(topic)
            topic.seen = seen
    return found
