"""Keep secrets out of the log, whichever library logs them."""

import logging
import re

from django.conf import settings

_ASSIGNMENT = re.compile(
    r"(?i)(x-api-key|authorization|cookie|password|passwd|secret|token|api[_-]?key)(['\"]?\s*[:=]\s*)(\S+(?: \S{16,})?)"
)
_API_TOKEN = re.compile(r"dpt_[A-Za-z0-9_-]{20,}")


def redact(text: str) -> str:
    """Replace with *** the portal's own secrets, API tokens, and every value whose name suggests a secret."""
    own = (settings.DOKPLOY_API_KEY, settings.SECRET_KEY, settings.SIMULATOR_SWITCH_KEY, *settings.ENCRYPTION_KEYS)
    for secret in own:
        if secret:
            text = text.replace(secret, "***")
    return _ASSIGNMENT.sub(r"\1\2***", _API_TOKEN.sub("***", text))


class RedactingFilter(logging.Filter):
    """Format each record once and redact the result: message, arguments, traceback and stack."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage()), None
        if record.exc_info:
            record.exc_text = redact(logging.Formatter().formatException(record.exc_info))
            record.exc_info = None
        elif record.exc_text:
            record.exc_text = redact(record.exc_text)
        if record.stack_info:
            record.stack_info = redact(record.stack_info)
        return True
