"""`POST /api/deploy`, and the status with If-None-Match, each beside a stock async Django view on the same Daphne.

The runner is kept out: it has room for one deployment, and the deploy of that one is held at Dokploy.
"""

import json

from .figures import Figure, middle, percentile
from .portals import Bench, portal
from .sockets import Load, request

ROUNDS, POSTS = 3, 34
CONNECTIONS, SECONDS = 8, 0.6
HELD = "job"


def measure() -> list[Figure]:
    with portal(RUNNER_LIMIT=1) as product, portal("stock", RUNNER_LIMIT=1) as stock:
        product.close_gate(HELD)
        try:
            return _measure(product, stock)
        finally:
            product.open_gate(HELD)


def _measure(product: Bench, stock: Bench) -> list[Figure]:
    product.deploy("first")
    product.wait_at(HELD)
    run = product.door("new", name="asked-for", anonymous=1)["id"]
    state = product.http.get(f"/api/status/{run}", headers={"Accept": "application/json"})
    same = {"Accept": "application/json", "If-None-Match": state.headers["etag"]}
    watched = stock.door("new", name="first")["id"]
    posts, saves = [], []
    rates: dict[str, list[float]] = {"ours": [], "view": [], "small": []}
    for number in range(ROUNDS + 1):  # the first is a rehearsal
        took, stock_took = _posts(product, number), _saves(stock)
        ours = _rate(product, request(product.port, "GET", f"/api/status/{run}", **same), 304)
        view = _rate(stock, request(stock.port, "GET", f"/status/{watched}", Accept="application/json"), 200)
        small = _rate(stock, request(stock.port, "GET", "/small", Accept="application/json"), 200)
        if number:
            posts += took
            saves += stock_took
            for name, rate in (("ours", ours), ("view", view), ("small", small)):
                rates[name].append(rate)
    p50, per_second = middle(posts), {name: middle(found) for name, found in rates.items()}
    saving, reading = "a stock view that saves one row", "a stock view that reads one row"
    status = "GET status, not modified"
    ratio = per_second["ours"] / per_second["view"]
    return [
        Figure("POST /api/deploy, p50", p50, "ms", middle(saves), saving, "< 4 ms", p50 < 4),
        Figure("  p95", percentile(posts, 95), "ms", percentile(saves, 95), saving),
        Figure(status, per_second["ours"], "/s", per_second["view"], reading, "not slower", ratio >= 1),
        Figure("  the same", per_second["ours"], "/s", per_second["small"], "a stock view that does nothing"),
    ]


def _posts(product: Bench, number: int) -> list[float]:
    bodies = [json.dumps({"name": f"stack-{number}-{n}"}).encode() for n in range(POSTS)]
    load = Load(product.port, b"", 1)
    try:
        return load.times([request(product.port, "POST", "/api/deploy", body) for body in bodies], 202)
    finally:
        load.close()


def _saves(stock: Bench) -> list[float]:
    load = Load(stock.port, b"", 1)
    try:
        return load.times([request(stock.port, "POST", "/save", b'{"name": "shop"}') for _ in range(POSTS)], 202)
    finally:
        load.close()


def _rate(served: Bench, asked: bytes, status: int) -> float:
    load = Load(served.port, asked, CONNECTIONS)
    try:
        return load.per_second(SECONDS, status)
    finally:
        load.close()
