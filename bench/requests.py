"""The time and CPU of requests: `POST /api/deploy`, the status with If-None-Match, and the pages.

The baseline of each is a stock Django view that Daphne serves too. The runner is paused, so it claims nothing.
"""

import json
from dataclasses import dataclass
from statistics import median

from .figures import Figure, percentile
from .load import Load, request
from .portals import Server, Servers

CONNECTIONS = 8


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a request: answers per second, and milliseconds of the server's CPU for each answer."""

    per_second: float
    cpu: float


@dataclass(frozen=True, slots=True)
class Posts:
    """The cost of POST requests. milliseconds: of each request. cpu: milliseconds of the server's CPU per request."""

    milliseconds: list[float]
    cpu: float


def measure(servers: Servers, *, short: bool) -> list[Figure]:
    """Measure the product and the stock views in turn."""
    product, stock = servers.product, servers.stock
    product.control("pause")
    try:
        return _measure(
            product, stock, rounds=1 if short else 3, posts=10 if short else 34, seconds=0.1 if short else 0.6
        )
    finally:
        product.control("resume")


def _measure(product: Server, stock: Server, *, rounds: int, posts: int, seconds: float) -> list[Figure]:
    watched = product.control("new", name="requested")["id"]  # owned by the demo user, so that its pages can be read
    asked = product.control("new", name="asked-for", anonymous=1)["id"]
    other = stock.control("new", name="stock")["id"]
    as_json = {"Accept": "application/json"}
    etag = product.http.get(f"/api/status/{asked}", headers=as_json).headers["etag"]
    unchanged = {**as_json, "If-None-Match": etag}
    gets = {
        "status": (product, _get(product, f"/api/status/{asked}", **unchanged), 304),
        "stock status": (stock, _get(stock, f"/stock/status/{other}", **as_json), 200),
        "stock empty": (stock, _get(stock, "/stock/empty", **as_json), 200),
        "stock page": (stock, _get(stock, f"/stock/page/{other}"), 200),
        "home page": (product, _get(product, "/"), 200),
        "deployment page": (product, _get(product, f"/deployments/{watched}"), 200),
        "deployment page's polled part": (product, _get(product, f"/deployments/{watched}/live"), 200),
        "list of stacks": (product, _get(product, "/stacks"), 200),
        "help page": (product, _get(product, "/help/"), 200),
    }
    rounds_of_posts: list[tuple[Posts, Posts]] = []
    rounds_of_costs: list[dict[str, Cost]] = []
    for number in range(rounds + 1):
        bodies = [json.dumps({"name": f"posted-{number}-{n}"}).encode() for n in range(posts)]
        rounds_of_posts.append((_posts(product, "/api/deploy", bodies), _posts(stock, "/stock/save", bodies)))
        rounds_of_costs.append({name: _cost(*get, seconds) for name, get in gets.items()})
    measured = rounds_of_costs[1:]  # the first round warms up
    middle = {
        name: Cost(*(median(getattr(costs[name], part) for costs in measured) for part in ("per_second", "cpu")))
        for name in gets
    }
    ours, saves = zip(*rounds_of_posts[1:], strict=True)
    return [*_post_figures(list(ours), list(saves)), *_get_figures(middle)]


def _post_figures(ours: list[Posts], saves: list[Posts]) -> list[Figure]:
    took, saved = ([ms for posts in found for ms in posts.milliseconds] for found in (ours, saves))
    cpu, save_cpu = (median(posts.cpu for posts in found) for found in (ours, saves))
    p50, save = median(took), median(saved)
    view = "a stock view that saves one row"
    return [
        Figure("POST /api/deploy, p50", p50, "ms", save, view, "≤ 0.8", p50 <= 0.8 * save),
        Figure("  p95", percentile(took, 95), "ms", percentile(saved, 95), view),
        Figure("  CPU per request", cpu, "ms", save_cpu, view),
    ]


def _get_figures(costs: dict[str, Cost]) -> list[Figure]:
    ours, view, empty, page = (costs[name] for name in ("status", "stock status", "stock empty", "stock page"))
    pages = [name for name in costs if name != "status" and not name.startswith("stock")]
    reading, nothing, rendering = "a stock view that reads one row", "an empty stock view", "a stock page of one row"
    met = ours.per_second >= 8 * view.per_second
    return [
        Figure("GET status, not modified", ours.per_second, "/s", view.per_second, reading, "≥ 8", met),
        Figure("  the same", ours.per_second, "/s", empty.per_second, nothing),
        Figure("  CPU per request", ours.cpu, "ms", view.cpu, reading),
        *(Figure(f"GET {name}, CPU per request", costs[name].cpu, "ms", page.cpu, rendering) for name in pages),
    ]


def _get(server: Server, path: str, **headers: str) -> bytes:
    return request(server.port, "GET", path, b"", **headers)


def _posts(server: Server, path: str, bodies: list[bytes]) -> Posts:
    with Load(server.port, 1) as load:
        before = server.cpu()
        times = load.times([request(server.port, "POST", path, body) for body in bodies], 202)
        return Posts(times, (server.cpu() - before) * 1000 / len(bodies))


def _cost(server: Server, asked: bytes, status: int, seconds: float) -> Cost:
    with Load(server.port, CONNECTIONS) as load:
        before = server.cpu()
        rate = load.rate(asked, status, seconds)
        return Cost(rate.per_second, (server.cpu() - before) * 1000 / rate.answers)
