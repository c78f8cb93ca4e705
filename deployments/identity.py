"""The sender of a request: addresses, users, tokens, and the demo's and the open portal's special users.

An address proves nothing: behind a proxy, a tunnel or Docker, remote clients arrive as 127.0.0.1. The demo user is the
exception, because a demo holds nothing real; even there, a request with any forwarding header counts as remote.
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AnonymousUser, User
from django.contrib.sessions.models import Session
from django.http import HttpRequest
from django.utils import timezone
from django_htmx.middleware import HtmxDetails

from .models import ApiToken, Refusal


@dataclass(frozen=True, slots=True)
class Credential:
    """A caller's proof of identity: a session or a token. The hub validates it again while its holder watches."""

    user_id: int | None = None
    is_staff: bool = False
    session_key: str | None = None
    token_id: int | None = None


# -- types of requests: they only tell mypy which attributes middleware and decorators have set ------------------------


class PortalRequest(HttpRequest):
    """A request that has passed portal_middleware. address: the client's."""

    address: str


class ApiRequest(PortalRequest):
    """A request to a view with @api_view."""

    caller: User | AnonymousUser
    credential: Credential


class PageRequest(PortalRequest):
    """A request for a page, from any user."""

    htmx: HtmxDetails


class UserPageRequest(PageRequest):
    """A request for a page from an authenticated user, in the demo also from the demo user."""

    user: User


# -- addresses ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Client:
    """The client side of an HTTP request or a WebSocket: the address of the TCP peer, and the headers.

    headers: the values by lower-case name. Those of a Django request ignore case.
    """

    peer: str
    headers: Mapping[str, str]

    @classmethod
    def from_request(cls, request: HttpRequest) -> "Client":
        return cls(request.META.get("REMOTE_ADDR", ""), request.headers)

    @classmethod
    def from_scope(cls, scope: Mapping[str, Any]) -> "Client":
        return cls((scope.get("client") or ["", 0])[0], scope_headers(scope))

    @property
    def address(self) -> str:
        """The client's address: the peer's or, with TRUSTED_PROXIES = n, the n-th from the right of X-Forwarded-For."""
        address = self.peer
        hops = [hop.strip() for hop in self.headers.get("x-forwarded-for", "").split(",") if hop.strip()]
        if settings.TRUSTED_PROXIES and len(hops) >= settings.TRUSTED_PROXIES:
            address = hops[-settings.TRUSTED_PROXIES]
        try:
            return str(ipaddress.ip_address(address.partition("%")[0]))
        except ValueError:
            return "0.0.0.0"  # noqa: S104 - stands for an invalid address; nothing listens on it

    def is_demo_user(self) -> bool:
        """Return whether an unauthenticated request counts as the demo user's.

        It does in the demo, if it comes from this machine, is addressed to it, and was not forwarded by a proxy.
        """
        if not settings.DEMO or any(_is_forwarding(name.lower()) for name in self.headers):
            return False
        host = self.headers.get("host", "")
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        try:
            return name in settings.LOOPBACK_HOSTS and ipaddress.ip_address(self.peer).is_loopback
        except ValueError:
            return False


def _is_forwarding(header: str) -> bool:
    """Return whether proxies set this header, given in lower case."""
    return header in ("forwarded", "via", "x-real-ip") or header.startswith("x-forwarded")


def scope_headers(scope: Mapping[str, Any]) -> dict[str, str]:
    """Return the headers of an ASGI scope by lower-case name; repeated ones are joined by commas (RFC 9110, 5.3)."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    return headers


def viewer_key(user: User | AnonymousUser, address: str) -> str:
    """Return the key under which this viewer's open pages and streams are counted: the user, else the address."""
    return f"user {user.pk}" if user.is_authenticated else f"address {address}"


# -- users -------------------------------------------------------------------------------------------------------------


def demo_user() -> User:
    """Return the user that every local client of the demo acts as."""
    return _passwordless_user(settings.DEMO_USERNAME)


def open_user() -> User:
    """Return the user that owns all stacks of anonymous users."""
    return _passwordless_user(settings.OPEN_USERNAME)


def _passwordless_user(username: str) -> User:
    user, created = get_user_model().objects.get_or_create(username=username)
    if created:
        user.set_unusable_password()
        user.save()
    return user


def authenticate_scope(scope: Mapping[str, Any]) -> tuple[User | AnonymousUser, Credential]:
    """Return the user who opens a WebSocket: the signed-in user, else the demo user in the demo, else an anonymous one.

    Queries the database, synchronously.
    """
    user = scope.get("user") or AnonymousUser()
    if user.is_authenticated:
        return user, Credential(user.pk, user.is_staff, session_key=scope["session"].session_key)
    if Client.from_scope(scope).is_demo_user():
        user = demo_user()
        return user, Credential(user.pk)
    return AnonymousUser(), Credential()


def authenticate_token(authorization: str) -> tuple[User, Credential]:
    """Return the owner of the token in this Authorization header (`Bearer <token>`).

    Raise Refusal NOT_SIGNED_IN when the token is unknown, or its owner is deactivated.
    """
    scheme, _, text = authorization.partition(" ")
    token = ApiToken.authenticate(text.strip()) if scheme.lower() == "bearer" else None
    if token is None:
        raise Refusal("NOT_SIGNED_IN", "Unknown token. Create one on the page “Tokens”.")
    return token.owner, Credential(token.owner.pk, token.owner.is_staff, token_id=token.pk)


def valid_credentials(credentials: set[Credential]) -> set[Credential]:
    """Return the valid ones: session not ended, token not revoked, user active and with the same staff flag."""
    session_keys = {credential.session_key for credential in credentials} - {None}
    user_ids = {credential.user_id for credential in credentials if credential.user_id}
    token_ids = {credential.token_id for credential in credentials if credential.token_id}
    sessions = Session.objects.filter(session_key__in=session_keys, expire_date__gt=timezone.now())
    valid_sessions = {None, *(sessions.values_list("session_key", flat=True) if session_keys else ())}
    users = get_user_model().objects.filter(pk__in=user_ids, is_active=True)
    staff_flags = dict(users.values_list("pk", "is_staff"))
    tokens = ApiToken.objects.filter(pk__in=token_ids)
    valid_tokens = {None, *(tokens.values_list("pk", flat=True) if token_ids else ())}

    return {
        credential
        for credential in credentials
        if credential.session_key in valid_sessions and credential.token_id in valid_tokens
        if _user_is_unchanged(credential, staff_flags)
    }


def _user_is_unchanged(credential: Credential, staff_flags: dict[int, bool]) -> bool:
    if credential.user_id is None:
        return bool(settings.PORTAL_OPEN)
    return staff_flags.get(credential.user_id) == credential.is_staff


def portal_context(request: HttpRequest) -> dict[str, Any]:
    """Return the template context that every page gets."""
    user = getattr(request, "user", None)
    return {
        "portal": {
            "demo": settings.DEMO,
            "open": settings.PORTAL_OPEN and not settings.DEMO,
            "visitor": settings.DEMO and getattr(user, "username", "") == settings.DEMO_USERNAME,
            "version": settings.VERSION,
        }
    }
