"""API keys: the owner's, and those that the switches add: limited ones and a member's."""

import hmac
import time
from typing import Any

from .switches import Misuse, Settings


class Key:
    """A key and its rate limit. A REST call verifies it twice, so it costs two."""

    def __init__(self, text: str, limits: Settings, permissions: frozenset[str] | None = None) -> None:
        self.text = text.encode()
        self.permissions = permissions
        # The ids that a member may reach. Each create writes the list as it was when the call came in, and what it
        # made: of several at once the last one wins.
        self.reach: frozenset[str] = frozenset()
        self._limits = limits
        self._used = 0
        self._last = 0.0

    @property
    def is_member(self) -> bool:
        return self.permissions is not None

    def verify(self) -> bool:
        """Refused calls do not lengthen the window."""
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


class Keys:
    def __init__(self, owner: str, settings: Settings) -> None:
        self.owner = Key(owner, settings)
        self._settings = settings
        self._others: list[Key] = []

    def find(self, given: str) -> Key | None:
        """The key of this text; none while the database is down."""
        if self._settings.database == "down":
            return None
        text = given.encode("latin-1")
        return next((key for key in (self.owner, *self._others) if hmac.compare_digest(text, key.text)), None)

    def add(self, given: dict[str, Any]) -> None:
        """{"key": text, "rate_limit"?, "rate_window"?, "member"?: what it may do, "reach"?: what it may see}"""
        text, member, reach = given.get("key"), given.get("member"), given.get("reach", [])
        if not isinstance(text, str) or not text or not (member is None or _is_texts(member)) or not _is_texts(reach):
            raise Misuse("A key has key, rate_limit, rate_window, member, a list of permissions, and reach, of ids.")
        limits = Settings()
        limits.turn({name: value for name, value in given.items() if name not in ("key", "member", "reach")})
        self._others = [key for key in self._others if key.text != text.encode()]
        self._others.append(Key(text, limits, None if member is None else frozenset(member)))
        self._others[-1].reach = frozenset(reach)

    def clear(self) -> None:
        self._others.clear()


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)
