"""The worker's doorbell, and the sockets of the pages."""

import asyncio
import logging
from typing import Any

from asgiref.sync import sync_to_async
from channels.consumer import AsyncConsumer
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.layers import get_channel_layer
from channels.worker import Worker

from . import identity
from .identity import Credential, client_address
from .models import Deployment, Refusal
from .realtime import pubsub
from .realtime.hub import Hub
from .worker.runner import Runner

log = logging.getLogger(__name__)

# RFC 6455, 7.4.2: Daphne sends no other codes of ours than 3000 to 4999. From 4000 on the page does not come back.
TRY_AGAIN_LATER, SIGNED_OUT, NOT_FOUND = 3013, 4401, 4404


class RunnerConsumer(AsyncConsumer):
    """Owns the process's runner. A message only rings its bell: the runner lives beside the handler, which returns.

    Subscribes no channel of its own: where that failed, Channels' worker would go on handing its messages to the dead.
    """

    channel_layer_alias = None

    async def wake(self, message: dict[str, Any]) -> None:
        Runner.current().notify()

    async def dispatch(self, message: dict[str, Any]) -> None:
        """A message of an unknown type must not cost the ones behind it."""
        if message.get("type") == "wake":
            await self.wake(message)
        else:
            log.warning("A message that is no bell was left aside")


async def run_channel_worker(application: Any) -> None:
    """Channels' worker for the runner's channel, for ever.

    What ends it (trouble of the layer, a message without a type) costs a second.
    """
    while True:
        listening = asyncio.create_task(Worker(application, [pubsub.RUNNER_CHANNEL], get_channel_layer()).handle())
        pubsub.notify_worker()  # what rang while nobody listened
        try:
            await listening
        except Exception as error:
            log.warning("The bell is deaf for a moment: %s", type(error).__name__)
        await asyncio.sleep(1)
        await pubsub.unsubscribe(pubsub.RUNNER_CHANNEL)


class PageConsumer(AsyncWebsocketConsumer):
    """Sends the page's partial whenever it changes. What the page sends is not looked at.

    Subscribes no channel of its own: frames go from the hub straight to this socket's send.
    """

    channel_layer_alias = None

    async def connect(self) -> None:
        user, credential = await sync_to_async(identity.authenticate_scope)(self.scope)
        self.watching = await self.watch(user, credential)
        if self.watching is None:
            await self.accept()  # only an open socket can be told why
            await self.close(code=NOT_FOUND)
            return
        await self.accept()
        try:
            watch, _ = await self.watching.__aenter__()
        except Refusal as refusal:
            self.watching = None
            await self.close(code=TRY_AGAIN_LATER, reason=refusal.message)
            return
        self.ending = asyncio.create_task(self._close_when_expired(watch))

    async def watch(self, user: Any, credential: Credential) -> Any:
        """What to watch, as a context manager, or None when this person may not."""
        raise NotImplementedError

    @property
    def viewer(self) -> str:
        user = self.scope.get("user")
        if user is not None and user.is_authenticated:
            return f"user {user.pk}"
        headers = dict(self.scope["headers"])
        forwarded = headers.get(b"x-forwarded-for", b"").decode("latin-1")
        return f"address {client_address((self.scope.get('client') or [''])[0], forwarded)}"

    async def push(self, html: str) -> None:
        await self.base_send({"type": "websocket.send", "text": html})

    async def _close_when_expired(self, watch: Any) -> None:
        while not watch.expired:
            await watch.news(3600)
        await self.close(code=SIGNED_OUT)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        return

    async def disconnect(self, code: int) -> None:
        if getattr(self, "ending", None):
            self.ending.cancel()
        if getattr(self, "watching", None):
            await self.watching.__aexit__(None, None, None)


class DeploymentConsumer(PageConsumer):
    async def watch(self, user: Any, credential: Credential) -> Any:
        id = self.scope["url_route"]["kwargs"]["id"]
        find = Deployment.objects.visible_to(user).select_related("stack").filter(pk=id).first
        deployment = await sync_to_async(find)()
        if deployment is None:
            return None
        return Hub.current().watch_deployment(
            id, credential, deployment.audience(user), viewer=self.viewer, push=self.push
        )


class StackListConsumer(PageConsumer):
    async def watch(self, user: Any, credential: Credential) -> Any:
        if not user.is_authenticated:
            return None
        return Hub.current().watch_stack_list(user.pk, credential, viewer=self.viewer, push=self.push)
