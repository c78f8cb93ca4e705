"""Settings of the simulated server that can be changed while it runs."""

from dataclasses import dataclass, field, fields
from typing import Any

SECONDS = ("pull", "start", "latency", "rate_window", "monitor", "restart_delay")
CHOICES = {
    "engine": ("up", "down"),
    "database": ("up", "down"),
    "infrastructure": ("up", "missing"),
    "login": ("accepted", "refused"),
}


class InvalidRequest(Exception):
    """A request to the control API or a setting that is not valid. The text says what is valid."""


@dataclass
class Settings:
    """The behavior of the simulated server. Times are in seconds.

    pull, start and latency: how long an image pull, a container's start and an API call take.
    pull_error: the message with which pulls fail. engine_error: the message with which updates of services fail.
    infrastructure: whether the engine has Dokploy's own services. login: the registry's answer to credentials.
    rate_limit: allowed verifications of a key per rate_window. container_status: replaces every container's status.
    monitor: how long the engine watches an update. restart_delay: the pause before it starts an ended program again.
    programs: by image, how its program behaves: {"lives": seconds until it ends, "exit_code", "starts" and "ends": the
    lines that it writes then, "listens": false for another port than the domain's}.
    halves: how many of the next project.create calls insert the project but not its environment, and then fail.
    """

    pull: float = 6.0
    start: float = 3.0
    latency: float = 0.03
    monitor: float = 5.0
    restart_delay: float = 5.0
    programs: dict[str, dict[str, Any]] = field(default_factory=dict)
    pull_error: str | None = None
    engine_error: str | None = None
    engine: str = "up"
    database: str = "up"
    infrastructure: str = "up"
    login: str = "accepted"
    rate_limit: int | None = None
    rate_window: float = 86400.0
    container_status: str | None = None
    version: str = "v0.30.2"
    halves: int = 0

    def update(self, given: dict[str, Any]) -> None:
        """Change the given settings, all or none of them. Raises InvalidRequest."""
        names = [setting.name for setting in fields(self)]
        for name, value in given.items():
            if name not in names:
                raise InvalidRequest(f"Unknown setting {name!r}. The settings are {', '.join(names)}.")
            if not is_valid(name, value):
                raise InvalidRequest(f"{value!r} is not valid for the setting {name!r}.")
        for name, value in given.items():
            setattr(self, name, value)


def is_valid(name: str, value: Any) -> bool:
    if name in SECONDS:
        return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
    if name in CHOICES:
        return value in CHOICES[name]
    if name == "programs":
        return isinstance(value, dict) and all(isinstance(program, dict) for program in value.values())
    if name == "halves" or (name == "rate_limit" and value is not None):
        return type(value) is int and value >= 0
    return isinstance(value, str) or (value is None and name != "version")
