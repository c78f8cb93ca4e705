"""The baseline: what Channels' tutorial makes of a live page, and a stock async Django view."""

import secrets
from datetime import timedelta
from typing import Any

from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ChannelNameRouter, ProtocolTypeRouter, URLRouter
from django.contrib.sessions.models import Session
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt

from deployments import consumers
from deployments.models import Deployment
from deployments.realtime import pubsub


async def small(request: HttpRequest) -> JsonResponse:
    """The smallest view."""
    return JsonResponse({"status": "in_progress"})


async def status(request: HttpRequest, id: str) -> JsonResponse:
    """One row, by its key."""
    run = await Deployment.objects.select_related("stack").aget(pk=id)
    return JsonResponse({"name": run.stack.name, "status": run.status, "phase": run.phase, "progress": run.progress})


@csrf_exempt
async def save(request: HttpRequest) -> JsonResponse:
    """Saves one row."""
    until = timezone.now() + timedelta(days=1)
    row = await Session.objects.acreate(session_key=secrets.token_hex(16), session_data="", expire_date=until)
    return JsonResponse({"id": row.pk}, status=202)


urlpatterns = [path("small", small), path("status/<str:id>", status), path("save", save)]


class Socket(AsyncWebsocketConsumer):
    async def connect(self) -> None:
        self.group = f"stock.{self.scope['url_route']['kwargs']['id']}"
        await self.channel_layer.group_add(self.group, self.channel_name)
        await self.accept()

    async def changed(self, message: dict[str, Any]) -> None:
        await self.send(text_data=message["html"])

    async def disconnect(self, code: int) -> None:
        await self.channel_layer.group_discard(self.group, self.channel_name)


def application(asgi: Any) -> Any:
    live_pages = path("ws/deployments/<str:id>", Socket.as_asgi())
    return ProtocolTypeRouter(
        {
            "http": get_asgi_application(),
            "websocket": URLRouter([live_pages]),
            "channel": ChannelNameRouter({pubsub.RUNNER_CHANNEL: consumers.RunnerConsumer.as_asgi()}),
        }
    )
