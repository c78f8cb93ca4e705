"""Django middleware: client address, scheme and demo user of each request, security headers of each response."""

from collections.abc import Awaitable, Callable
from typing import Any, cast

from asgiref.sync import iscoroutinefunction
from django.conf import settings
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse
from django.utils.decorators import sync_and_async_middleware
from django.utils.functional import SimpleLazyObject

from deployments.identity import Client, PortalRequest, demo_user

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)

GetResponse = Callable[[HttpRequest], Any]


def _middleware(
    before: Callable[[HttpRequest], None], after: Callable[[HttpResponse], HttpResponse] = lambda response: response
) -> Callable[[GetResponse], GetResponse]:
    """Create a middleware, synchronous and asynchronous, from what it does to each request and to each response."""

    @sync_and_async_middleware
    def middleware(get_response: GetResponse) -> GetResponse:
        if iscoroutinefunction(get_response):
            get_response_async: Callable[[HttpRequest], Awaitable[HttpResponse]] = get_response

            async def handle_async(request: HttpRequest) -> HttpResponse:
                before(request)
                return after(await get_response_async(request))

            return handle_async

        def handle(request: HttpRequest) -> HttpResponse:
            before(request)
            return after(get_response(request))

        return handle

    return middleware


def _set_address_and_scheme(request: HttpRequest) -> None:
    """Set request.address and the header of SECURE_PROXY_SSL_HEADER. Believe the headers of trusted proxies only."""
    client = Client.from_request(request)
    cast(PortalRequest, request).address = client.address
    request.META.pop("HTTP_X_PORTAL_SCHEME", None)
    if settings.TRUSTED_PROXIES:
        schemes = [hop.strip() for hop in client.headers.get("x-forwarded-proto", "").split(",")]
        request.META["HTTP_X_PORTAL_SCHEME"] = schemes[-min(settings.TRUSTED_PROXIES, len(schemes))]


def _set_security_headers(response: HttpResponse) -> HttpResponse:
    response.headers.setdefault("Content-Security-Policy", CSP)
    response.headers.setdefault("X-Frame-Options", "DENY")
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers.setdefault("Permissions-Policy", "camera=(), geolocation=(), microphone=()")
    return response


def _set_demo_user(request: HttpRequest) -> None:
    """In the demo, treat anonymous requests from this machine as the demo user's, except in the admin.

    The API ignores request.user: it accepts tokens only.
    """
    session_user = request.user

    def user() -> Any:
        if session_user.is_authenticated or request.path.startswith("/admin/"):
            return session_user
        return demo_user()

    if Client.from_request(request).is_demo_user():
        request.user = cast(User, SimpleLazyObject(user))


portal_middleware = _middleware(_set_address_and_scheme, _set_security_headers)  # the outermost one
demo_user_middleware = _middleware(_set_demo_user)
