"""A Django project without the product's code, served by Daphne: the shortest possible start."""

import os

import django
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.urls import path

from .server import STARTPROJECT

settings.configure(
    SECRET_KEY="only for the bench",
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=STARTPROJECT,
    INSTALLED_APPS=[
        "daphne",
        "django.contrib.admin",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
        "django.contrib.messages",
        "django.contrib.staticfiles",
        "channels",
    ],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": f"{os.environ['BARE_DATA']}/bare.sqlite3"}},
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}],
)
django.setup()

from channels.auth import AuthMiddlewareStack  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.core.asgi import get_asgi_application  # noqa: E402


async def answer(request: HttpRequest) -> HttpResponse:
    """Answer without doing any work."""
    return HttpResponse("Nothing here.")


urlpatterns = [path("help/", answer)]
application = ProtocolTypeRouter({"http": get_asgi_application(), "websocket": AuthMiddlewareStack(URLRouter([]))})
