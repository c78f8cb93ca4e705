"""The hub reads and renders each change once, passes it to every watcher, and survives lost messages."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from channels_redis.pubsub import RedisPubSubChannelLayer
from django.db import connections

from deployments import identity
from deployments.engine.spec import Progress
from deployments.identity import Credential
from deployments.models import Deployment, DeploymentRequest, Template
from deployments.realtime import hub, pubsub, topics
from deployments.realtime.hub import Hub

pytestmark = pytest.mark.django_db(transaction=True)
SECONDS = 10


@pytest.fixture
async def deployment() -> AsyncIterator[Deployment]:
    """Yield a deployment that this test's worker has claimed."""

    def create() -> Any:
        Template.follow_settings()
        DeploymentRequest(identity.demo_user(), Template.objects.first(), {}, "form").deploy("watched")
        return Deployment.claim("worker", excluding=[])

    pubsub.bind_loop()
    yield await sync_to_async(create)()
    current = Hub._current
    if current is not None:
        for task in current._tasks:
            task.cancel()
        Hub._current = None
    await sync_to_async(connections.close_all)()


class FakeSocket:
    """Records the frames that are pushed to it."""

    def __init__(self) -> None:
        self.frames: list[str] = []
        self.received = asyncio.Event()

    async def push(self, html: str) -> None:
        self.frames.append(html)
        self.received.set()

    async def wait_for(self, text: str) -> None:
        """Wait until the newest frame contains the text."""
        async with asyncio.timeout(SECONDS):
            while not self.frames or text not in self.frames[-1]:
                self.received.clear()
                await self.received.wait()


def watching(deployment: Deployment, socket: FakeSocket, audience: str = "owner") -> Any:
    return Hub.current().watch_deployment(deployment.pk, Credential(1), audience, viewer="test", push=socket.push)


async def record(deployment: Deployment, message: str) -> None:
    await sync_to_async(deployment.record)(Progress("phase", "deploying", message, progress=85))


async def test_a_new_watcher_gets_the_current_state_and_then_each_change(deployment: Deployment) -> None:
    socket = FakeSocket()
    async with watching(deployment, socket):
        assert socket.frames  # perhaps a second one, if the message about the claim arrives late
        await record(deployment, "first words")
        await socket.wait_for("first words")
        await record(deployment, "second words")
        await socket.wait_for("second words")


async def test_a_change_is_rendered_once_per_audience_however_many_watch(deployment: Deployment) -> None:
    sockets = [FakeSocket() for _ in range(60)]
    async with AsyncExitStack() as stack:
        for number, socket in enumerate(sockets):
            audience = ("owner", "operator", "link")[number % 3]
            _, topic = await stack.enter_async_context(watching(deployment, socket, audience))
        before = topic.renders
        await record(deployment, "to everybody")
        await asyncio.gather(*(socket.wait_for("to everybody") for socket in sockets))
        assert topic.renders - before == 3
        assert sockets[0].frames[-1] is sockets[3].frames[-1], "the same string object"


async def test_a_slow_reader_gets_the_newest_state_and_not_a_queue(deployment: Deployment) -> None:
    socket = FakeSocket()
    async with watching(deployment, socket):
        began = time.monotonic()
        for number in range(200):
            await record(deployment, f"change {number} of many")
        await socket.wait_for("change 199 of many")
        intervals = (time.monotonic() - began) / topics.FRAME_SECONDS
        assert len(socket.frames) <= intervals + 3


async def test_a_lost_message_only_delays_an_update(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "RESYNC_SECONDS", 0.05)
    socket = FakeSocket()
    async with watching(deployment, socket):
        monkeypatch.setattr(pubsub, "publish", lambda topics: None)
        await record(deployment, "not announced")
        await socket.wait_for("not announced")


async def test_a_message_lost_between_joining_a_list_and_its_first_resync_only_delays_an_update(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "RESYNC_SECONDS", 0.05)
    socket = FakeSocket()
    monkeypatch.setattr(pubsub, "publish", lambda topics: None)
    stale_topics = hub.stale_topics

    def complete_then_compare(watched: list[topics.Topic]) -> list[topics.Topic]:
        if watched and deployment.phase == "initializing":  # the list is joined but not compared yet
            deployment.record(Progress("phase", "completed", "", "success", progress=100))
        return stale_topics(watched)

    monkeypatch.setattr(hub, "stale_topics", complete_then_compare)
    owner = deployment.stack.owner_id
    async with Hub.current().watch_stack_list(owner, Credential(1), viewer="test", push=socket.push):
        await socket.wait_for("Live")


