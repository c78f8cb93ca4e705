"""The JSON API for scripts. Its fields and codes do not change: clients of earlier versions must keep working.

Callers authenticate with a token in the Authorization header, never with a cookie. Callers without one are anonymous,
and refused unless PORTAL_OPEN is set. Requests that a browser sends from another site are refused: any web page can
send JSON with the content type of a form, without asking the server first (a “simple” request in CORS).
"""

import asyncio
import functools
import inspect
import json
import logging
import re
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, cast

from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.auth.models import AnonymousUser, User
from django.http import HttpRequest, HttpResponse, HttpResponseNotModified, JsonResponse
from django.http.response import HttpResponseBase
from django.urls import reverse
from django.utils.http import parse_etags
from django.views.decorators.csrf import csrf_exempt

from . import identity, name_availability, sse
from .forms import read_parameters
from .identity import ApiRequest, Credential
from .models import (
    DATABASE_AWAY,
    Deployment,
    DeploymentRequest,
    Refusal,
    Stack,
    Template,
    request_removal,
    retry_deployment,
    wire,
)
from .realtime.topics import DeploymentTopic

LONGEST_WAIT_SECONDS = 25.0
EVENTS_PER_RESPONSE = 1000
DEPLOYMENT_ID = re.compile(r"dep_[0-9a-f]{32}")
SLUG = re.compile(r"[A-Za-z0-9_-]{1,40}")

NO_DATABASE = "The portal can't reach its database. Running deployments continue. Try again in a minute."

P = ParamSpec("P")

log = logging.getLogger(__name__)


def refusal_response(refusal: Refusal) -> JsonResponse:
    error = {"code": refusal.code, "message": refusal.message}
    if refusal.field:
        error["field"] = refusal.field
    response = JsonResponse({"success": False, "error": error}, status=refusal.status)
    if refusal.retry_after:
        response.headers["Retry-After"] = str(refusal.retry_after)
    return response


def api_view(
    *methods: str,
) -> Callable[
    [Callable[Concatenate[ApiRequest, P], HttpResponseBase | Awaitable[HttpResponseBase]]],
    Callable[Concatenate[HttpRequest, P], Coroutine[Any, Any, HttpResponseBase]],
]:
    """Authenticate the caller, set request.caller and request.credential, and call the view.

    A view that is not asynchronous runs in a thread. Turn a Refusal, and the loss of the database, into an error
    response.
    """

    def decorate(
        view: Callable[Concatenate[ApiRequest, P], HttpResponseBase | Awaitable[HttpResponseBase]],
    ) -> Callable[Concatenate[HttpRequest, P], Coroutine[Any, Any, HttpResponseBase]]:
        run: Any = view if inspect.iscoroutinefunction(view) else sync_to_async(view)

        @csrf_exempt
        @functools.wraps(view)
        async def guarded(request: HttpRequest, /, *args: P.args, **kwargs: P.kwargs) -> HttpResponseBase:
            try:
                if request.method not in methods:
                    return _method_not_allowed(methods)
                _require_same_site(request)
                api_request = cast(ApiRequest, request)
                api_request.caller, api_request.credential = await _authenticate(request)
                response: HttpResponseBase = await run(api_request, *args, **kwargs)
                return response
            except Refusal as refusal:
                return refusal_response(refusal)
            except DATABASE_AWAY as error:
                log.warning("Refused %s, because the database is unavailable: %s", request.path, str(error).strip())
                return refusal_response(Refusal("PAUSED", NO_DATABASE, retry_after=60))

        return guarded

    return decorate


def _method_not_allowed(methods: tuple[str, ...]) -> HttpResponse:
    response = refusal_response(Refusal("UNSUPPORTED", f"Use {' or '.join(methods)}."))
    response.status_code, response.headers["Allow"] = 405, ", ".join(methods)
    return response


def _require_same_site(request: HttpRequest) -> None:
    """Raise Refusal FORBIDDEN when a browser sends the request from another origin."""
    origin = request.headers.get("Origin")
    own_origin = f"{request.scheme}://{request.get_host()}"
    site = request.headers.get("Sec-Fetch-Site", "none")  # “same-site” is refused: a stack runs code of other users
    if (origin is not None and origin != own_origin) or site not in ("none", "same-origin"):
        raise Refusal("FORBIDDEN", "Requests from other websites are not accepted.")


async def _authenticate(request: HttpRequest) -> tuple[User | AnonymousUser, Credential]:
    if authorization := request.headers.get("Authorization", ""):
        return await sync_to_async(identity.authenticate_token)(authorization)
    if not settings.PORTAL_OPEN:
        raise Refusal("NOT_SIGNED_IN", "Send a token: Authorization: Bearer <token>. Create one on the page “Tokens”.")
    return AnonymousUser(), Credential()


