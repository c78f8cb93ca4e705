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

from . import live, page
from .models import DATABASE_AWAY, Deployment, Event, Refusal
from .people import Pass, still_valid

FRAME_SECONDS = 0.1
RESYNC_SECONDS = 3.0
PASS_SECONDS = 30.0
# What a run's later reports change. The log of requests is not among them: it is filled in at the end, for the API.
CHANGING = [
    *("phase", "status", "progress", "message", "error", "resources", "version"),
    *("lease_until", "started_at", "updated_at", "completed_at", "cancel_requested_at"),
]

log = logging.getLogger(__name__)


class Watch:
    """One watcher of a topic. `push` gets each new frame (sockets); without it the watcher waits, and reads."""

    def __init__(self, holder: Pass, audience: str, push: Callable[[str], Awaitable[None]] | None) -> None:
        self.holder, self.audience, self.push = holder, audience, push
        self.expired = False
        self._news = asyncio.Event()

    def wake(self) -> None:
        self._news.set()

    def expire(self) -> None:
        """The holder signed out, lost the role, or the token was revoked."""
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
        self.watches: set[Watch] = set()
        self.version: Any = None
        self.frames: dict[str, str] = {}
        self.renders = 0
        self.handed: Any = None  # the version that all watchers have
        self.lock = asyncio.Lock()
        self.dirty = asyncio.Event()
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

    async def look(self) -> Any:
        """Reads, and renders for every audience that watches; returns the version that was read."""
        async with self.lock:
            await sync_to_async(self.refresh)({watch.audience for watch in self.watches if watch.push})
            return self.version

    async def follow(self) -> None:
        """Hands out each change. At most ten frames a second: what happens meanwhile is in the next."""
        while True:
            await self.dirty.wait()
            self.dirty.clear()
            try:
                await self.look()
            except DATABASE_AWAY as error:
                log.warning("%s waits for the database: %s", self.name, type(error).__name__)
                await asyncio.sleep(FRAME_SECONDS * 5)
                await sync_to_async(close_old_connections)()
                self.dirty.set()
                continue
            except Exception:
                log.exception("%s could not be read", self.name)
                continue
            if self.version != self.handed:
                await self._hand_out()
                await asyncio.sleep(FRAME_SECONDS)

    async def _hand_out(self) -> None:
        self.handed = self.version
        for watch in list(self.watches):
            if watch.push is None:
                watch.wake()
            elif watch.audience in self.frames:
                try:
                    await watch.push(self.frames[watch.audience])
                except Exception:  # the socket is going away; its consumer tidies up
                    self.watches.discard(watch)


class RunTopic(Topic):
    """One deployment: its events are kept, so that each is read once however many watch."""

    def __init__(self, name: str, run_id: str) -> None:
        super().__init__(name)
        self.run_id = run_id
        self.run: Deployment | None = None
        self.events: list[Event] = []

    def read(self) -> int:
        if self.run is None:
            run = self._whole()
        else:
            run = copy.copy(self.run)  # whoever holds the former one sees nothing change under their eyes
            run.refresh_from_db(fields=CHANGING)
            if run.done:  # the end changes the stack too
                run = self._whole()
        last = self.events[-1].seq if self.events else 0
        if run.version > last:
            new = list(run.events.filter(seq__gt=last, seq__lte=run.version))
            self.events = [*self.events, *new]
        self.run = run
        return run.version

    def _whole(self) -> Deployment:
        return Deployment.objects.select_related("stack__owner", "template", "requested_by").get(pk=self.run_id)

    def render(self, audience: str) -> str:
        assert self.run is not None
        return render_to_string("_live.html", {"live": page.live(self.run, self.events, audience)})

    def after(self, seq: int) -> list[Event]:
        """The events after this number; they are numbered from 1 without gaps."""
        return self.events[seq:]


class StacksTopic(Topic):
    """A person's list of stacks."""

    def __init__(self, name: str, user_id: int) -> None:
        super().__init__(name)
        self.user_id = user_id
        self.seen: tuple[int, int] | None = None
        self._runs: list[Deployment] = []

    def read(self) -> Any:
        self._runs = page.newest_runs(self.user_id)
        return [(run.pk, run.version) for run in self._runs]

    def render(self, audience: str) -> str:
        return render_to_string("_stacks.html", {"stacks": page.stacks(self._runs)})


