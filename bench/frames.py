"""Commit → frame, for 1, 100 and 1,000 WebSockets: the hub, stock Channels, and a client that polls every second."""

import random
import time

from .figures import Figure, middle
from .portals import Bench, portal
from .sockets import Watcher, Watchers

CROWDS = (1, 100, 1000)
ROUNDS = 5
POLLERS = 10  # a client that polls, begun at ten different times
APART = 0.15  # the hub hands out at most ten frames a second

Crowd = tuple[str, list[Watcher]]


def measure() -> list[Figure]:
    watchers = Watchers()
    with portal(RUNNER_LIMIT=1) as product, portal("stock", RUNNER_LIMIT=1) as stock:
        try:
            return _measure(watchers, product, stock)
        finally:
            watchers.close_all()


def _measure(watchers: Watchers, product: Bench, stock: Bench) -> list[Figure]:
    ours, theirs = _gather(watchers, product), _gather(watchers, stock)
    kilobytes = [_per_watcher(watchers, product, *ours[1000]), _per_watcher(watchers, stock, *theirs[1000])]
    polled = product.door("new", name="polled", anonymous=1)["id"]
    last: dict[str, dict[int, list[float]]] = {name: {n: [] for n in CROWDS} for name in ("hub", "stock")}
    polls: list[float] = []
    rendered = {n: product.door("renders", id=ours[n][0]) for n in CROWDS}
    for number in range(ROUNDS + 1):  # the first is a rehearsal
        for n in CROWDS:
            for name, served, crowds in (("hub", product, ours), ("stock", stock, theirs)):
                took = _last(watchers, served, *crowds[n])
                if number:
                    last[name][n].append(took)
        if number:
            polls += _poll(watchers, product, polled)
    renders = [product.door("renders", id=ours[n][0]) - rendered[n] for n in CROWDS]
    hub = {n: middle(times) for n, times in last["hub"].items()}
    layer = {n: middle(times) for n, times in last["stock"].items()}
    poll = sum(polls) / len(polls)
    growth = [(times[1000] - times[1]) / 999 * 1000 for times in (hub, layer)]
    per_change = max(renders) / (ROUNDS + 1)
    once = all(count == ROUNDS + 1 for count in renders)
    every_second, channels = "a client that polls every second, mean", "stock Channels"
    return [
        Figure("commit → frame, 1 watcher", hub[1], "ms", poll, every_second, "≤ 1/500", hub[1] <= poll / 500),
        Figure("  the same", hub[1], "ms", layer[1], channels),
        Figure("commit → last of 100", hub[100], "ms", poll, every_second, "≤ 1/100", hub[100] <= poll / 100),
        Figure("  the same", hub[100], "ms", layer[100], channels),
        Figure("commit → last of 1,000", hub[1000], "ms", layer[1000], channels, "≤ 1/4", hub[1000] <= layer[1000] / 4),
        Figure("growth per watcher", growth[0], "µs", growth[1], channels, "≤ 45 µs", growth[0] <= 45),
        Figure("renders per change", per_change, "", None, "", "exactly 1", once),
        Figure("memory per idle watcher", kilobytes[0], "kB", kilobytes[1], channels, "< 40 kB", kilobytes[0] < 40),
    ]


def _gather(watchers: Watchers, served: Bench) -> dict[int, Crowd]:
    """Crowds of 1 and 100, each before a deployment of its own, and the deployment of the thousand."""
    crowds: dict[int, Crowd] = {}
    for n in CROWDS:
        id = served.door("new", name=f"watched-{n}")["id"]
        crowds[n] = id, []
        if n < 1000:
            crowds[n][1].extend(_open(watchers, served, id, n))
    return crowds


def _open(watchers: Watchers, served: Bench, id: str, n: int) -> list[Watcher]:
    path = f"/ws/deployments/{id}"
    return watchers.open(served.port, path, n, first_frame=served.kind == "product")


def _per_watcher(watchers: Watchers, served: Bench, id: str, crowd: list[Watcher]) -> float:
    """Opens the thousand: kB that each of them takes while nothing happens."""
    before = served.resident()
    crowd.extend(_open(watchers, served, id, 1000))
    watchers.pause(0.5)
    return (served.resident() - before) / 1000


def _last(watchers: Watchers, served: Bench, id: str, crowd: list[Watcher]) -> float:
    """Milliseconds from the commit of one change until the last of the crowd has its frame."""
    version = served.door("change", id=id)["version"]
    shown = watchers.shown(crowd, version, 20)
    assert len(shown) == len(crowd), f"{len(crowd) - len(shown)} of {len(crowd)} watchers have an old state"
    at = served.door("changed")["at"]
    watchers.pause(APART)
    return (max(shown) - at) / 1e6


def _poll(watchers: Watchers, served: Bench, id: str) -> list[float]:
    """Milliseconds from a commit until each of the pollers, evenly spread over the second, has seen the change."""
    before = served.status(id)["version"]
    slot = 1 / POLLERS
    began, step, seen = time.monotonic(), 0, {}
    change_at = random.uniform(0, slot) + slot
    asked = False
    while len(seen) < POLLERS:
        due = began + step * slot
        if not asked and due > began + change_at:
            watchers.pause(max(began + change_at - time.monotonic(), 0))
            served.door("change", id=id)
            asked = True
        watchers.pause(max(due - time.monotonic(), 0))
        if served.status(id)["version"] > before:
            seen.setdefault(step % POLLERS, time.monotonic_ns())
        step += 1
        assert step < 5 * POLLERS, "the pollers do not see the change"
    at = served.door("changed")["at"]
    return [(moment - at) / 1e6 for moment in seen.values()]
