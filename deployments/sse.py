"""The event stream of a deployment: server-sent events (WHATWG HTML, 9.2). Long polls use watch_deployment too."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

from asgiref.sync import sync_to_async
from django.db import close_old_connections
from django.http import StreamingHttpResponse

from .identity import ApiRequest, viewer_key
from .models import Deployment, Event, wire
from .realtime.hub import Hub
from .realtime.topics import DeploymentTopic
from .realtime.watcher import Watcher

KEEP_ALIVE_SECONDS = 8.0
FINAL_EVENTS = {"success": "complete", "failure": "error"}  # the name of the last event, by the deployment's status

DeploymentWatch = AbstractAsyncContextManager[tuple[Watcher, DeploymentTopic]]


def watch_deployment(request: ApiRequest, deployment: Deployment, audience: str) -> DeploymentWatch:
    """Watch the deployment on behalf of this caller. Entering raises Refusal QUOTA when too many viewers watch."""
    viewer = viewer_key(request.caller, request.address)
    return Hub.current().watch_deployment(deployment.pk, request.credential, audience, viewer=viewer)


async def release_connection() -> None:
    """Return this request's database connection to the pool: a waiting request needs none."""
    await sync_to_async(close_old_connections)()


async def stream_response(request: ApiRequest, deployment: Deployment, audience: str) -> StreamingHttpResponse:
    """Return the stream of the deployment's events, up to the final one."""
    watch = watch_deployment(request, deployment, audience)
    watcher, topic = await watch.__aenter__()  # before the response begins, so that a Refusal becomes an error response
    await release_connection()
    events = _events(watch, watcher, topic, audience, _last_event_id(request), request.GET.get("all") == "1")
    response = StreamingHttpResponse(events, content_type="text/event-stream; charset=utf-8")
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Accel-Buffering"] = "no"
    return response


def _last_event_id(request: ApiRequest) -> int | None:
    raw = request.headers.get("Last-Event-ID", "")
    return int(raw) if raw.isascii() and raw.isdecimal() and len(raw) < 10 else None


async def _events(
    watch: DeploymentWatch,
    watcher: Watcher,
    topic: DeploymentTopic,
    audience: str,
    last_id: int | None,
    all_types: bool,
) -> AsyncIterator[bytes]:
    """Yield the events after last_id, as they occur. Without a known last_id, begin with the present state.

    Events of other types than `phase` are only sent with all_types.
    """
    try:
        deployment = topic.deployment
        assert deployment is not None
        if last_id is None or last_id > deployment.version:
            last_id = deployment.version
            yield _encode(deployment, topic.events[-1], audience, as_state=True)
        elif deployment.done and last_id == deployment.version:
            yield _encode(deployment, topic.events[-1], audience)
        while not watcher.expired:
            deployment = topic.deployment or deployment
            new = topic.events_after(last_id)
            for event in _sent_events(new, all_types):
                yield _encode(deployment, event, audience)
            last_id = new[-1].seq if new else last_id
            if deployment.done and last_id >= deployment.version:
                return
            if not await watcher.wait_for_change(KEEP_ALIVE_SECONDS):
                yield b": still here\n\n"
    finally:
        await asyncio.shield(watch.__aexit__(None, None, None))


def _sent_events(events: list[Event], all_types: bool) -> list[Event]:
    return [event for event in events if all_types or event.type == Event.Type.PHASE]


def _encode(deployment: Deployment, event: Event, audience: str, *, as_state: bool = False) -> bytes:
    """Encode one event. An event of type `phase` carries the state at that event; as_state: send the present state."""
    data: dict[str, Any]
    if event.type == "phase" or as_state:
        name = FINAL_EVENTS.get(event.status, "progress")
        data = wire.deployment_dict(deployment, audience, event if event.type == "phase" else None)
        data.pop("logs", None)
    else:
        name, data = event.type, wire.event_dict(event, audience)
    return f"event: {name}\nid: {event.seq}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
