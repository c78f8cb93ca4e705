"""The Channels consumers: one on the worker's channel, and one for each kind of page that is updated over a WebSocket.

RunnerConsumer, on the channel `runner`, starts and owns the process's runner. `manage.py serve` and `manage.py worker`
consume that channel with run_channel_worker; Channels' own `runworker runner` does the same.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from asgiref.sync import sync_to_async
from channels.consumer import AsyncConsumer
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.layers import get_channel_layer
from channels.worker import Worker
from django.contrib.auth.models import AnonymousUser, User

from .identity import Client, Credential, authenticate_scope, viewer_key
from .models import Deployment, Refusal
from .realtime import pubsub
from .realtime.hub import Hub
from .realtime.topics import Topic
from .realtime.watcher import Watcher
from .worker.runner import Runner

log = logging.getLogger(__name__)

# Close codes. Daphne sends only codes from 3000 to 4999 (RFC 6455, 7.4.2). After 4000 or more, the page does not
# reconnect.
TRY_AGAIN_LATER, SIGNED_OUT, NOT_FOUND = 3013, 4401, 4404


class RunnerConsumer(AsyncConsumer):  # type: ignore[misc] # Channels has no type hints
    """Start the process's runner on the first message, and notify it on each. The handler returns at once.

    It subscribes to no channel of its own (channel_layer_alias): if that subscription failed, Channels' worker would
    keep passing messages to a consumer that has ended.
    """

    channel_layer_alias = None

    async def wake(self, message: Mapping[str, Any]) -> None:
        Runner.current().notify()

    async def dispatch(self, message: Mapping[str, Any]) -> None:
        """Handle one message. Ignore those of unknown type: an exception would end the consumer."""
        if message.get("type") == "wake":
            await self.wake(message)
        else:
            log.warning("Ignoring a channel message of unknown type")


async def run_channel_worker(application: Callable[..., Awaitable[None]]) -> None:
    """Run Channels' worker on the runner's channel until cancelled.

    An error of the channel layer, or a message without a type, ends Channels' worker; it is restarted after a second.
    """
    while True:
        worker = asyncio.create_task(Worker(application, [pubsub.RUNNER_CHANNEL], get_channel_layer()).handle())
        pubsub.notify_worker()  # replaces the messages that were lost while no worker was listening
        try:
            await worker
        except Exception as error:
            log.warning("Channel worker failed; retrying in 1 s: %s", type(error).__name__)
        await asyncio.sleep(1)
        await pubsub.unsubscribe(pubsub.RUNNER_CHANNEL)


Watch = AbstractAsyncContextManager[tuple[Watcher, Topic]]


class PageConsumer(AsyncWebsocketConsumer):  # type: ignore[misc] # Channels has no type hints
    """Send the page's partial whenever it changes. Ignore everything that the page sends.

    It subscribes to no channel of its own (channel_layer_alias): the hub passes frames directly to `push`.
    """

    channel_layer_alias = None
    scope: dict[str, Any]
    watch: Watch | None = None
    closing: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        user, credential = await sync_to_async(authenticate_scope)(self.scope)
        watch = await self.open_watch(user, credential)
        await self.accept()  # also before a refusal: a close code only reaches a client whose WebSocket is open
        if watch is None:
            await self.close(code=NOT_FOUND)
            return
        self.watch = watch
        try:
            watcher, _ = await watch.__aenter__()
        except Refusal as refusal:
            self.watch = None
            await self.close(code=TRY_AGAIN_LATER, reason=refusal.message)
            return
        self.closing = asyncio.create_task(self._close_when_expired(watcher))

    async def open_watch(self, user: User | AnonymousUser, credential: Credential) -> Watch | None:
        """Return a context manager that watches the page's topic, or None when this user may not see it."""
        raise NotImplementedError

    @property
    def viewer(self) -> str:
        user = self.scope.get("user") or AnonymousUser()
        return viewer_key(user, Client.from_scope(self.scope).address)

    async def push(self, html: str) -> None:
        await self.base_send({"type": "websocket.send", "text": html})

    async def _close_when_expired(self, watcher: Watcher) -> None:
        while not watcher.expired:
            await watcher.wait_for_change(3600)
        await self.close(code=SIGNED_OUT)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        return

    async def disconnect(self, code: int) -> None:
        if self.closing is not None:
            self.closing.cancel()
        if self.watch is not None:
            await self.watch.__aexit__(None, None, None)


class DeploymentConsumer(PageConsumer):
    """Update the page of one deployment."""

    async def open_watch(self, user: User | AnonymousUser, credential: Credential) -> Watch | None:
        deployment_id = self.scope["url_route"]["kwargs"]["id"]
        deployments = Deployment.objects.visible_to(user).select_related("stack")
        deployment = await sync_to_async(deployments.filter(pk=deployment_id).first)()
        if deployment is None:
            return None
        return Hub.current().watch_deployment(
            deployment_id, credential, deployment.audience(user), viewer=self.viewer, push=self.push
        )


class StackListConsumer(PageConsumer):
    """Update a user's list of stacks."""

    async def open_watch(self, user: User | AnonymousUser, credential: Credential) -> Watch | None:
        if not user.is_authenticated:
            return None
        return Hub.current().watch_stack_list(user.pk, credential, viewer=self.viewer, push=self.push)
