"""API keys: the owner's key, and keys that a test adds, for a member or with a rate limit of their own."""

import hmac
import time
from typing import Any

from .settings import InvalidRequest, Settings

FORMAT = "A key has key, rate_limit, rate_window, member (a list of permissions) and reach (a list of ids)."


class ApiKey:
    """A key and its rate limit. A REST call verifies the key twice, so it counts twice against the limit.

    permissions is None for every key that is not a member's.
    """

    def __init__(self, text: str, limits: Settings, permissions: frozenset[str] | None = None) -> None:
        self.text = text.encode()
        self.permissions = permissions
        # The ids that a member may access. Each create call stores the list as it was at the call's beginning plus
        # the ids that it created. Of simultaneous calls only the ids of the last one remain, as in Dokploy.
        self.reach: frozenset[str] = frozenset()
        self._limits = limits
        self._used = 0
        self._last = 0.0

    @property
    def is_member(self) -> bool:
        return self.permissions is not None

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

        {"key": text, "rate_limit"?, "rate_window"?, "member"?: permissions, "reach"?: ids that it may access}
        """
        text, permissions, reach = given.get("key"), given.get("member"), given.get("reach", [])
        if not isinstance(text, str) or not text or not is_text_list(reach):
            raise InvalidRequest(FORMAT)
        if permissions is not None and not is_text_list(permissions):
            raise InvalidRequest(FORMAT)
        limits = Settings()
        limits.update({name: value for name, value in given.items() if name not in ("key", "member", "reach")})
        self._others = [key for key in self._others if key.text != text.encode()]
        self._others.append(ApiKey(text, limits, None if permissions is None else frozenset(permissions)))
        self._others[-1].reach = frozenset(reach)

    def clear(self) -> None:
        self._others.clear()


def is_text_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)
