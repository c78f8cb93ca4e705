"""Who is asking. One place for the demo's visitor, the owner of anonymous deployments, tokens, and true addresses.

Nobody is signed in by their address: behind a proxy, a tunnel or Docker strangers arrive as 127.0.0.1. The demo's
visitor may be, because nothing real is behind the demo; and whatever looks forwarded is a stranger there too.
"""

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AnonymousUser
from django.contrib.sessions.models import Session
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.functional import SimpleLazyObject

from .models import ApiToken, Refusal


@dataclass(frozen=True, slots=True)
class Credential:
    """What somebody came in with, to be looked at again while they watch."""

    user_id: int | None = None
    is_staff: bool = False
    session_key: str | None = None
    token_id: int | None = None


FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip")


def client_address(peer: str, forwarded_for: str) -> str:
    """The address of the client: the peer's, or with TRUSTED_PROXIES = n the n-th of X-Forwarded-For from the right."""
    hops = [hop.strip() for hop in forwarded_for.split(",") if hop.strip()]
    if settings.TRUSTED_PROXIES and len(hops) >= settings.TRUSTED_PROXIES:
        peer = hops[-settings.TRUSTED_PROXIES]
    try:
        return str(ipaddress.ip_address(peer.partition("%")[0]))
    except ValueError:
        return "0.0.0.0"  # noqa: S104 - an address that is none, not one to listen on


def is_demo_request(peer: str, host: str, header_names: Iterable[str]) -> bool:
    """Whether this request may be the demo's visitor: from this machine, to this machine, through nothing."""
    if not settings.DEMO or any(name in FORWARDED or name.startswith("x-forwarded") for name in header_names):
        return False
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    try:
        return name in settings.LOOPBACK_HOSTS and ipaddress.ip_address(peer).is_loopback
    except ValueError:
        return False


def demo_user() -> Any:
    return _named(settings.DEMO_USERNAME)


def open_user() -> Any:
    """The one real user to whom the runs of people who did not sign in belong."""
    return _named(settings.OPEN_USERNAME)


def _named(username: str) -> Any:
    """A user without a password: nobody can sign in as them."""
    user, made = get_user_model().objects.get_or_create(username=username)
    if made:
        user.set_unusable_password()
        user.save()
    return user


def demo_user_middleware(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """Middleware: in the demo, who is not signed in is the demo's visitor, on pages. The API knows tokens only."""

    def welcome(request: HttpRequest) -> None:
        signed_in = request.user

        def who() -> Any:
            if signed_in.is_authenticated or request.path.startswith("/admin/"):
                return signed_in
            return demo_user()

        names = [name.lower() for name in request.headers]
        if is_demo_request(request.META.get("REMOTE_ADDR", ""), request.META.get("HTTP_HOST", ""), names):
            request.user = SimpleLazyObject(who)  # type: ignore[assignment]

    if iscoroutinefunction(get_response):

        async def middleware(request: HttpRequest) -> HttpResponse:
            welcome(request)
            return await get_response(request)

        markcoroutinefunction(middleware)
        return middleware

    def sync_middleware(request: HttpRequest) -> HttpResponse:
        welcome(request)
        return get_response(request)

    return sync_middleware


demo_user_middleware.sync_capable = demo_user_middleware.async_capable = True  # type: ignore[attr-defined]


def authenticate_scope(scope: Mapping[str, Any]) -> tuple[Any, Credential]:
    """Who opens a socket: the signed-in user, in the demo its visitor, else nobody. Synchronous: asks the database."""
    user = scope.get("user") or AnonymousUser()
    if user.is_authenticated:
        return user, Credential(user.pk, user.is_staff, session_key=scope["session"].session_key)
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    peer = (scope.get("client") or ["", 0])[0]
    if is_demo_request(peer, headers.get("host", ""), headers):
        visitor = demo_user()
        return visitor, Credential(visitor.pk)
    return AnonymousUser(), Credential()


def authenticate_token(authorization: str) -> tuple[Any, Credential]:
    """Who calls the API, by `Authorization: Bearer <token>`, or nobody without the header. Refusal for a wrong one."""
    if not authorization:
        return AnonymousUser(), Credential()
    scheme, _, text = authorization.partition(" ")
    token = ApiToken.authenticate(text.strip()) if scheme.lower() == "bearer" else None
    if token is None:
        raise Refusal("NOT_SIGNED_IN", "This token is not known. Make one on the page “Tokens”.")
    return token.owner, Credential(token.owner.pk, token.owner.is_staff, token_id=token.pk)


def valid_credentials(credentials: set[Credential]) -> set[Credential]:
    """Those that still hold: the session not ended, the token not revoked, the user active and of the same role."""
    keys = {credential.session_key for credential in credentials if credential.session_key}
    ids = {credential.user_id for credential in credentials if credential.user_id}
    tokens = {credential.token_id for credential in credentials if credential.token_id}
    sessions = Session.objects.filter(session_key__in=keys, expire_date__gt=timezone.now())
    alive = set(sessions.values_list("session_key", flat=True)) if keys else set()
    users = dict(get_user_model().objects.filter(pk__in=ids, is_active=True).values_list("pk", "is_staff"))
    known = set(ApiToken.objects.filter(pk__in=tokens).values_list("pk", flat=True)) if tokens else set()
    return {
        credential
        for credential in credentials
        if (credential.session_key is None or credential.session_key in alive)
        and (credential.token_id is None or credential.token_id in known)
        and (
            settings.PORTAL_OPEN if credential.user_id is None else users.get(credential.user_id) == credential.is_staff
        )
    }


def portal_context(request: HttpRequest) -> dict[str, Any]:
    """Context of every page."""
    user = getattr(request, "user", None)
    return {
        "portal": {
            "demo": settings.DEMO,
            "open": settings.PORTAL_OPEN and not settings.DEMO,
            "visitor": settings.DEMO and getattr(user, "username", "") == settings.DEMO_USERNAME,
            "suffix_example": settings.STACK_URL.replace("{name}", "shop"),
            "version": settings.VERSION,
        }
    }
