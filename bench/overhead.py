"""One deployment while Dokploy answers immediately: the time that the portal itself adds, by phase and pause.

A deployment lasts from the POST until its end is committed. The time until a stream has the last event is a
separate figure, because the hub pauses between two frames and the deployment does not wait for that.
"""

import json
import time
from dataclasses import dataclass
from statistics import median

from deployments.engine import deploy

from .figures import Figure
from .portals import Server, Servers, seconds_of
from .yardstick import NEEDED_CALLS, call_milliseconds

FOLLOWING = deploy._follow.__qualname__  # its pauses are those of the follow poll, which asks Dokploy for the status
FRAME_MILLISECONDS = 100.0  # the hub's pause between two frames


@dataclass(frozen=True, slots=True)
class Deployed:
    """One deployment, all times in milliseconds.

    whole: from the POST to the commit of its end. call: one call to Dokploy by a client with negligible cost.
    calls: how many calls it made. pauses: by function. phases: by name. stream: from the end to the last event.
    """

    whole: float
    call: float
    calls: int
    pauses: dict[str, float]
    phases: dict[str, float]
    stream: float

    @property
    def own(self) -> float:
        """The time that neither the calls to Dokploy nor the pauses of the follow poll take."""
        return self.whole - self.calls * self.call - self.pauses.get(FOLLOWING, 0.0)


def measure(servers: Servers, *, short: bool) -> list[Figure]:
    """Measure several deployments, one after the other."""
    server, rounds = servers.product, 2 if short else 7
    found = [_deploy(server, f"one-{number}") for number in range(rounds + 1)][1:]  # the first warms up
    floor = NEEDED_CALLS * median(one.call for one in found)
    needed = f"the {NEEDED_CALLS} required calls"
    own = median(one.own for one in found)
    calls, stream = median(one.calls for one in found), median(one.stream for one in found)
    pauses = {name: median(one.pauses.get(name, 0.0) for one in found) for one in found for name in one.pauses}
    follow = pauses.pop(FOLLOWING, 0.0)
    phases = {name: median(one.phases.get(name, 0.0) for one in found) for name in found[0].phases}
    return [
        Figure("a deployment, from the POST to its end", median(one.whole for one in found), "ms", floor, needed),
        Figure("  beyond Dokploy's time and the follow poll", own, "ms", floor, needed, "< 100 ms", own < 100),
        Figure("  calls to Dokploy", calls, "", NEEDED_CALLS, needed, "≤ 9", calls <= 9),
        Figure("  pauses of the follow poll", follow, "ms"),
        *(Figure(f"  pauses in {name}", pauses[name], "ms") for name in sorted(pauses)),
        *(Figure(f"  {name}, whole", milliseconds, "ms") for name, milliseconds in phases.items()),
        Figure("from its end to the stream's last event", stream, "ms", FRAME_MILLISECONDS, "the hub's pause"),
    ]


def _deploy(server: Server, name: str) -> Deployed:
    call = call_milliseconds(server)
    server.control("pauses")
    began = time.time()
    id = server.deploy(name)
    *_, last = server.stream(id)
    streamed = time.time()
    assert last["data"]["status"] == "success", last
    pauses = {function: seconds * 1000 for function, seconds in server.control("pauses").items()}
    sql = "SELECT created_at, completed_at, requests FROM deployments_deployment WHERE id = ?"
    [(created, completed, requests)] = server.rows(sql, id)
    ended = seconds_of(completed)
    return Deployed(
        whole=(ended - began) * 1000,
        call=call,
        calls=len(json.loads(requests)),
        pauses=pauses,
        phases=_phases(server, id, seconds_of(created)),
        stream=(streamed - ended) * 1000,
    )


def _phases(server: Server, id: str, created: float) -> dict[str, float]:
    """Return the milliseconds of each phase, of the wait before the first, and of the time after the last."""
    sql = "SELECT phase, at FROM deployments_event WHERE deployment_id = ? ORDER BY seq"
    events = [(phase, seconds_of(at)) for phase, at in server.rows(sql, id)]
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    for phase, at in events:
        first.setdefault(phase, at)
        last[phase] = at
    names = list(first)  # initializing, the phases, completed
    phases = {"waiting to begin": (first[names[1]] - created) * 1000}
    phases |= {name: (last[name] - first[name]) * 1000 for name in names[1:-1]}
    return phases | {"after the last phase": (events[-1][1] - events[-2][1]) * 1000}
