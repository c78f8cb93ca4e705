"""How long deployments usually take, measured on the most recent successful ones."""

import time
from statistics import quantiles

from ..models import Deployment

SAMPLE_SIZE = 20
MIN_SAMPLE = 3
MIN_SAMPLE_FOR_SLOW = 10  # “slower than 9 of 10” needs ten
CACHE_SECONDS = 10.0

_cache: tuple[float, list[float]] = (0.0, [])
"""When the cached durations expire, on the monotonic clock, and the durations in seconds."""


def usual_duration() -> str | None:
    """Return the range in which 8 of 10 recent deployments ended, or None if there are too few of them."""
    durations = _recent_durations()
    if len(durations) < MIN_SAMPLE:
        return None
    deciles = quantiles(durations, n=10, method="inclusive")
    low, high = (max(round(value), 1) for value in (deciles[0], deciles[-1]))
    return f"about {low} s" if low == high else f"about {low}–{high} s"


def slow_after() -> float:
    """Return the seconds after which a deployment is slower than 9 of 10; infinity if there are too few to tell."""
    durations = _recent_durations()
    return quantiles(durations, n=10, method="inclusive")[-1] if len(durations) >= MIN_SAMPLE_FOR_SLOW else float("inf")


def clear_cache() -> None:
    """Make the next call read the database."""
    global _cache
    _cache = (0.0, [])


def _recent_durations() -> list[float]:
    global _cache
    if time.monotonic() > _cache[0]:
        successful = Deployment.objects.successful().order_by("-created_at")
        times = successful.values_list("started_at", "completed_at")[:SAMPLE_SIZE]
        durations = [(completed - started).total_seconds() for started, completed in times if started and completed]
        _cache = (time.monotonic() + CACHE_SECONDS, durations)
    return _cache[1]
