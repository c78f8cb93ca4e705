"""What scripts see: JSON, long polls and the event stream. Fields and codes are a promise to old clients.

Tokens come in the header `Authorization`, never as a cookie; without one a caller is anonymous, which is only let in
where PORTAL_OPEN says so. A browser's request from another site is refused: JSON in a form's content type is a “simple”
request that any web page could send.
"""

import asyncio
import functools
import json
import logging
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.auth.models import AnonymousUser
from django.db import close_old_connections
from django.http import HttpRequest, HttpResponse, HttpResponseNotModified, JsonResponse, StreamingHttpResponse
from django.urls import reverse
from django.utils.http import parse_etags
from django.views.decorators.csrf import csrf_exempt

from . import identity, name_availability
from .forms import read_parameters
from .identity import Credential
from .models import (
    DATABASE_AWAY,
    Deployment,
    DeploymentRequest,
    Event,
    Refusal,
    Stack,
    Template,
    request_removal,
    retry_deployment,
)
from .realtime.hub import DeploymentTopic, Hub, Watcher

KEEP_ALIVE_SECONDS = 8.0
LONGEST_WAIT_SECONDS = 25.0
EVENTS_PER_ANSWER = 1000
DEPLOYMENT_ID = re.compile(r"dep_[0-9a-f]{32}")
SLUG = re.compile(r"[A-Za-z0-9_-]{1,40}")

AWAY = "The portal does not reach its database. Deployments that are running go on. Try again in a minute."

View = Callable[..., Any]

log = logging.getLogger(__name__)


def refused(refusal: Refusal) -> JsonResponse:
    error = {"code": refusal.code, "message": refusal.message}
    if refusal.field:
        error["field"] = refusal.field
    response = JsonResponse({"success": False, "error": error}, status=refusal.status)
    if refusal.retry_after:
        response.headers["Retry-After"] = str(refusal.retry_after)
    return response