async def test_a_first_watcher_that_leaves_at_once_does_not_end_the_second_ones_topic(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    joining, may_join = asyncio.Event(), asyncio.Event()
    first, second = FakeSocket(), FakeSocket()

    async def join(self: pubsub.Subscription, name: str) -> None:
        joining.set()
        await may_join.wait()

    async def watch(socket: FakeSocket) -> None:
        async with watching(deployment, socket):
            await asyncio.Event().wait()

    monkeypatch.setattr(pubsub.Subscription, "join", join)
    monkeypatch.setattr(hub, "RESYNC_SECONDS", 0.05)
    early, late = asyncio.create_task(watch(first)), None
    async with asyncio.timeout(SECONDS):
        await joining.wait()
        late = asyncio.create_task(watch(second))
        while not any(len(topic.watchers) for topic in Hub.current()._topics.values()):
            await asyncio.sleep(0)
        early.cancel()
        await asyncio.wait({early})
        await record(deployment, "after the first has left")
        await second.wait_for("after the first has left")
        late.cancel()
        await asyncio.wait({late})


async def test_the_content_of_a_forged_message_is_ignored(deployment: Deployment) -> None:
    socket = FakeSocket()
    name = f"run.{deployment.pk}"
    async with watching(deployment, socket):
        layer = pubsub.get_channel_layer()
        for forged in ({"type": "changed", "topic": name, "html": "<b>forged</b>"}, {"type": "changed"}, {}):
            await layer.group_send(name, forged)
        await record(deployment, "the truth")
        await socket.wait_for("the truth")
        assert not any("forged" in frame for frame in socket.frames)


async def test_a_topic_without_watchers_is_dropped(deployment: Deployment) -> None:
    socket = FakeSocket()
    async with watching(deployment, socket):
        assert Hub.current()._topics
    assert not Hub.current()._topics
    assert not Hub.current()._viewers


async def test_a_report_does_not_wait_for_a_layer_that_does_not_answer(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen Redis accepts connections and never answers."""

    async def stay_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    frozen = await asyncio.start_server(stay_silent, "127.0.0.1", 0)
    port = frozen.sockets[0].getsockname()[1]
    layer = RedisPubSubChannelLayer(hosts=[{"address": f"redis://127.0.0.1:{port}", "socket_timeout": 2}])
    monkeypatch.setattr(pubsub, "get_channel_layer", lambda: layer)
    await record(deployment, "committed all the same")
    assert pubsub._sending, "the report did not wait for the message"
    assert (await Deployment.objects.aget(pk=deployment.pk)).message == "committed all the same"
    async with asyncio.timeout(SECONDS):
        while pubsub._sending:
            await asyncio.wait(pubsub._sending)
    frozen.close()


async def test_a_layer_that_is_down_when_the_first_watcher_joins_only_delays_updates(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No process listens at the address of Redis, and the page still shows the changes."""
    layer = RedisPubSubChannelLayer(hosts=["redis://127.0.0.1:9"])
    monkeypatch.setattr(pubsub, "get_channel_layer", lambda: layer)
    monkeypatch.setattr(pubsub, "SEND_SECONDS", 0.1)
    monkeypatch.setattr(hub, "RESYNC_SECONDS", 0.05)
    socket = FakeSocket()
    async with watching(deployment, socket):
        await record(deployment, "shown without Redis")
        await socket.wait_for("shown without Redis")


async def test_a_change_that_a_new_watcher_reads_is_passed_to_the_earlier_watchers(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message about the change is lost, and no resync runs in time."""
    monkeypatch.setattr(hub, "RESYNC_SECONDS", 3600)
    monkeypatch.setattr(pubsub, "publish", lambda topics: None)
    earlier, later = FakeSocket(), FakeSocket()
    async with watching(deployment, earlier):
        await earlier.wait_for("Queued")
        await record(deployment, "Pulling the image")
        async with watching(deployment, later):
            assert "Pulling the image" in later.frames[0]
            await earlier.wait_for("Pulling the image")