@csrf_exempt
async def unknown_path(request: HttpRequest, rest: str) -> JsonResponse:
    return refusal_response(Refusal("NOT_FOUND", "The API has no such path. Check the URL."))


# -- deploy, cancel, retry, remove -------------------------------------------------------------------------------------


@api_view("POST")
def deploy(request: ApiRequest) -> HttpResponse:
    """POST /api/deploy: answer 202 with the deployment's URLs, without waiting for Dokploy."""
    name, slug, parameters = _read_body(request)
    Stack.validate_name(name)
    stack = Stack.owned_by(request.caller, name)
    template = _find_template(request.caller, slug, stack)
    values = read_parameters(template, parameters, stack)
    deployment_request = DeploymentRequest(
        _owner(request),
        template,
        values,
        Deployment.Via.API,
        idempotency_key=_idempotency_key(request),
        address=request.address,
    )
    return _accepted(deployment_request.deploy(name))


def _find_template(user: User | AnonymousUser, slug: str | None, stack: Stack | None) -> Template:
    """Return the template with this slug; without a slug, the stack's own template, or else the first."""
    offered = Template.offered_to(user)
    if slug is not None:
        offered = offered.filter(slug=slug) if SLUG.fullmatch(slug) else offered.none()
    elif stack is not None:
        return stack.template
    template = offered.first()
    if template is None:
        raise Refusal("INVALID_PARAMETER", "Unknown template. Check its slug.", field="template")
    return template


def _accepted(deployment: Deployment) -> JsonResponse:
    body = {
        "success": True,
        "deploymentId": deployment.pk,
        "name": deployment.stack.name,
        "url": deployment.stack.url,
        "statusUrl": reverse("api-status", args=[deployment.pk]),
        "eventsUrl": reverse("api-events", args=[deployment.pk]),
        "pageUrl": reverse("deployment", args=[deployment.pk]),
    }
    return JsonResponse(body, status=202)


def _owner(request: ApiRequest) -> User:
    """Return the user who owns the stacks that this caller creates."""
    return request.caller if request.caller.is_authenticated else identity.open_user()


def _read_body(request: ApiRequest) -> tuple[str, str | None, dict[str, Any]]:
    """Return name, template slug and parameters. The content type is ignored: `curl -d` sends a form's."""
    try:
        body = json.loads(request.body)
    except (ValueError, RecursionError):
        raise Refusal("INVALID_JSON", 'The body is not valid JSON. Send {"name": "shop"}.') from None
    if not isinstance(body, dict):
        raise Refusal("INVALID_JSON", 'The body must be a JSON object. Send {"name": "shop"}.')
    name, slug, parameters = body.get("name"), body.get("template"), body.get("parameters", {})
    if not isinstance(name, str):
        raise Refusal("INVALID_NAME", "“name” must be a string.", field="name")
    if slug is not None and not isinstance(slug, str):
        raise Refusal("INVALID_PARAMETER", "“template” must be a string: the template's slug.", field="template")
    if not isinstance(parameters, dict):
        raise Refusal("INVALID_PARAMETER", "“parameters” must be an object.", field="parameters")
    return name, slug, parameters


def _idempotency_key(request: ApiRequest) -> str | None:
    key = request.headers.get("Idempotency-Key")
    if key is not None and not (0 < len(key) <= 255 and key.isprintable()):
        text = "An Idempotency-Key must have 1 to 255 printable characters."
        raise Refusal("INVALID_PARAMETER", text, field="Idempotency-Key")
    return key


@api_view("POST")
def cancel(request: ApiRequest, id: str) -> HttpResponse:
    """POST /api/deployments/dep_…/cancel: answer 202, also to a repeated request. The deployment ends soon after."""
    deployment = _find_changeable_deployment(request.caller, id)
    deployment.cancel(request.caller)
    return _accepted(deployment)


@api_view("POST")
def retry(request: ApiRequest, id: str) -> HttpResponse:
    """POST /api/deployments/dep_…/retry: answer 202 with the URLs of the new deployment."""
    deployment = _find_changeable_deployment(request.caller, id)
    return _accepted(retry_deployment(deployment, request.caller, via=Deployment.Via.API))


@api_view("DELETE")
def remove(request: ApiRequest, name: str) -> HttpResponse:
    """DELETE /api/stacks/<name>: answer 202 with the URLs of the deployment that removes the stack."""
    stacks = Stack.objects.visible_to(request.caller).existing()
    stack = stacks.filter(name=name).first() if name.isprintable() else None
    if stack is None:
        text = "You have no stack with this name. Only operators can remove stacks that were deployed without a token."
        raise Refusal("NOT_FOUND", text)
    return _accepted(request_removal(request.caller, stack, via=Deployment.Via.API))


