"""The time of one progress report by the runner, commit included: row and event in one transaction, one thread hop.

The baseline is the way of tutorials: an update and an insert by the async ORM, each a transaction, then group_send.
Each database is measured in a process of its own, which is `python -m bench.report ROUNDS REPORTS`.
"""

import asyncio
import json
import os
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

from .figures import Figure, percentile
from .portals import Servers, run_module

GOALS = {"SQLite": 0.6, "PostgreSQL": 1.4}  # milliseconds
PROCESS_SECONDS = 120


def measure(servers: Servers, *, short: bool) -> list[Figure]:
    """Measure on SQLite, and on PostgreSQL if DATABASE_URL names a server."""
    figures = _figures("SQLite", short=short)
    if url := os.environ.get("DATABASE_URL"):
        with own_database(url) as own:
            return [*figures, *_figures("PostgreSQL", short=short, DATABASE_URL=own)]
    return [*figures, Figure("a report, PostgreSQL", None, against="skipped: DATABASE_URL is not set")]


def _figures(database: str, *, short: bool, **env: str) -> list[Figure]:
    rounds, reports = (1, 30) if short else (5, 100)
    times: dict[str, list[float]] = run_module(
        "bench.report", str(rounds), str(reports), seconds=PROCESS_SECONDS, **env
    )
    ours, stock = times["ours"], times["stock"]
    p50, hop, goal = median(ours), median(times["hop"]), GOALS[database]
    against = "stock: two transactions, group_send"
    return [
        Figure(f"a report, {database}, p50", p50, "ms", median(stock), against, f"< {goal} ms", p50 < goal),
        Figure("  p95", percentile(ours, 95), "ms", percentile(stock, 95), against),
        Figure("  p50", p50, "ms", hop, "an empty thread hop"),
    ]


@contextmanager
def own_database(url: str) -> Iterator[str]:
    """Create a PostgreSQL database beside the given one, yield its URL, and drop it afterwards."""
    from urllib.parse import urlsplit

    import psycopg

    name = f"bench_{secrets.token_hex(6)}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        try:
            yield urlsplit(url)._replace(path=f"/{name}").geturl()
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


# -- the process -------------------------------------------------------------------------------------------------------


def main(rounds: int, reports: int) -> None:
    """Print the milliseconds of every report as JSON, by its kind: ours, stock or hop."""
    import django

    django.setup()
    from django.core.management import call_command

    call_command("setup")
    print(json.dumps(asyncio.run(_reports(rounds, reports))))


async def _reports(rounds: int, reports: int) -> dict[str, list[float]]:
    from asgiref.sync import sync_to_async
    from channels.layers import get_channel_layer
    from django.db.models import F
    from django.utils import timezone

    from deployments.models import Deployment, Event
    from deployments.realtime import pubsub
    from deployments.worker.claimed_deployment import ClaimedDeployment

    from . import changes

    pubsub.bind_loop()
    claimed = ClaimedDeployment(await sync_to_async(changes.half_done)("ours"))
    other = await sync_to_async(changes.half_done)("stock")
    layer = get_channel_layer()
    listener = await layer.new_channel()
    await layer.group_add(f"run.{claimed.deployment.pk}", listener)
    await layer.group_add("stock", listener)

    async def ours(number: int) -> None:
        await claimed.report(changes.report(number))

    async def stock(number: int) -> None:
        said = changes.report(number)
        row = Deployment.objects.filter(pk=other.pk)
        await row.aupdate(phase=said.phase, message=said.message, version=F("version") + 1, updated_at=timezone.now())
        other.version += 1
        await Event.objects.acreate(
            deployment_id=other.pk,
            seq=other.version,
            type=said.kind,
            phase=said.phase,
            status=said.status,
            progress=85,
            message=said.message,
            data={},
        )
        await layer.group_send("stock", {"type": "changed"})

    async def hop(number: int) -> None:
        await sync_to_async(int)()

    took: dict[str, list[float]] = {"ours": [], "stock": [], "hop": []}
    for number in range(rounds + 1):  # the first round warms up
        for name, act in (("ours", ours), ("stock", stock), ("hop", hop)):
            times = []
            for report in range(number * reports, (number + 1) * reports):
                claimed.lease_renewed_at = time.monotonic()  # as the runner's heartbeat does, or the lease would expire
                times.append(await _milliseconds(act, report))
            if number:
                took[name] += times
    return took


async def _milliseconds(act: Callable[[int], Awaitable[Any]], number: int) -> float:
    began = time.perf_counter()
    await act(number)
    took = (time.perf_counter() - began) * 1000
    await asyncio.sleep(0)  # lets the published messages be sent between two reports, as in the portal
    return took


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
