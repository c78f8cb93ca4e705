"""API keys: the owner's key, and keys that a test adds, with another role or a rate limit of their own."""

import hmac
import time
from typing import Any

from .settings import InvalidRequest, Settings

FORMAT = "A key has key, rate_limit, rate_window and role."


class ApiKey:
    """A key, the role of its user, and its rate limit. A REST call verifies the key twice, so it counts twice."""

    def __init__(self, text: str, limits: Settings, role: str = "owner") -> None:
        self.text = text.encode()
        self.role = role
        self._limits = limits
        self._used = 0
        self._last = 0.0

    def verify(self) -> bool:
        """Count one use and return True, or return False at the rate limit. Rejected uses do not extend the window."""
        limit = self._limits.rate_limit
        if limit is None:
            return True
        if time.monotonic() - self._last > self._limits.rate_window:
            self._used = 0
        if self._used >= limit:
            return False
        self._used += 1
        self._last = time.monotonic()
        return True

    def reset(self) -> None:
        self._used = 0


class ApiKeys:
    def __init__(self, owner: str, settings: Settings) -> None:
        self.owner = ApiKey(owner, settings)
        self._settings = settings
        self._others: list[ApiKey] = []

    def find(self, given: str) -> ApiKey | None:
        """Return the key with this text, or None if it is unknown or the database is down."""
        if self._settings.database == "down":
            return None
        text = given.encode("latin-1")
        return next((key for key in (self.owner, *self._others) if hmac.compare_digest(text, key.text)), None)

    def add(self, given: dict[str, Any]) -> None:
        """Add a key in this form, or replace the one with the same text. Raises InvalidRequest.

        {"key": text, "rate_limit"?, "rate_window"?, "role"?}
        """
        text, role = given.get("key"), given.get("role", "owner")
        if not isinstance(text, str) or not text or not isinstance(role, str):
            raise InvalidRequest(FORMAT)
        limits = Settings()
        limits.update({name: value for name, value in given.items() if name not in ("key", "role")})
        self._others = [key for key in self._others if key.text != text.encode()]
        self._others.append(ApiKey(text, limits, role))

    def clear(self) -> None:
        self._others.clear()
