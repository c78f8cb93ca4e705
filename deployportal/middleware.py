"""What holds for every answer of Django's: the headers, the true address and scheme behind trusted proxies."""

from collections.abc import Callable
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.http import HttpRequest, HttpResponse

from deployments.identity import client_address

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)


def portal_middleware(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """The outermost middleware."""

    def enter(request: HttpRequest) -> None:
        forwarded = request.META.get("HTTP_X_FORWARDED_FOR", "")
        request.address = client_address(request.META.get("REMOTE_ADDR", ""), forwarded)  # type: ignore[attr-defined]
        request.META.pop("HTTP_X_PORTAL_SCHEME", None)
        if settings.TRUSTED_PROXIES:
            schemes = [hop.strip() for hop in request.META.get("HTTP_X_FORWARDED_PROTO", "").split(",")]
            request.META["HTTP_X_PORTAL_SCHEME"] = schemes[-min(settings.TRUSTED_PROXIES, len(schemes))]

    def leave(response: HttpResponse) -> HttpResponse:
        response.headers.setdefault("Content-Security-Policy", CSP)
        response.headers.setdefault("X-Frame-Options", "DENY")
        response.headers.setdefault("Cache-Control", "no-store")
        response.headers.setdefault("Permissions-Policy", "camera=(), geolocation=(), microphone=()")
        return response

    if iscoroutinefunction(get_response):

        async def middleware(request: HttpRequest) -> HttpResponse:
            enter(request)
            return leave(await get_response(request))

        markcoroutinefunction(middleware)
        return middleware

    def sync_middleware(request: HttpRequest) -> HttpResponse:
        enter(request)
        return leave(get_response(request))

    return sync_middleware


portal_middleware.sync_capable = portal_middleware.async_capable = True  # type: ignore[attr-defined]
