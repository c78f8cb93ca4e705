"""Constants and helpers that the access tests share."""

import re
from typing import Any

import pytest
from django.apps import apps
from django.test import Client
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

CANARY = "canary-7d1f"
STRANGER = {"X-Forwarded-For": "192.0.2.7"}  # in the demo: not the demo user
PAGES = ["/deployments/{}", "/deployments/{}/live"]
API = ["/api/status/{}", "/api/deployments/{}", "/api/deployments/{}/events", "/api/deployments/{}/events?wait=5"]
INLINE = re.compile(
    r"\sstyle\s*=|<style|<script(?![^>]*\ssrc=)[^>]*>|\son[a-z]+\s*=|javascript:|hx-on|hx-vals=.js|<base", re.IGNORECASE
)


def signed_in(person: Any) -> Client:
    client = Client()
    client.force_login(person)
    return client


def contents() -> dict[str, list[Any]]:
    """Return every row of every table."""
    return {
        model._meta.label: list(model._default_manager.order_by("pk").values())
        for model in apps.get_models(include_auto_created=True)
    }


def closing_code(opened: ClientConnection) -> int | None:
    """Return the code with which the server closes the socket. A frame before it is an error."""
    with pytest.raises(ConnectionClosed) as closed:
        opened.recv(10)
    return closed.value.rcvd.code if closed.value.rcvd else None
