"""Keeps secrets out of the log, whoever logs them."""

import logging
import re

from django.conf import settings

_ASSIGNED = re.compile(
    r"(?i)(x-api-key|authorization|cookie|password|passwd|secret|token|api[_-]?key)(['\"]?\s*[:=]\s*)(\S+(?: \S{16,})?)"
)
_TOKEN = re.compile(r"dpt_[A-Za-z0-9_-]{20,}")


def mask(text: str) -> str:
    """The text with the portal's own secrets, and whatever is named like one, replaced by ***."""
    own = (settings.DOKPLOY_API_KEY, settings.SECRET_KEY, settings.SIMULATOR_SWITCH_KEY, *settings.ENCRYPTION_KEYS)
    for secret in own:
        if secret:
            text = text.replace(secret, "***")
    return _ASSIGNED.sub(r"\1\2***", _TOKEN.sub("***", text))


class RedactingFilter(logging.Filter):
    """Renders the record once, masked: message, arguments and trace."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = mask(record.getMessage()), None
        if record.exc_info:
            record.exc_text = mask(logging.Formatter().formatException(record.exc_info))
            record.exc_info = None
        elif record.exc_text:
            record.exc_text = mask(record.exc_text)
        if record.stack_info:
            record.stack_info = mask(record.stack_info)
        return True
