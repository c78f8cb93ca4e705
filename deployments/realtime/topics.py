"""What can be watched: one deployment, or one user's list of stacks.

A topic reads each change once and renders it once per audience, however many viewers watch. A slow viewer gets the
newest state, not a queue of old ones.
"""

import asyncio
import copy
import logging
from typing import Any

from asgiref.sync import sync_to_async
from django.db.models import Count, Sum
from django.template.loader import render_to_string

from ..background import reconnect
from ..models import DATABASE_AWAY, Deployment, Event
from . import deployment_page, stack_list
from .watcher import Watcher

FRAME_SECONDS = 0.1
"""The shortest pause between two frames of a topic."""

log = logging.getLogger(__name__)


class Topic:
    """Base class. A subclass implements read() and render(); both run in a thread, once per change."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.watchers: set[Watcher] = set()
        self.version: Any = None
        """The version that was read last."""
        self.sent_version: Any = None
        """The version that all watchers have."""
        self.frames: dict[str, str] = {}
        """The rendered page of `version`, by audience."""
        self.renders = 0
        self.lock = asyncio.Lock()
        self.changed = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    def read(self) -> Any:
        """Read the state and return its version."""
        raise NotImplementedError

    def render(self, audience: str) -> str:
        """Return the HTML of the state for an audience."""
        raise NotImplementedError

    def refresh(self, audiences: set[str]) -> None:
        """Read the state, and render it for each audience that has no frame of this version yet."""
        version = self.read()
        if version != self.version:
            self.frames = {}
            self.version = version
        for audience in audiences - self.frames.keys():
            # As ASCII: the server encodes the text for every socket, which takes 40 times as long for non-ASCII text.
            self.frames[audience] = self.render(audience).encode("ascii", "xmlcharrefreplace").decode("ascii")
            self.renders += 1

    async def refresh_frames(self) -> Any:
        """Read the state, render it for every audience with a socket, and return the version that was read."""
        async with self.lock:
            await sync_to_async(self.refresh)({watcher.audience for watcher in self.watchers if watcher.push})
            return self.version

    async def publish_loop(self) -> None:
        """Pass each change to the watchers. Changes within FRAME_SECONDS are combined into one frame."""
        while True:
            await self.changed.wait()
            self.changed.clear()
            try:
                await self.refresh_frames()
            except DATABASE_AWAY as error:
                log.warning("Could not read topic %s, retrying: %s", self.name, type(error).__name__)
                await reconnect()
                self.changed.set()
                continue
            except Exception:
                log.exception("Could not read topic %s", self.name)
                continue
            if self.version != self.sent_version:
                await self._notify_watchers()
                await asyncio.sleep(FRAME_SECONDS)

    async def _notify_watchers(self) -> None:
        self.sent_version = self.version
        for watcher in list(self.watchers):
            if watcher.push is None:
                watcher.notify()
            elif watcher.audience in self.frames:
                try:
                    await watcher.push(self.frames[watcher.audience])
                except Exception:  # the socket is closing; its consumer cleans up
                    self.watchers.discard(watcher)


class DeploymentTopic(Topic):
    """One deployment. Its events are kept, so that each is read once."""

    def __init__(self, name: str, deployment_id: str) -> None:
        super().__init__(name)
        self.deployment_id = deployment_id
        self.deployment: Deployment | None = None
        self.events: list[Event] = []

    def read(self) -> int:
        if self.deployment is None:
            deployment = self._load()
        else:
            deployment = copy.copy(self.deployment)  # a viewer may still be reading the previous state
            deployment.refresh_from_db(fields=Deployment.CHANGING_COLUMNS)
            if deployment.done:  # the end of a deployment changes its stack too
                deployment = self._load()
        last = self.events[-1].seq if self.events else 0
        if deployment.version > last:
            new = list(deployment.events.filter(seq__gt=last, seq__lte=deployment.version))
            self.events = [*self.events, *new]
        self.deployment = deployment
        return deployment.version

    def _load(self) -> Deployment:
        return Deployment.objects.select_related("stack__owner", "template", "requested_by").get(pk=self.deployment_id)

    def render(self, audience: str) -> str:
        assert self.deployment is not None
        page = deployment_page.page_context(self.deployment, self.events, audience)
        return render_to_string("_deployment.html", {"page": page})

    def events_after(self, seq: int) -> list[Event]:
        """Return the events after this sequence number. Events are numbered from 1 without gaps."""
        return self.events[seq:]


class StackListTopic(Topic):
    """One user's list of stacks."""

    def __init__(self, name: str, user_id: int) -> None:
        super().__init__(name)
        self.user_id = user_id
        self.fingerprint: tuple[int, int] | None = None
        """The number of the user's deployments and the sum of their versions, at the last resync."""
        self._deployments: list[Deployment] = []

    def read(self) -> Any:
        self._deployments = stack_list.newest_deployments(self.user_id)
        return [(deployment.pk, deployment.version) for deployment in self._deployments]

    def render(self, audience: str) -> str:
        return render_to_string("_stacks.html", {"stacks": stack_list.stack_rows(self._deployments)})


def stale_topics(topics: list[Topic]) -> list[Topic]:
    """Return the topics whose rows changed since they were read. Runs at most two queries."""
    return [
        *_stale_deployments([topic for topic in topics if isinstance(topic, DeploymentTopic)]),
        *_stale_lists([topic for topic in topics if isinstance(topic, StackListTopic)]),
    ]


def _stale_deployments(topics: list[DeploymentTopic]) -> list[DeploymentTopic]:
    if not topics:
        return []
    ids = [topic.deployment_id for topic in topics]
    versions = dict(Deployment.objects.filter(pk__in=ids).values_list("pk", "version"))
    return [topic for topic in topics if versions.get(topic.deployment_id, topic.version) != topic.version]


def _stale_lists(topics: list[StackListTopic]) -> list[StackListTopic]:
    if not topics:
        return []
    by_user = {topic.user_id: topic for topic in topics}
    deployments = Deployment.objects.filter(stack__owner__in=by_user).values("stack__owner")
    stale = []
    for row in deployments.annotate(count=Count("pk"), versions=Sum("version")):
        topic = by_user[row["stack__owner"]]
        fingerprint = (row["count"], row["versions"])
        if topic.fingerprint != fingerprint:
            stale.append(topic)
        topic.fingerprint = fingerprint
    return stale
