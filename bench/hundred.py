"""A hundred deployments at once, one worker, each call to Dokploy answered after a quarter of a second.

The ideal: a hundred take as long as one alone.
"""

import time
from concurrent.futures import ThreadPoolExecutor

from .figures import Figure, middle
from .portals import Bench, portal

DEPLOYMENTS, LATENCY, ROUNDS = 100, 0.25, 3
LIMIT_SECONDS = 30.0  # for one round; after one that took so long there is no other


def measure() -> list[Figure]:
    alone, together, cpu, calls, over = [], [], [], [], DEPLOYMENTS
    for _ in range(ROUNDS):
        with portal() as served:
            served.deploy("rehearsal")
            served.all_ended(1)
            served.turn(latency=LATENCY)
            alone.append(_wall(served, 1))
            before, called = served.cpu(), _calls(served)
            together.append(_wall(served, DEPLOYMENTS))
            cpu.append((served.cpu() - before) / DEPLOYMENTS * 1000)
            calls.append((_calls(served) - called) / DEPLOYMENTS)
            over = min(over, served.ended - 2)
        if together[-1] > 2 * alone[-1]:  # far from the goal: not worth another round
            break
    wall, ideal = middle(together), middle(alone)
    name = f"{DEPLOYMENTS} deployments at once" + (f" ({over} were over)" if over < DEPLOYMENTS else "")
    against = f"one alone, {LATENCY} s a call"
    met = wall <= 1.5 * ideal and over == DEPLOYMENTS
    return [
        Figure(name, wall, "s", ideal, against, "≤ 1.5", met),
        Figure("  the portal's CPU for each", middle(cpu), "ms"),
        Figure("  calls to Dokploy for each", middle(calls), ""),
    ]


def _calls(served: Bench) -> int:
    return sum(served.dokploy()["calls"].values())


def _wall(served: Bench, count: int) -> float:
    """Seconds from the first POST until the last of so many deployments is over, or the limit."""
    names = [f"at-once-{count}-{number}" for number in range(count)]
    done = served.ended
    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(served.deploy, names))
    served.all_ended(done + count, LIMIT_SECONDS)
    return time.monotonic() - began