@api_view("GET")
async def check_name(request: ApiRequest, name: str) -> HttpResponse:
    """GET /api/check/<name>: answer {"available": true, false or null (unknown), "reason"}."""
    owner = await sync_to_async(_owner)(request)
    availability = await name_availability.check(owner, name, request.address)
    return JsonResponse({"available": availability.available, "reason": availability.reason})


# -- status and events -------------------------------------------------------------------------------------------------


@api_view("GET")
async def status(request: ApiRequest, id: str) -> HttpResponseBase:
    """GET /api/status/dep_…: answer JSON if the client accepts that and not the stream, else the stream."""
    accept = request.headers.get("Accept", "*/*")
    deployment, audience = await sync_to_async(_find_deployment)(request.caller, id)
    if "application/json" in accept and "text/event-stream" not in accept:
        return _state_response(request, deployment, audience)
    return await sse.stream_response(request, deployment, audience)


@api_view("GET")
def state(request: ApiRequest, id: str) -> HttpResponse:
    """GET /api/deployments/dep_…: answer the state as JSON, with an ETag."""
    deployment, audience = _find_deployment(request.caller, id)
    return _state_response(request, deployment, audience)


def _state_response(request: ApiRequest, deployment: Deployment, audience: str) -> HttpResponse:
    etag = f'"{deployment.version}-{audience}"'
    known = {tag.removeprefix("W/") for tag in parse_etags(request.headers.get("If-None-Match", ""))}
    response: HttpResponse
    if etag in known:  # a weak one also matches: a proxy that compresses makes it weak
        response = HttpResponseNotModified()
    else:
        response = JsonResponse(wire.deployment_dict(deployment, audience))
    response.headers["ETag"] = etag
    response.headers["Cache-Control"] = "private, no-cache"
    return response


def _find_deployment(user: User | AnonymousUser, id: str) -> tuple[Deployment, str]:
    """Return the deployment and the user's audience. Raise Refusal NOT_FOUND also when the user may not see it."""
    visible = Deployment.objects.visible_to(user).select_related("stack")
    deployment = visible.filter(pk=id).first() if DEPLOYMENT_ID.fullmatch(id) else None
    if deployment is None:
        raise Refusal("NOT_FOUND", "Deployment not found.")
    return deployment, deployment.audience(user)


def _find_changeable_deployment(user: User | AnonymousUser, id: str) -> Deployment:
    """Return the deployment. Raise Refusal FORBIDDEN when the user may see but not change it."""
    deployment, _ = _find_deployment(user, id)
    if not Deployment.objects.changeable_by(user).filter(pk=deployment.pk).exists():
        raise Refusal("FORBIDDEN", "Only the owner or an operator may change this deployment. Send the owner's token.")
    return deployment


@api_view("GET")
async def events(request: ApiRequest, id: str) -> HttpResponse:
    """GET /api/deployments/dep_…/events?after=<seq>&wait=<seconds>: answer the events after <seq>.

    If there are none yet, wait for them up to this time, and LONGEST_WAIT_SECONDS at most.
    """
    deployment, audience = await sync_to_async(_find_deployment)(request.caller, id)
    after, wait = _read_number(request, "after"), min(_read_number(request, "wait"), LONGEST_WAIT_SECONDS)
    if deployment.version > after or deployment.done or wait <= 0:
        return JsonResponse(await sync_to_async(_events)(deployment, audience, after))
    async with sse.watch_deployment(request, deployment, audience) as (watcher, topic):
        await sse.release_connection()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        while not _has_new_events(topic, after) and not watcher.expired and (remaining := deadline - loop.time()) > 0:
            await watcher.wait_for_change(remaining)
    return JsonResponse(await sync_to_async(_events)(deployment, audience, after))


def _has_new_events(topic: DeploymentTopic, after: float) -> bool:
    deployment = topic.deployment
    return deployment is not None and (deployment.version > after or deployment.done)


def _events(deployment: Deployment, audience: str, after: float) -> dict[str, Any]:
    deployment.refresh_from_db(fields=["version", "status"])
    events = list(deployment.events.filter(seq__gt=after, seq__lte=deployment.version)[:EVENTS_PER_RESPONSE])
    last = events[-1].seq if events else min(int(after), deployment.version)
    return {
        "events": [wire.event_dict(event, audience) for event in events],
        "last": last,
        "done": deployment.done and last >= deployment.version,
    }


def _read_number(request: ApiRequest, name: str) -> float:
    """Return the number in the query string under this name, 0 if there is none. Raise Refusal INVALID_PARAMETER."""
    try:
        value = float(request.GET.get(name, "0"))
        if not 0 <= value < 2**31:
            raise ValueError
    except ValueError:
        raise Refusal("INVALID_PARAMETER", f"“{name}” must be a number, 0 or greater.", field=name) from None
    return value