class Hub:
    """All the topics that are watched in this process, behind one subscription to the channel layer."""

    _of_this_process: ClassVar["Hub | None"] = None

    def __init__(self) -> None:
        self._topics: dict[str, Topic] = {}
        self._viewers: Counter[str] = Counter()
        self._ear = live.Ear()
        self._opened = asyncio.Event()
        self._tasks = [_begin(task()) for task in (self._listen, self._resync, self._check_passes)]
        self._loop = asyncio.get_running_loop()

    @classmethod
    def of_this_process(cls) -> "Hub":
        """The process's hub, started by the first watcher (the server has no lifespan to start it in)."""
        hub = cls._of_this_process
        if hub is None or hub._loop is not asyncio.get_running_loop():
            live.bind()
            hub = cls._of_this_process = cls()
        return hub

    # -- watching ------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def run(
        self,
        run_id: str,
        holder: Pass,
        audience: str,
        *,
        viewer: str,
        push: Callable[[str], Awaitable[None]] | None = None,
    ) -> AsyncIterator[tuple[Watch, RunTopic]]:
        """Watches a deployment. Joins, then reads, so that nothing falls between; the first frame is pushed at once.

        viewer: whose cap this counts against. Raises Refusal QUOTA when that cap, or the process's, is reached.
        """
        make = lambda name: RunTopic(name, run_id)  # noqa: E731
        async with self._watch(f"run.{run_id}", make, Watch(holder, audience, push), viewer) as watch_and_topic:
            yield watch_and_topic  # type: ignore[misc]

    @asynccontextmanager
    async def stacks(
        self, user_id: int, holder: Pass, *, viewer: str, push: Callable[[str], Awaitable[None]]
    ) -> AsyncIterator[tuple[Watch, StacksTopic]]:
        """Watches a person's list of stacks."""
        make = lambda name: StacksTopic(name, user_id)  # noqa: E731
        async with self._watch(f"stacks.{user_id}", make, Watch(holder, "owner", push), viewer) as watch_and_topic:
            yield watch_and_topic  # type: ignore[misc]

    @asynccontextmanager
    async def _watch(
        self, name: str, make: Callable[[str], Topic], watch: Watch, viewer: str
    ) -> AsyncIterator[tuple[Watch, Topic]]:
        full = self._viewers.total() >= settings.PORTAL_VIEWERS
        if full or self._viewers[viewer] >= settings.PORTAL_VIEWERS_EACH:
            raise Refusal("QUOTA", "Too many pages and streams are open. Close some, then try again.", retry_after=10)
        self._viewers[viewer] += 1
        topic = self._topics.get(name)
        try:
            if topic is None:
                topic = self._topics[name] = make(name)
                topic.task = _begin(topic.follow())
                async with topic.lock:  # whoever comes second waits for the subscription too
                    with suppress(TimeoutError):  # a layer that is away costs a second, and pages lag until it is back
                        async with asyncio.timeout(live.SEND_SECONDS):
                            await self._opened.wait()
                    await self._ear.join(name)
            topic.watches.add(watch)
            version = await topic.look()
            if watch.push:
                await watch.push(topic.frames[watch.audience])
            if topic.handed is None:
                topic.handed = version
            if version != topic.handed:  # this look may have taken a change away from those who joined before
                topic.dirty.set()
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
                    await self._ear.leave(name)

    # -- the process's three tasks -------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        await self._ear.open()
        self._opened.set()
        async for name in self._ear.topics():
            if topic := self._topics.get(name):
                topic.dirty.set()

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
                topic.dirty.set()

    async def _check_passes(self) -> None:
        while True:
            await asyncio.sleep(PASS_SECONDS)
            watches = [watch for topic in self._topics.values() for watch in topic.watches]
            try:
                valid = await sync_to_async(still_valid)({watch.holder for watch in watches})
            except Exception as error:
                log.warning("Looking at who watches waits: %s", str(error).strip())
                continue
            for watch in watches:
                if watch.holder not in valid:
                    watch.expire()


def _begin(task: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """In a context of its own: Django gives each request a thread, and a connection to the database with it. In the
    first watcher's context this would keep both for as long as it goes on."""
    return asyncio.create_task(task, context=contextvars.Context())


def _stale(topics: list[Topic]) -> list[Topic]:
    runs = {topic.run_id: topic for topic in topics if isinstance(topic, RunTopic)}
    lists = {topic.user_id: topic for topic in topics if isinstance(topic, StacksTopic)}
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
