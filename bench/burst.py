"""500 changes without pause before 100 watchers: when has everybody the final state, and does memory stay flat?"""

import time
from dataclasses import dataclass

from .figures import Figure, middle
from .portals import Bench, portal
from .sockets import Watchers

CHANGES, CROWD, ROUNDS = 500, 100, 3
STOCK_CHANGES = 100  # it takes its time
WINDOW = 1.0


def measure() -> list[Figure]:
    watchers = Watchers()
    with portal(RUNNER_LIMIT=1) as product, portal("stock", RUNNER_LIMIT=1) as stock:
        try:
            theirs = _burst(watchers, stock, "burst", STOCK_CHANGES)
            rounds = [_burst(watchers, product, f"burst-{number}", CHANGES) for number in range(ROUNDS)]
        finally:
            watchers.close_all()
    last, had = max(found.last for found in rounds), min(found.had for found in rounds)
    rate, frames = middle(found.rate for found in rounds), middle(found.frames for found in rounds)
    memory = (rounds[-1].resident - rounds[0].resident) / 1000
    stock_burst = f"stock Channels, {STOCK_CHANGES} changes"
    everybody = f"have the final state within 1 s, of {CROWD}"
    return [
        Figure(everybody, had, "", theirs.had, stock_burst, f"{CROWD}", had == CROWD),
        Figure("last commit → last of 100", last, "ms", theirs.last, stock_burst, "≤ 1,000 ms", last <= 1000),
        Figure("changes", rate, "/s", theirs.rate, stock_burst),
        Figure(f"frames per watcher, of {CHANGES} changes", frames, "", theirs.frames, stock_burst),
        Figure("memory, from the 1st to the 3rd burst", memory, "MB", None, "", "< 5 MB", memory < 5),
    ]


@dataclass(frozen=True, slots=True)
class Burst:
    last: float
    """Milliseconds from the last commit until the last watcher has the final state."""
    had: int
    """How many have it in time."""
    rate: float
    frames: float
    resident: int


def _burst(watchers: Watchers, served: Bench, name: str, changes: int) -> Burst:
    run = served.door("new", name=name)
    product = served.kind == "product"
    crowd = watchers.open(served.port, f"/ws/deployments/{run['id']}", CROWD, first_frame=product)
    before = [watcher.frames for watcher in crowd]
    began = time.monotonic_ns()
    final = served.door("change", id=run["id"], times=changes)["version"]
    made: dict[str, int] = {}
    while not made:  # the last change may take its time; pings are answered meanwhile
        watchers.shown(crowd, final, WINDOW)
        made = served.door("changed", wait=0)
    seen = watchers.shown(crowd, final, WINDOW)
    burst = Burst(
        last=(max(seen) - made["at"]) / 1e6 if len(seen) == CROWD else float("inf"),
        had=sum(at <= made["at"] + WINDOW * 1e9 for at in seen),
        rate=changes / (made["at"] - began) * 1e9,
        frames=middle(watcher.frames - n for watcher, n in zip(crowd, before, strict=True)),
        resident=served.resident(),
    )
    watchers.close(crowd)
    return burst
