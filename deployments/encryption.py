"""Secrets at rest. The first key encrypts, all keys decrypt, so that keys can be rotated."""

import json
from typing import Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings

DECRYPTION_FAILED = "A stored secret cannot be read: its key is not among ENCRYPTION_KEYS."


class DecryptionError(Exception):
    """A secret was encrypted with a key that is not among ENCRYPTION_KEYS."""


def _fernet() -> MultiFernet:
    return MultiFernet([Fernet(key.strip()) for key in settings.ENCRYPTION_KEYS])


def encrypt(value: Any) -> str:
    """Any JSON value as encrypted text; nothing ("", {}, None) as empty text."""
    return _fernet().encrypt(json.dumps(value).encode()).decode() if value else ""


def decrypt(token: str) -> Any:
    """The value, or None for empty text. Raises DecryptionError when no key fits."""
    if not token:
        return None
    try:
        return json.loads(_fernet().decrypt(token.encode()))
    except InvalidToken:
        raise DecryptionError(DECRYPTION_FAILED) from None


def rotate(token: str) -> str:
    """The same secret, encrypted with the first key. Raises DecryptionError when no key fits."""
    try:
        return _fernet().rotate(token.encode()).decode() if token else ""
    except InvalidToken:
        raise DecryptionError(DECRYPTION_FAILED) from None