def api_view(*methods: str) -> Callable[[View], View]:
    """Lets in who may come in, with `request.person` and `request.credential`.

    Turns every Refusal into its answer, and a database that is away into one.
    """

    def wrap(view: View) -> View:
        @csrf_exempt
        @functools.wraps(view)
        async def checked(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            try:
                if request.method not in methods:
                    response = refused(Refusal("UNSUPPORTED", f"Use {' or '.join(methods)}."))
                    response.status_code, response.headers["Allow"] = 405, ", ".join(methods)
                    return response
                _refuse_other_sites(request)
                authorization = request.headers.get("Authorization", "")
                user, credential = (
                    await sync_to_async(identity.authenticate_token)(authorization) if authorization else _nobody()
                )
                request.person, request.credential = user, credential  # type: ignore[attr-defined]
                return await view(request, *args, **kwargs)
            except Refusal as refusal:
                return refused(refusal)
            except DATABASE_AWAY as error:
                log.warning("%s is refused without the database: %s", request.path, str(error).strip())
                return refused(Refusal("PAUSED", AWAY, retry_after=60))

        return checked

    return wrap


def _nobody() -> tuple[Any, Credential]:
    if not settings.PORTAL_OPEN:
        raise Refusal("NOT_SIGNED_IN", "Send a token: Authorization: Bearer <token>. Make one on the page “Tokens”.")
    return AnonymousUser(), Credential()


def _refuse_other_sites(request: HttpRequest) -> None:
    origin = request.headers.get("Origin")
    own = f"{request.scheme}://{request.get_host()}"
    site = request.headers.get("Sec-Fetch-Site", "none")  # “same-site” may be a stack: a stranger's code
    if (origin is not None and origin != own) or site not in ("none", "same-origin"):
        raise Refusal("FORBIDDEN", "Requests from other web sites are not accepted.")


@csrf_exempt
async def nothing(request: HttpRequest, rest: str) -> JsonResponse:
    return refused(Refusal("NOT_FOUND", "There is no such address in this API."))


# -- start -------------------------------------------------------------------------------------------------------------


@api_view("POST")
async def deploy(request: HttpRequest) -> HttpResponse:
    """POST /api/deploy: 202 with the run's addresses. Never waits for Dokploy."""
    return JsonResponse(await sync_to_async(_deploy)(request), status=202)


def _deploy(request: HttpRequest) -> dict[str, Any]:
    name, slug, parameters = _read_body(request)
    Stack.validate_name(name)
    user = request.person  # type: ignore[attr-defined]
    stack = Stack.owned_by(user, name)
    template = _template(user, slug, stack)
    values = read_parameters(template, parameters, stack)
    asked = DeploymentRequest(
        _owner(request),
        template,
        values,
        Deployment.Via.API,
        idempotency_key=_idempotency_key(request),
        address=request.address,  # type: ignore[attr-defined]
    )
    return _started(asked.deploy(name))


def _template(user: Any, slug: str | None, stack: Stack | None) -> Template:
    """The one that is named; else, of a stack that is there, its own; else the first."""
    offered = Template.offered_to(user)
    if slug is not None:
        offered = offered.filter(slug=slug) if SLUG.fullmatch(slug) else offered.none()
    elif stack is not None:
        return stack.template
    template = offered.first()
    if template is None:
        raise Refusal("INVALID_PARAMETER", "There is no such template.", field="template")
    return template


def _started(deployment: Deployment) -> dict[str, Any]:
    return {
        "success": True,
        "deploymentId": deployment.pk,
        "name": deployment.stack.name,
        "url": deployment.stack.url,
        "statusUrl": reverse("api-status", args=[deployment.pk]),
        "eventsUrl": reverse("api-events", args=[deployment.pk]),
        "pageUrl": reverse("deployment", args=[deployment.pk]),
    }


def _owner(request: HttpRequest) -> Any:
    """To whom a run of this caller belongs."""
    user = request.person  # type: ignore[attr-defined]
    return user if user.is_authenticated else identity.open_user()


def _read_body(request: HttpRequest) -> tuple[str, str | None, dict[str, Any]]:
    """JSON whatever the content type says: curl's -d sends a form's."""
    try:
        body = json.loads(request.body)
    except (ValueError, RecursionError):
        raise Refusal("INVALID_JSON", 'The body is not JSON. Send {"name": "shop"}.') from None
    if not isinstance(body, dict):
        raise Refusal("INVALID_JSON", 'The body is not an object. Send {"name": "shop"}.')
    name, slug, parameters = body.get("name"), body.get("template"), body.get("parameters", {})
    if not isinstance(name, str):
        raise Refusal("INVALID_NAME", "Send a name, as text.", field="name")
    if slug is not None and not isinstance(slug, str):
        raise Refusal("INVALID_PARAMETER", "The template is named by its slug, as text.", field="template")
    if not isinstance(parameters, dict):
        raise Refusal("INVALID_PARAMETER", "The parameters are an object.", field="parameters")
    return name, slug, parameters


def _idempotency_key(request: HttpRequest) -> str | None:
    key = request.headers.get("Idempotency-Key")
    if key is not None and not (0 < len(key) <= 255 and key.isprintable()):
        raise Refusal("INVALID_PARAMETER", "An Idempotency-Key has 1 to 255 characters.", field="Idempotency-Key")
    return key


@api_view("POST")
async def cancel(request: HttpRequest, id: str) -> HttpResponse:
    """POST /api/deployments/dep_…/cancel: 202, also when it was asked for before; it is done when the run has ended."""
    return JsonResponse(await sync_to_async(_cancel)(request, id), status=202)


def _cancel(request: HttpRequest, id: str) -> dict[str, Any]:
    deployment = _changeable(request, id)
    deployment.cancel(request.person)  # type: ignore[attr-defined]
    return _started(deployment)


@api_view("POST")
async def retry(request: HttpRequest, id: str) -> HttpResponse:
    """POST /api/deployments/dep_…/retry: 202 with the addresses of the new run."""
    return JsonResponse(await sync_to_async(_retry)(request, id), status=202)


def _retry(request: HttpRequest, id: str) -> dict[str, Any]:
    return _started(retry_deployment(_changeable(request, id), request.person, via=Deployment.Via.API))  # type: ignore[attr-defined]


def _changeable(request: HttpRequest, id: str) -> Deployment:
    """The deployment, for its owner or an operator. Who may only see it is told so."""
    user = request.person  # type: ignore[attr-defined]
    deployment, _ = _find(user, id)
    if not Deployment.objects.changeable_by(user).filter(pk=deployment.pk).exists():
        raise Refusal("FORBIDDEN", "Only its owner and operators may do that. Send the owner's token.")
    return deployment


@api_view("DELETE")
async def remove(request: HttpRequest, name: str) -> HttpResponse:
    """DELETE /api/stacks/<name>: 202 with the addresses of the run that takes it away."""
    return JsonResponse(await sync_to_async(_remove)(request, name), status=202)


def _remove(request: HttpRequest, name: str) -> dict[str, Any]:
    user = request.person  # type: ignore[attr-defined]
    mine = Stack.objects.visible_to(user).existing()
    stack = mine.filter(name=name).first() if name.isprintable() else None
    if stack is None:
        text = "You have no stack of that name. One that was started without a token only an operator can remove."
        raise Refusal("NOT_FOUND", text)
    return _started(request_removal(user, stack, via=Deployment.Via.API))


@api_view("GET")
async def check_name(request: HttpRequest, name: str) -> HttpResponse:
    """GET /api/check/<name>: {"available": true, false or null (not known), "reason"}."""
    found = await name_availability.check(await sync_to_async(_owner)(request), name)
    reason = next((line["text"] for line in found["lines"] if line["state"] != "ok"), None)
    return JsonResponse({"available": found["available"], "reason": reason})


# -- follow ------------------------------------------------------------------------------------------------------------


@api_view("GET")
async def status(request: HttpRequest, id: str) -> Any:
    """GET /api/status/dep_…: JSON for who asks for it by name, else the stream."""
    accept = request.headers.get("Accept", "*/*")
    if "application/json" in accept and "text/event-stream" not in accept:
        return await _state(request, id)
    return await _stream(request, id)


@api_view("GET")
async def state(request: HttpRequest, id: str) -> HttpResponse:
    """GET /api/deployments/dep_…: the state as JSON, with ETag."""
    return await _state(request, id)


async def _state(request: HttpRequest, id: str) -> HttpResponse:
    deployment, audience = await sync_to_async(_find)(request.person, id)  # type: ignore[attr-defined]
    etag = f'"{deployment.version}-{audience}"'
    seen = {seen.removeprefix("W/") for seen in parse_etags(request.headers.get("If-None-Match", ""))}
    if etag in seen:  # a proxy that compresses makes it a weak one
        response: HttpResponse = HttpResponseNotModified()
    else:
        response = JsonResponse(deployment.to_dict(audience))
    response.headers["ETag"] = etag
    response.headers["Cache-Control"] = "private, no-cache"
    return response


def _find(user: Any, id: str) -> tuple[Deployment, str]:
    """The deployment, if this person may see it: for everybody else it does not exist."""
    visible = Deployment.objects.visible_to(user).select_related("stack")
    deployment = visible.filter(pk=id).first() if DEPLOYMENT_ID.fullmatch(id) else None
    if deployment is None:
        raise Refusal("NOT_FOUND", "There is no such deployment.")
    return deployment, deployment.audience(user)


@api_view("GET")
async def events(request: HttpRequest, id: str) -> HttpResponse:
    """GET /api/deployments/dep_…/events?after=<seq>&wait=<seconds>: what came after, waiting for it if asked to."""
    deployment, audience = await sync_to_async(_find)(request.person, id)  # type: ignore[attr-defined]
    after, wait = _number(request, "after"), min(_number(request, "wait"), LONGEST_WAIT_SECONDS)
    if deployment.version > after or deployment.done or wait <= 0:
        return JsonResponse(await sync_to_async(_events)(deployment, audience, after))
    async with _watch(request, deployment, audience) as (watch, topic):
        await _hand_back_connection()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        while not _has_news(topic, after) and not watch.expired and (left := deadline - loop.time()) > 0:
            await watch.news(left)
    return JsonResponse(await sync_to_async(_events)(deployment, audience, after))


def _has_news(topic: DeploymentTopic, after: float) -> bool:
    deployment = topic.deployment
    return deployment is not None and (deployment.version > after or deployment.done)


def _events(deployment: Deployment, audience: str, after: float) -> dict[str, Any]:
    deployment.refresh_from_db(fields=["version", "status"])
    found = list(deployment.events.filter(seq__gt=after, seq__lte=deployment.version)[:EVENTS_PER_ANSWER])
    last = found[-1].seq if found else min(int(after), deployment.version)
    return {
        "events": [event.to_dict(audience) for event in found],
        "last": last,
        "done": deployment.done and last >= deployment.version,
    }


def _number(request: HttpRequest, name: str) -> float:
    raw = request.GET.get(name, "0")
    try:
        value = float(raw)
        if not 0 <= value < 2**31:
            raise ValueError
    except ValueError:
        raise Refusal("INVALID_PARAMETER", f"{name} is a number, 0 or more.", field=name) from None
    return value


def _watch(request: HttpRequest, deployment: Deployment, audience: str) -> Any:
    credential: Credential = request.credential  # type: ignore[attr-defined]
    viewer = f"user {credential.user_id}" if credential.user_id else f"address {request.address}"  # type: ignore[attr-defined]
    return Hub.current().watch_deployment(deployment.pk, credential, audience, viewer=viewer)


async def _hand_back_connection() -> None:
    """To the pool, where there are few: who waits needs none meanwhile."""
    await sync_to_async(close_old_connections)()


# -- the stream --------------------------------------------------------------------------------------------------------


async def _stream(request: HttpRequest, id: str) -> StreamingHttpResponse:
    deployment, audience = await sync_to_async(_find)(request.person, id)  # type: ignore[attr-defined]
    every = request.GET.get("all") == "1"
    watching = _watch(request, deployment, audience)
    watch, topic = await watching.__aenter__()  # here, so that a refusal is an answer and not a broken stream
    await _hand_back_connection()
    stream = _lines(watching, watch, topic, audience, _last_seen(request), every)
    response = StreamingHttpResponse(stream, content_type="text/event-stream; charset=utf-8")
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Accel-Buffering"] = "no"
    return response


def _last_seen(request: HttpRequest) -> int | None:
    raw = request.headers.get("Last-Event-ID", "")
    return int(raw) if raw.isascii() and raw.isdecimal() and len(raw) < 10 else None


async def _lines(
    watching: Any, watch: Watcher, topic: DeploymentTopic, audience: str, seen: int | None, every: bool
) -> AsyncIterator[bytes]:
    """The events as they come. A known Last-Event-ID goes on after it; else it begins with the present state."""
    try:
        deployment = topic.deployment
        assert deployment is not None
        if seen is None or seen > deployment.version:
            seen = deployment.version
            yield _one_line(deployment, topic.events[-1], audience, at_present=True)
        elif deployment.done and seen == deployment.version:
            yield _one_line(deployment, topic.events[-1], audience)
        while not watch.expired:
            deployment = topic.deployment or deployment
            for event in topic.after(seen):
                seen = event.seq
                if event.type == "phase" or every:
                    yield _one_line(deployment, event, audience)
            if deployment.done and seen >= deployment.version:
                return
            if not await watch.news(KEEP_ALIVE_SECONDS):
                yield b": still here\n\n"
    finally:
        await asyncio.shield(watching.__aexit__(None, None, None))


def _one_line(deployment: Deployment, event: Event, audience: str, *, at_present: bool = False) -> bytes:
    """One event of the stream: a phase's is the state at that event, the others carry their own name."""
    if event.type == "phase" or at_present:
        ends = {"success": "complete", "failure": "error"}
        name = ends.get(event.status, "progress")
        data: dict[str, Any] = deployment.to_dict(audience, event=event if event.type == "phase" else None)
        data.pop("logs", None)
    else:
        name, data = event.type, event.to_dict(audience)
    return f"event: {name}\nid: {event.seq}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
