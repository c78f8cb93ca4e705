"""The ASGI application: HTTP, WebSockets and the runner's channel. Any ASGI server can serve it."""

import os
from typing import Any

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "deployportal.settings")
django_application = get_asgi_application()  # loads the apps; the imports below need the models

from channels.auth import AuthMiddlewareStack  # noqa: E402
from channels.routing import ChannelNameRouter, ProtocolTypeRouter, URLRouter  # noqa: E402

from deployments import consumers, urls  # noqa: E402
from deployments.realtime import pubsub  # noqa: E402

from .asgi_middleware import BodyLimit, KnownSockets, SameOrigin, StaticFiles  # noqa: E402

_protocols = ProtocolTypeRouter(
    {
        "http": StaticFiles(BodyLimit(django_application)),
        "websocket": SameOrigin(AuthMiddlewareStack(KnownSockets(URLRouter(urls.websocket_urlpatterns)))),
        "channel": ChannelNameRouter({pubsub.RUNNER_CHANNEL: consumers.RunnerConsumer.as_asgi()}),
    }
)


async def application(scope: Any, receive: Any, send: Any) -> None:
    pubsub.bind_loop()
    await _protocols(scope, receive, send)
