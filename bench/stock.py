"""The baseline: a live page like that of the Channels tutorial, and stock Django views."""

import secrets
from datetime import timedelta
from typing import Any

from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ChannelNameRouter, ProtocolTypeRouter, URLRouter
from django.contrib.sessions.models import Session
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template import engines
from django.urls import include, path
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt

from deployments import consumers
from deployments.models import Deployment
from deployments.realtime import pubsub

PAGE = (
    "<!doctype html><html lang=en><title>{{ name }}</title><h1>{{ name }}</h1><p>{{ status }}, {{ phase }}</p></html>"
)


async def empty(request: HttpRequest) -> JsonResponse:
    """Answer without doing any work."""
    return JsonResponse({"status": "in_progress"})


async def status(request: HttpRequest, id: str) -> JsonResponse:
    """Read one row by its key."""
    found = await Deployment.objects.select_related("stack").aget(pk=id)
    return JsonResponse(
        {"name": found.stack.name, "status": found.status, "phase": found.phase, "progress": found.progress}
    )


def page(request: HttpRequest, id: str) -> HttpResponse:
    """Read one row and render a small template."""
    found = Deployment.objects.select_related("stack").get(pk=id)
    context = {"name": found.stack.name, "status": found.status, "phase": found.phase}
    return HttpResponse(engines["django"].from_string(PAGE).render(context, request))


@csrf_exempt
async def save(request: HttpRequest) -> JsonResponse:
    """Save one row."""
    until = timezone.now() + timedelta(days=1)
    row = await Session.objects.acreate(session_key=secrets.token_hex(16), session_data="", expire_date=until)
    return JsonResponse({"id": row.pk}, status=202)


urlpatterns = [
    path("stock/empty", empty),
    path("stock/status/<str:id>", status),
    path("stock/page/<str:id>", page),
    path("stock/save", save),
    path("", include("deployportal.urls")),  # the product's templates link to the product's pages
]


class StockConsumer(AsyncWebsocketConsumer):  # type: ignore[misc]
    """A socket that joins its deployment's group and sends each rendered page that the group receives."""

    async def connect(self) -> None:
        self.group = group(self.scope["url_route"]["kwargs"]["id"])
        await self.channel_layer.group_add(self.group, self.channel_name)
        await self.accept()

    async def changed(self, message: dict[str, Any]) -> None:
        """Send the page to this socket."""
        await self.send(text_data=message["html"])

    async def disconnect(self, code: int) -> None:
        await self.channel_layer.group_discard(self.group, self.channel_name)


def group(id: str) -> str:
    """Return the name of the group that watches a deployment."""
    return f"stock.{id}"


def application() -> Any:
    """Return the ASGI application: stock views, stock sockets, and the product's runner, which `serve` needs."""
    return ProtocolTypeRouter(
        {
            "http": get_asgi_application(),
            "websocket": URLRouter([path("ws/deployments/<str:id>", StockConsumer.as_asgi())]),
            "channel": ChannelNameRouter({pubsub.RUNNER_CHANNEL: consumers.RunnerConsumer.as_asgi()}),
        }
    )
