"""Each change is read once and rendered once, reaches everybody who watches, and none is lost with a message."""

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
from deployments.realtime import hub, pubsub
from deployments.realtime.hub import Hub

pytestmark = pytest.mark.django_db(transaction=True)
SECONDS = 10


@pytest.fixture
async def run() -> AsyncIterator[Deployment]:
    """A run that this test's worker holds."""

    def make() -> Any:
        Template.follow_settings()
        DeploymentRequest(identity.demo_user(), Template.objects.first(), {}, "form").deploy("watched")
        return Deployment.claim("worker", excluding=[])

    pubsub.bind_loop()
    yield await sync_to_async(make)()
    this = Hub._current
    if this is not None:
        for task in this._tasks:
            task.cancel()
        Hub._current = None
    await sync_to_async(connections.close_all)()


class Watcher:
    """One socket, without the socket: the frames that were pushed to it."""

    def __init__(self) -> None:
        self.frames: list[str] = []
        self.came = asyncio.Event()

    async def push(self, html: str) -> None:
        self.frames.append(html)
        self.came.set()

    async def sees(self, text: str) -> None:
        async with asyncio.timeout(SECONDS):
            while not self.frames or text not in self.frames[-1]:
                self.came.clear()
                await self.came.wait()


def watching(run: Deployment, watcher: Watcher, audience: str = "owner") -> Any:
    return Hub.current().watch_deployment(run.pk, Credential(1), audience, viewer="test", push=watcher.push)


async def record(run: Deployment, message: str) -> None:
    await sync_to_async(run.record)(Progress("phase", "deploying", message, progress=85))


async def test_a_joiner_gets_the_present_state_and_then_each_change(run: Deployment) -> None:
    watcher = Watcher()
    async with watching(run, watcher):
        assert watcher.frames  # perhaps two: that the run was claimed may be heard of only now
        await record(run, "first words")
        await watcher.sees("first words")
        await record(run, "second words")
        await watcher.sees("second words")


async def test_a_change_is_rendered_once_per_audience_however_many_watch(run: Deployment) -> None:
    watchers = [Watcher() for _ in range(60)]
    async with AsyncExitStack() as stack:
        for number, watcher in enumerate(watchers):
            audience = ("owner", "operator", "link")[number % 3]
            _, topic = await stack.enter_async_context(watching(run, watcher, audience))
        before = topic.renders
        await record(run, "to everybody")
        await asyncio.gather(*(watcher.sees("to everybody") for watcher in watchers))
        assert topic.renders - before == 3
        assert watchers[0].frames[-1] is watchers[3].frames[-1], "the same bytes"


async def test_a_slow_reader_gets_the_newest_state_and_not_a_queue(run: Deployment) -> None:
    watcher = Watcher()
    async with watching(run, watcher):
        began = time.monotonic()
        for number in range(200):
            await record(run, f"change {number} of many")
        await watcher.sees("change 199 of many")
        tenths = (time.monotonic() - began) / hub.FRAME_SECONDS
        assert len(watcher.frames) <= tenths + 3


async def test_a_lost_message_costs_time_and_nothing_else(run: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "RESYNC_SECONDS", 0.05)
    watcher = Watcher()
    async with watching(run, watcher):
        monkeypatch.setattr(pubsub, "publish", lambda topics: None)
        await record(run, "nobody was told")
        await watcher.sees("nobody was told")


async def test_a_message_that_is_lost_right_after_a_list_was_opened_costs_time_and_nothing_else(
    run: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "RESYNC_SECONDS", 0.05)
    watcher = Watcher()
    monkeypatch.setattr(pubsub, "publish", lambda topics: None)
    look = hub._stale

    def late(topics: list[hub.Topic]) -> list[hub.Topic]:
        if topics and run.phase == "initializing":  # the list is joined, and its version was not compared yet
            run.record(Progress("phase", "completed", "", "success", progress=100))
        return look(topics)

    monkeypatch.setattr(hub, "_stale", late)
    async with Hub.current().watch_stack_list(run.stack.owner_id, Credential(1), viewer="test", push=watcher.push):
        await watcher.sees("Live")


async def test_a_first_watcher_who_leaves_at_once_takes_nothing_from_the_second(
    run: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    joining, go_on = asyncio.Event(), asyncio.Event()
    first, second = Watcher(), Watcher()

    async def join(self: pubsub.Subscription, name: str) -> None:
        joining.set()
        await go_on.wait()

    async def watch(watcher: Watcher) -> None:
        async with watching(run, watcher):
            await asyncio.Event().wait()

    monkeypatch.setattr(pubsub.Subscription, "join", join)
    monkeypatch.setattr(hub, "RESYNC_SECONDS", 0.05)
    early, late = asyncio.create_task(watch(first)), None
    async with asyncio.timeout(SECONDS):
        await joining.wait()
        late = asyncio.create_task(watch(second))
        while not any(len(topic.watches) for topic in Hub.current()._topics.values()):
            await asyncio.sleep(0)
        early.cancel()
        await asyncio.wait({early})
        await record(run, "after the first has left")
        await second.sees("after the first has left")
        late.cancel()
        await asyncio.wait({late})


async def test_a_forged_message_moves_nothing(run: Deployment) -> None:
    watcher = Watcher()
    async with watching(run, watcher):
        layer = pubsub.get_channel_layer()
        for forged in ({"type": "changed", "topic": f"run.{run.pk}", "html": "<b>forged</b>"}, {"type": "changed"}, {}):
            await layer.group_send(f"run.{run.pk}", forged)
        await record(run, "the truth")
        await watcher.sees("the truth")
        assert not any("forged" in frame for frame in watcher.frames)


async def test_what_nobody_watches_any_more_is_forgotten(run: Deployment) -> None:
    watcher = Watcher()
    async with watching(run, watcher):
        assert Hub.current()._topics
    assert not Hub.current()._topics
    assert not Hub.current()._viewers


async def test_a_layer_that_does_not_answer_holds_nobody_up(run: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen Redis: it accepts, and says nothing."""

    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    frozen = await asyncio.start_server(silence, "127.0.0.1", 0)
    port = frozen.sockets[0].getsockname()[1]
    layer = RedisPubSubChannelLayer(hosts=[{"address": f"redis://127.0.0.1:{port}", "socket_timeout": 2}])
    monkeypatch.setattr(pubsub, "get_channel_layer", lambda: layer)
    await record(run, "committed all the same")
    assert pubsub._sending, "the report did not wait for what is still being sent"
    assert (await Deployment.objects.aget(pk=run.pk)).message == "committed all the same"
    async with asyncio.timeout(SECONDS):
        while pubsub._sending:
            await asyncio.wait(pubsub._sending)
    frozen.close()


async def test_a_layer_that_is_away_when_the_first_watcher_comes_costs_seconds_only(
    run: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody listens where Redis should be: the page is right all the same."""
    layer = RedisPubSubChannelLayer(hosts=["redis://127.0.0.1:9"])
    monkeypatch.setattr(pubsub, "get_channel_layer", lambda: layer)
    monkeypatch.setattr(pubsub, "SEND_SECONDS", 0.1)
    monkeypatch.setattr(hub, "RESYNC_SECONDS", 0.05)
    watcher = Watcher()
    async with watching(run, watcher):
        await record(run, "seen without Redis")
        await watcher.sees("seen without Redis")
