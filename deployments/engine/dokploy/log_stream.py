"""Stream the log of a running Dokploy deployment over Dokploy's WebSocket.

The handshake carries the API key, so the connection goes only to the configured server and follows no redirect.
"""

import logging
import ssl
from collections.abc import AsyncGenerator

import httpx
from websockets.asyncio.client import connect

from ..errors import Unavailable

MAX_FRAME_BYTES = 256 * 1024  # Dokploy forwards the log in pieces of up to 64 KiB
CLOSE_SECONDS = 1.0
TAIL_ERROR = "tail error:"  # Dokploy runs `tail` and sends its error messages as text too

_logger = logging.getLogger(__name__)
_logger.setLevel(logging.WARNING)  # at lower levels, websockets logs headers and frames: the key and the log


async def follow(
    base_url: httpx.URL, key: str, log_path: str, *, tls: ssl.SSLContext, timeout: float, max_characters: int
) -> AsyncGenerator[str, None]:
    """Yield the text of a log from its beginning, as it is written.

    `timeout` (seconds) limits the handshake and the response to a ping; silence is not an error, because pulling an
    image may take a long time. The stream never ends normally: raise Unavailable when the connection ends for any
    reason, or when the text exceeds `max_characters`.
    """
    secure = base_url.scheme == "https"
    try:
        url = base_url.join("listen-deployment").copy_with(
            scheme="wss" if secure else "ws", params={"logPath": log_path}
        )
        websocket = await _ConnectWithoutRedirects(
            str(url),
            additional_headers={"x-api-key": key},
            ssl=tls if secure else None,
            proxy=None,
            compression=None,
            open_timeout=timeout,
            ping_interval=timeout,
            ping_timeout=timeout,
            close_timeout=CLOSE_SECONDS,
            max_size=MAX_FRAME_BYTES,
            logger=_logger,
        )
        try:
            async for text in websocket:
                max_characters -= len(text)
                if max_characters < 0 or not isinstance(text, str) or text.startswith(TAIL_ERROR):
                    break
                yield text
        finally:
            try:
                await websocket.close()
            finally:  # also when the closing handshake is cancelled
                websocket.transport.abort()
    except Exception as error:  # every error has the same consequence; its text may contain the key or the log
        raise Unavailable("Dokploy's log stream failed.", evidence=type(error).__name__) from None
    raise Unavailable("Dokploy's log stream ended.")


class _ConnectWithoutRedirects(connect):
    """Refuses redirects: websockets would follow them and send the key along."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc
