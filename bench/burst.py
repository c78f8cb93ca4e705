"""Many changes without a pause, watched by 100 WebSockets: when all have the final state, and how memory grows."""

import time
from dataclasses import dataclass
from statistics import median

from .figures import Figure
from .portals import Server, Servers
from .watchers import Watchers

WINDOW_SECONDS = 1.0
BURST_SECONDS = 60.0
ASK_SECONDS = 0.25  # between two requests for the progress of the changes; each costs the server time


def measure(servers: Servers, *, short: bool) -> list[Figure]:
    """Measure several bursts of the product and a shorter one of stock Channels, where each change takes longer."""
    count, changes, stock_changes, rounds = (10, 30, 10, 2) if short else (100, 500, 100, 3)
    watchers = Watchers()
    try:
        stock = _burst(watchers, servers.stock, "burst", count, stock_changes)
        bursts = [_burst(watchers, servers.product, f"burst-{n}", count, changes) for n in range(rounds)]
    finally:
        watchers.close_all()
    complete = min(burst.complete for burst in bursts)
    times = [burst.last for burst in bursts if burst.last is not None]
    last = max(times) if len(times) == rounds else None
    memory = (bursts[-1].resident - bursts[0].resident) / 1000
    against = f"stock Channels, {stock_changes} changes"
    return [
        Figure(
            f"watchers with the final state within 1 s, of {count}",
            *(complete, "", stock.complete, against, f"{count}", complete == count),
        ),
        Figure(
            f"last commit → last of {count}",
            *(last, "ms", stock.last, against, "≤ 1,000 ms", last is not None and last <= 1000),
        ),
        Figure("changes", median(burst.rate for burst in bursts), "/s", stock.rate, against),
        Figure("frames per change", median(burst.frames for burst in bursts), "", stock.frames, against),
        Figure(f"memory, from the first to the last of {rounds} bursts", memory, "MB", None, "", "< 5 MB", memory < 5),
    ]


@dataclass(frozen=True, slots=True)
class Burst:
    """The result of one burst.

    last: milliseconds from the last commit until the last watcher had the final state; None if one never had it.
    complete: how many had it within a second. rate: changes per second. frames: frames per change and watcher.
    resident: kB of the server's memory afterwards.
    """

    last: float | None
    complete: int
    rate: float
    frames: float
    resident: int


def _burst(watchers: Watchers, server: Server, name: str, count: int, changes: int) -> Burst:
    created = server.control("new", name=name)
    product = server.kind == "product"
    crowd = watchers.open(server.port, f"/ws/deployments/{created['id']}", count, first_frame=product)
    before = [watcher.frames for watcher in crowd]
    final = server.control("change", id=created["id"], times=changes)["version"]
    deadline = time.monotonic() + BURST_SECONDS
    while not (made := server.control("changed")):
        assert time.monotonic() < deadline, "the changes are not complete"
        watchers.pause(ASK_SECONDS)
    arrived = watchers.arrivals(crowd, final, WINDOW_SECONDS)
    burst = Burst(
        last=(max(arrived) - made["at"]) / 1e6 if len(arrived) == count else None,
        complete=sum(at <= made["at"] + WINDOW_SECONDS * 1e9 for at in arrived),
        rate=changes / (made["at"] - made["began"]) * 1e9,
        frames=median(watcher.frames - n for watcher, n in zip(crowd, before, strict=True)) / changes,
        resident=server.resident(),
    )
    watchers.close(crowd)
    return burst
