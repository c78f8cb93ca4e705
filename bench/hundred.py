"""A hundred deployments at once, one worker, each call to Dokploy answered after a quarter of a second.

The deployments are created beforehand and released together, so that creating them is not part of what is measured.
"""

import json
import time
from dataclasses import dataclass
from statistics import median

from .figures import Figure
from .portals import Server, Servers, seconds_of
from .yardstick import NEEDED_CALLS, httpx_cpu_milliseconds

LIMIT_SECONDS = 120.0  # for one measurement
BUDGET_SECONDS = 60.0  # no further round begins after this time
POLL_SECONDS = 0.2
ENDED = "SELECT status, completed_at, requests FROM deployments_deployment WHERE id IN (SELECT value FROM json_each(?))"


@dataclass(frozen=True, slots=True)
class Together:
    """The result of deployments that began together.

    asked: how many. succeeded: how many of them succeeded within the limit. seconds: from the beginning to the last
    end; None if not all succeeded. cpu: seconds of the server's CPU. calls: calls to Dokploy of those that succeeded.
    """

    asked: int
    succeeded: int
    seconds: float | None
    cpu: float
    calls: int


def measure(servers: Servers, *, short: bool) -> list[Figure]:
    """Measure in turn one deployment alone and many at the same time."""
    server = servers.product
    count, latency, rounds = (5, 0.02, 1) if short else (100, 0.25, 3)
    baseline = httpx_cpu_milliseconds(server)
    _together(server, "rehearsal", 1)
    alone, many = [], []
    began = time.monotonic()
    server.turn(latency=latency)
    try:
        for number in range(rounds):
            alone.append(_together(server, f"alone-{number}", 1))
            many.append(_together(server, f"together-{number}", count))
            if time.monotonic() - began > BUDGET_SECONDS:
                break
    finally:
        server.turn(latency=0)
    return figures(alone, many, latency, baseline)


def figures(alone: list[Together], many: list[Together], latency: float, httpx_cpu: float) -> list[Figure]:
    """Return the figures of these results.

    latency: seconds that Dokploy takes for a call. httpx_cpu: milliseconds of CPU for the needed calls by httpx.
    """
    asked = many[0].asked
    succeeded = [together for together in many if together.succeeded]
    one = [together.seconds for together in alone if together.seconds is not None]
    times = [together.seconds for together in many if together.seconds is not None]
    at_once = f"{asked} deployments at once, {latency:g} s a call"
    if not succeeded or not one:
        return [Figure(f"{at_once}: none succeeded within {LIMIT_SECONDS:.0f} s", None)]
    one_cpu = median(together.cpu for together in alone)
    each = median(together.cpu / together.succeeded for together in succeeded)
    calls = median(together.calls / together.succeeded for together in succeeded)
    ideal = median(one) + asked * one_cpu
    needed = f"the {NEEDED_CALLS} required calls"
    if len(times) == len(many):
        wall = median(times)
        against = f"one alone + {asked} × its CPU"
        first = Figure(at_once, wall, "s", ideal, against, "≤ 1.25", wall <= 1.25 * ideal)
    else:
        fewest = min(together.succeeded for together in many)
        text = f"only {fewest} succeeded within {LIMIT_SECONDS:.0f} s, so there is no time"
        first = Figure(at_once, None, against=text, goal="≤ 1.25", met=False)
    return [
        first,
        Figure("  one alone", median(one), "s", NEEDED_CALLS * latency, f"{needed}, one after the other"),
        Figure("  CPU per deployment that succeeded", each * 1000, "ms", httpx_cpu, f"{needed}, by stock httpx"),
        Figure("  the same", each * 1000, "ms", one_cpu * 1000, "one alone"),
        Figure("  calls to Dokploy per deployment", calls, "", NEEDED_CALLS, needed),
    ]


def _together(server: Server, name: str, count: int) -> Together:
    """Let this many deployments begin together, and return their result after all have ended or at the limit."""
    ids = json.dumps(server.control("prepare", name=name, count=count))
    before = server.cpu()
    began = server.control("begin") / 1e9
    deadline = time.monotonic() + LIMIT_SECONDS
    while True:
        rows = server.rows(ENDED, ids)
        if all(status != "in_progress" for status, _, _ in rows) or time.monotonic() > deadline:
            break
        time.sleep(POLL_SECONDS)
    cpu = server.cpu() - before
    good = [(seconds_of(completed), requests) for status, completed, requests in rows if status == "success"]
    return Together(
        asked=count,
        succeeded=len(good),
        seconds=max(at for at, _ in good) - began if len(good) == count else None,
        cpu=cpu,
        calls=sum(len(json.loads(requests)) for _, requests in good),
    )
