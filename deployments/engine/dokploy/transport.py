"""Send one request to Dokploy and read its response, bounded in time and size.

The API key goes to one server only: redirects and the environment's proxies are ignored.
"""

import asyncio
import copy
import json
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from ..errors import DokployError, NotDokploy, OutcomeUnknown, TooLarge, Unavailable
from ..tasks import uninterrupted
from . import log_stream
from .responses import decode_response, is_ambiguous_401, one_line
from .throttle import RateLimiter
from .types import Json

CALL_SECONDS = 8.0  # shorter than a worker's lease: a dead worker's last call ends before another worker takes over
MAX_BYTES = 8 * 1024 * 1024
KEEPALIVE_SECONDS = 3.0  # Dokploy closes an idle connection after five seconds, without a warning
SECOND_TRY_SECONDS = 2.0
_SECRET_FIELDS = frozenset({"env", "password", "username", "buildArgs", "buildSecrets"})

Method = Literal["GET", "POST"]


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and the status of its response, for the deployment's list of calls. Secret fields are masked."""

    at: float
    """When it ended, in seconds since 1970."""
    method: Method
    procedure: str
    fields: Mapping[str, Any]
    status: int
    """The HTTP status, or 0 without a response."""
    milliseconds: int

    def __str__(self) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.at))
        fields = json.dumps(self.fields, ensure_ascii=False) if self.fields else ""
        outcome = str(self.status) if self.status else "no answer"
        return f"{at} {self.method} {self.procedure} {fields} -> {outcome}, {self.milliseconds} ms".replace("  ", " ")


BeforeChange = Callable[[str], None]
RecordExchange = Callable[[Exchange], None]


