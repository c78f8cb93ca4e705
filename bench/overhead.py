"""One deployment while Dokploy takes no time at all: what the portal itself adds, and where.

Wall time from the POST to the last event of the stream, less Dokploy's own time (as many calls as the run made, at
what a bare client waits for one), less the pauses between two looks at the running deploy.
"""

import time
from collections import Counter
from pathlib import Path

from .figures import Figure, middle
from .portals import Bench, portal
from .sockets import Load, request

RUNS = 5
FOLLOWING = {"_follow"}  # the engine's function whose pauses are the follow poll


def measure() -> list[Figure]:
    with portal() as served:
        runs = [_deploy(served, f"alone-{number}") for number in range(RUNS + 1)][1:]
    calls, own = middle(run["calls"] for run in runs), middle(run["own"] for run in runs)
    beyond = middle(run["beyond"] for run in runs)
    dokploy = "Dokploy's own time"
    figures = [
        Figure(
            "a deployment, wall time", middle(run["wall"] for run in runs), "ms", own, f"{dokploy}, {calls:.0f} calls"
        ),
        Figure("  beyond Dokploy's time and the follow poll", beyond, "ms", own, dokploy, "< 100 ms", beyond < 100),
        Figure("  of it, in calls (the HTTP client)", middle(run["client"] for run in runs), "ms"),
    ]
    pauses = {name for run in runs for name in run["pauses"]}
    for name in sorted(pauses):
        slept = middle(run["pauses"].get(name, 0.0) for run in runs)
        figures.append(Figure(f"  pauses in {name}", slept, "ms", goal="the follow poll" if name in FOLLOWING else ""))
    for phase in runs[0]["phases"]:
        figures.append(Figure(f"  {phase}, whole", middle(run["phases"].get(phase, 0.0) for run in runs), "ms"))
    return figures


def _deploy(served: Bench, name: str) -> dict:
    served.door("pauses")
    bare = _bare_call(served)
    began = time.monotonic()
    id = served.deploy(name)
    *_, last = served.stream(id)
    wall = (time.monotonic() - began) * 1000
    assert last["data"]["status"] == "success", last
    slept: Counter[str] = Counter()
    for function, seconds in served.door("pauses"):
        slept[function] += seconds * 1000
    run = served.door("run", id=id)
    took = [float(line.rsplit(", ", 1)[1].removesuffix(" ms")) for line in run["requests"]]
    own = bare * len(took)
    phases: dict[str, float] = {"waiting to begin": (run["events"][1]["at"] - run["created"]) * 1000}
    for event in run["events"][1:-1]:
        began_at = next(other["at"] for other in run["events"] if other["phase"] == event["phase"])
        phases[event["phase"]] = (event["at"] - began_at) * 1000
    phases["the closing look"] = (run["events"][-1]["at"] - run["events"][-2]["at"]) * 1000
    return {
        "wall": wall,
        "own": own,
        "calls": len(took),
        "client": sum(took) - own,
        "beyond": wall - own - sum(slept[name] for name in FOLLOWING),
        "pauses": dict(slept),
        "phases": phases,
    }


def _bare_call(served: Bench) -> float:
    """Milliseconds that a client without any cost of its own waits for one call to Dokploy."""
    key = Path(served.data, "simulator-key").read_text().strip()
    port = served.port + 1
    asked = request(port, "GET", "/api/deployment.queueList", x_api_key=key)
    load = Load(port, b"", 1)
    try:
        return middle(load.times([asked] * 20, 200))
    finally:
        load.close()
