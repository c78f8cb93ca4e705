"""Encrypt stored secrets (Fernet). The first key encrypts, and every key decrypts, so that keys can be rotated."""

import json
from typing import Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings

DECRYPTION_FAILED = "A stored secret can't be decrypted: its key is not among ENCRYPTION_KEYS."


class DecryptionError(Exception):
    """No key among ENCRYPTION_KEYS decrypts the secret."""


def _fernet() -> MultiFernet:
    return MultiFernet([Fernet(key.strip()) for key in settings.ENCRYPTION_KEYS])


def encrypt(value: Any) -> str:
    """Return a JSON value as encrypted text; an empty value ("", {}, None) as empty text."""
    return _fernet().encrypt(json.dumps(value).encode()).decode() if value else ""


def decrypt(token: str) -> Any:
    """Return the value, or None for empty text. Raise DecryptionError if no key decrypts it."""
    if not token:
        return None
    try:
        return json.loads(_fernet().decrypt(token.encode()))
    except InvalidToken:
        raise DecryptionError(DECRYPTION_FAILED) from None


def rotate(token: str) -> str:
    """Return the same secret encrypted with the first key. Raise DecryptionError if no key decrypts it."""
    try:
        return _fernet().rotate(token.encode()).decode() if token else ""
    except InvalidToken:
        raise DecryptionError(DECRYPTION_FAILED) from None