class Transport:
    """A connection pool for one Dokploy server with one API key.

    Copies with other hooks (`with_hooks`) share the pool and the rate limit.
    """

    def __init__(self, url: str, key: str, *, connections: int, calls_per_second: float) -> None:
        self._tls = httpx.create_ssl_context(trust_env=False)
        self._http = httpx.AsyncClient(
            verify=self._tls,
            base_url=url.rstrip("/"),
            headers={"x-api-key": key, "accept": "application/json", "accept-encoding": "identity"},
            # Connecting must time out before the whole call does: only then is it certain that nothing was sent.
            timeout=httpx.Timeout(CALL_SECONDS, connect=CALL_SECONDS / 2, pool=CALL_SECONDS / 2),
            limits=httpx.Limits(max_connections=connections, keepalive_expiry=KEEPALIVE_SECONDS),
            follow_redirects=False,
            trust_env=False,
        )
        self._key = key
        # Calls wait here and not in httpx's pool: there, waiting would count as a part of the call's time, and the
        # pool's work grows with the square of the number of waiting calls.
        self._slots = asyncio.Semaphore(connections)
        self._rate_limiter = RateLimiter.for_key(url, key, calls_per_second)
        self.before_change: BeforeChange = lambda procedure: None
        self.record_exchange: RecordExchange = lambda exchange: None

    async def aclose(self) -> None:
        """Close the connection pool, for all copies."""
        await self._http.aclose()

    def with_hooks(self, before_change: BeforeChange, record_exchange: RecordExchange) -> "Transport":
        """Return a copy with these hooks. `before_change` gets the procedure and may raise Interrupted."""
        transport = copy.copy(self)
        transport.before_change, transport.record_exchange = before_change, record_exchange
        return transport

    # -- calls ---------------------------------------------------------------------------------------------------------

    async def query(self, procedure: str, **fields: Any) -> Json:
        """Return the result of a procedure that changes nothing.

        Raise Unavailable instead of OutcomeUnknown and TooLarge: the call can safely be repeated.
        """
        try:
            return await self.call("GET", procedure, fields)
        except (OutcomeUnknown, TooLarge) as error:
            raise Unavailable(str(error), evidence=error.evidence) from None

    async def change(self, procedure: str, **fields: Any) -> Json:
        """Return the result of a procedure that changes something."""
        return await self.call("POST", procedure, fields)

    async def save(self, procedure: str, **fields: Any) -> None:
        """Call a procedure that responds with `true` or the changed row.

        Raise OutcomeUnknown for an empty response: it comes from a proxy in front of Dokploy.
        """
        if await self.change(procedure, **fields) is None:
            raise OutcomeUnknown("Dokploy's response does not confirm that the change was saved.")

    async def call(self, method: Method, procedure: str, fields: dict[str, Any]) -> Json:
        """Return the decoded result of a procedure.

        A 401 that may have several reasons is resolved with a health check and a second try. A change is never sent
        again: a read tells whether the key is valid.
        """
        status, body = await self.exchange(method, procedure, fields)
        if is_ambiguous_401(status, body):
            if not await self.healthy():
                raise Unavailable("Dokploy answers, but its database does not.")
            await asyncio.sleep(SECOND_TRY_SECONDS)
            if method == "POST":
                await self.query("settings.getDokployVersion")
                raise OutcomeUnknown("Dokploy rejected the API key once, and has accepted it since.")
            status, body = await self.exchange(method, procedure, fields)
        try:
            return decode_response(procedure, status, body.replace(self._key.encode(), b"***") if self._key else body)
        except DokployError as error:
            if any(fields.get(name) for name in _SECRET_FIELDS):  # an error may repeat the secrets that were sent
                error.evidence = ""
            raise

    async def healthy(self) -> bool:
        """Return whether Dokploy and its database answer (trpc/settings.health). The key is not needed."""
        try:
            status, _ = await self.exchange("GET", "trpc/settings.health", {})
        except DokployError:
            return False
        return status == 200

    def follow_log(self, log_path: str) -> AsyncGenerator[str, None]:
        """Yield the text of a log over Dokploy's WebSocket (see `log_stream.follow`)."""
        return log_stream.follow(
            self._http.base_url, self._key, log_path, tls=self._tls, timeout=CALL_SECONDS, max_characters=MAX_BYTES
        )

    # -- one request ---------------------------------------------------------------------------------------------------

    async def exchange(self, method: Method, procedure: str, fields: dict[str, Any]) -> tuple[int, bytes]:
        """Send one request and return the status and the body of the response.

        Raise Unavailable when the request was not sent, OutcomeUnknown when it may have been.
        """
        async with self._slots:
            await self._rate_limiter.acquire()
            sending = self._send(method, procedure, fields)
            return await (uninterrupted(sending) if method == "POST" else sending)

    async def _send(self, method: Method, procedure: str, fields: dict[str, Any]) -> tuple[int, bytes]:
        change = method == "POST"
        if change:
            self.before_change(procedure)
        started, status = time.monotonic(), 0
        try:
            async with asyncio.timeout(CALL_SECONDS):
                request = self._http.build_request(
                    method,
                    f"/api/{procedure}",
                    params=None if change else fields,
                    json=fields if change else None,
                )
                response = await self._http.send(request, stream=True)
                body = await _read_body(response, OutcomeUnknown if change else TooLarge)
                status = response.status_code
                return status, body
        except (httpx.HTTPError, TimeoutError) as error:
            raise _connection_error(error) from None
        finally:
            masked = {key: "***" if key in _SECRET_FIELDS and value else value for key, value in fields.items()}
            milliseconds = round((time.monotonic() - started) * 1000)
            self.record_exchange(Exchange(time.time(), method, procedure, masked, status, milliseconds))


async def _read_body(response: httpx.Response, too_large: type[DokployError]) -> bytes:
    """Return the body as it was sent, not decompressed. Raise `too_large` when it exceeds MAX_BYTES."""
    try:
        body = bytearray()
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > MAX_BYTES:
                raise too_large("Dokploy's response is too large.")
        return bytes(body)
    finally:
        await response.aclose()


def _connection_error(error: httpx.HTTPError | TimeoutError) -> DokployError:
    """Return the error for a failed request: Unavailable if it was not sent, OutcomeUnknown if it may have been."""
    if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)):
        return Unavailable("Dokploy cannot be reached.", evidence=one_line(error))
    if isinstance(error, (httpx.UnsupportedProtocol, httpx.LocalProtocolError)):  # its text may contain the key
        return NotDokploy("The request cannot be sent. Check DOKPLOY_URL and DOKPLOY_API_KEY.")
    if isinstance(error, (TimeoutError, httpx.TimeoutException)):
        return OutcomeUnknown(f"Dokploy did not answer within {CALL_SECONDS:.0f} s.", evidence=one_line(error))
    return OutcomeUnknown("The connection to Dokploy was lost.", evidence=one_line(error))
