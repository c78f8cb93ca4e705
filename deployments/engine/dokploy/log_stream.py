"""The log of a running deploy over Dokploy's WebSocket: from its start, then whatever is written.

The socket carries the key: it goes to the one origin that the client talks to, and follows nobody elsewhere.
"""

import logging
import ssl
from collections.abc import AsyncGenerator

import httpx
from websockets.asyncio.client import connect

from ..errors import Unavailable

FRAME_BYTES = 256 * 1024  # Dokploy sends on what it reads at once, 64 KiB
CLOSE_SECONDS = 1.0
NOT_THE_LOG = "tail error:"  # what Dokploy's tail complains about comes as text too

_logger = logging.getLogger(__name__)
_logger.setLevel(logging.WARNING)  # below it the library writes down headers and frames: the key and the log


async def follow(
    base: httpx.URL, key: str, log_path: str, *, tls: ssl.SSLContext, seconds: float, most: int
) -> AsyncGenerator[str, None]:
    """Yields text as it comes. Never ends by itself: however the socket ends, Unavailable is raised.

    base: where Dokploy is, http or https. seconds: for opening, and for the answer to a ping (silence is no fault, a
    pull may take long). most: characters in all.
    """
    secure = base.scheme == "https"
    try:
        url = base.join("listen-deployment").copy_with(scheme="wss" if secure else "ws", params={"logPath": log_path})
        socket = await _Connect(
            str(url),
            additional_headers={"x-api-key": key},
            ssl=tls if secure else None,
            proxy=None,
            compression=None,
            open_timeout=seconds,
            ping_interval=seconds,
            ping_timeout=seconds,
            close_timeout=CLOSE_SECONDS,
            max_size=FRAME_BYTES,
            logger=_logger,
        )
        try:
            async for text in socket:
                most -= len(text)
                if most < 0 or not isinstance(text, str) or text.startswith(NOT_THE_LOG):
                    break
                yield text
        finally:
            try:
                await socket.close()
            finally:  # also where the goodbye is broken off
                socket.transport.abort()
    except Exception as error:  # whatever it was, the log can be asked for instead; its text may quote key or log
        raise Unavailable("Dokploy's log cannot be followed.", evidence=type(error).__name__) from None
    raise Unavailable("Dokploy's socket does not send the log any more.")


class _Connect(connect):
    """Without redirects: the library would follow them, and send the key along."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc
