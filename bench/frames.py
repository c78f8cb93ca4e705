"""The time from a commit to its frame at 1, 100 and 1,000 WebSockets.

The baselines are stock Channels, Node's raw push of a prepared frame, and a client that polls every second.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from .figures import Figure
from .load import Load, request
from .portals import Server, Servers
from .watchers import Watcher, Watchers

COUNTS, SHORT_COUNTS = (1, 100, 1000), (1, 10, 50)
APART_SECONDS = 0.15  # the hub sends at most ten frames a second to a watcher
ARRIVAL_SECONDS = 15
CHANNELS, NODE = "stock Channels", "Node's raw push"
NO_NODE = "skipped: there is no Node on this machine"


@dataclass(frozen=True, slots=True)
class Audience:
    """The watchers of one deployment."""

    id: str
    watchers: list[Watcher]


def measure(servers: Servers, *, short: bool) -> list[Figure]:
    """Measure the servers in turn in each round, so that other load on the machine affects all of them equally."""
    watchers = Watchers()
    try:
        return _measure(watchers, servers, SHORT_COUNTS if short else COUNTS, 1 if short else 5)
    finally:
        watchers.close_all()


def _measure(watchers: Watchers, servers: Servers, counts: tuple[int, ...], rounds: int) -> list[Figure]:
    product, stock, push = servers.product, servers.stock, servers.push
    many = counts[-1]
    ours, memory = _gather(watchers, product, counts)
    theirs, stock_memory = _gather(watchers, stock, counts)
    raw = {many: watchers.open(push.port, "/", many, first_frame=False)} if push else {}
    polled = 500 + _answer_milliseconds(product)  # a poll every second is half a second late on average
    rendered = {n: product.control("renders", id=ours[n].id) for n in counts}
    taken = []
    for _ in range(rounds + 1):
        took = {("hub", n): _changed(watchers, product, ours[n]) for n in counts}
        took |= {("stock", n): _changed(watchers, stock, theirs[n]) for n in counts}
        took |= {("node", n): _pushed(watchers, servers, crowd, ours[n].watchers[0].size) for n, crowd in raw.items()}
        taken.append(took)
    found = {key: median(took[key] for took in taken[1:]) for key in taken[0]}  # the first round warms up
    renders = [product.control("renders", id=ours[n].id) - rendered[n] for n in counts]
    return [
        *_time_figures(found, counts, polled),
        Figure(
            "renders per change",
            max(renders) / (rounds + 1),
            "",
            1,
            "one for all watchers",
            "1",
            all(count == rounds + 1 for count in renders),
        ),
        Figure("memory per idle watcher", memory, "kB", stock_memory, CHANNELS, "< 40 kB", memory < 40),
    ]


def _time_figures(found: dict[tuple[str, int], float], counts: tuple[int, ...], polled: float) -> list[Figure]:
    """Return the figures of the median times (ms) from a commit to the last frame, by server and number of watchers."""
    one, hundred, many = counts
    hub, layer = ({n: found[name, n] for n in counts} for name in ("hub", "stock"))
    growth = [(times[many] - times[one]) / (many - one) * 1000 for times in (hub, layer)]
    node = found.get(("node", many))
    poll, last_of = "a client that polls every second, mean", f"commit → last of {many:,}"
    return [
        Figure("commit → frame, 1 watcher", hub[one], "ms", polled, poll, "≤ 1/150", hub[one] <= polled / 150),
        Figure("  the same", hub[one], "ms", layer[one], CHANNELS),
        Figure(f"commit → last of {hundred}", hub[hundred], "ms", layer[hundred], CHANNELS),
        Figure(last_of, hub[many], "ms", layer[many], CHANNELS, "≤ 1/8", hub[many] <= layer[many] / 8),
        Figure("  the same", hub[many], "ms", node, NODE, "≤ 6", hub[many] <= 6 * node)
        if node
        else Figure("  the same", None, against=f"{NODE}: {NO_NODE}"),
        Figure("growth per watcher", growth[0], "µs", growth[1], CHANNELS, "≤ 45 µs", growth[0] <= 45),
    ]


def _gather(watchers: Watchers, server: Server, counts: tuple[int, ...]) -> tuple[dict[int, Audience], float]:
    """Open one deployment's watchers for each count. Return them, and the kB per watcher at the highest count."""
    gathered = {}
    for n in counts:
        id = server.control("new", name=f"watched-{n}")["id"]
        before = server.resident()
        crowd = watchers.open(server.port, f"/ws/deployments/{id}", n, first_frame=server.kind == "product")
        gathered[n] = Audience(id, crowd)
    watchers.pause(0.5)
    return gathered, max(server.resident() - before, 0) / counts[-1]


def _changed(watchers: Watchers, server: Server, audience: Audience) -> float:
    """Make one change; return the milliseconds from its commit until the last watcher has its frame."""
    version = server.control("change", id=audience.id)["version"]
    return _last(watchers, audience.watchers, version, lambda: int(server.control("changed")["at"]))


def _pushed(watchers: Watchers, servers: Servers, crowd: list[Watcher], size: int) -> float:
    """Let Node push a frame of this size; return the milliseconds until the last watcher has it."""
    assert servers.push is not None
    version = servers.push.change(size)
    return _last(watchers, crowd, version, servers.push.pushed_at)


def _last(watchers: Watchers, crowd: list[Watcher], version: int, began: Callable[[], int]) -> float:
    arrived = watchers.arrivals(crowd, version, ARRIVAL_SECONDS)
    at = began()  # raises the error if the change failed
    assert len(arrived) == len(crowd), f"{len(crowd) - len(arrived)} of {len(crowd)} watchers did not get the frame"
    watchers.pause(APART_SECONDS)
    return (max(arrived) - at) / 1e6


def _answer_milliseconds(server: Server) -> float:
    """Return how many milliseconds the server takes to answer the status request of a polling client."""
    id = server.control("new", name="polled", anonymous=1)["id"]
    with Load(server.port, 1) as load:
        asked = request(server.port, "GET", f"/api/status/{id}", Accept="application/json")
        return median(load.times([asked] * 20, 200))
