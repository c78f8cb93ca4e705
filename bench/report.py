"""One progress report, commit included, as the runner makes it: row and event in one transaction, one thread hop.

The baseline is what the tutorials do: an update and an insert by the async ORM, each a transaction, then a group_send.
Each database has a process of its own: `python -m bench.report` is that process.
"""

import asyncio
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.processes import ROOT

from .figures import Figure, middle, percentile

ROUNDS, REPORTS = 5, 100
GOALS = {"SQLite": 0.6, "PostgreSQL": 1.4}


def measure() -> list[Figure]:
    figures = _figures("SQLite", {})
    if url := os.environ.get("DATABASE_URL"):
        with own_database(url) as own:
            figures += _figures("PostgreSQL", {"DATABASE_URL": own})
    else:
        figures.append(Figure("a report, PostgreSQL: give DATABASE_URL", None, goal="< 1.4 ms"))
    return figures


def _figures(database: str, env: dict[str, str]) -> list[Figure]:
    times = _in_a_process(env)
    ours, theirs = times["ours"], times["stock"]
    p50 = middle(ours)
    goal, stock = GOALS[database], "stock: two transactions, group_send"
    return [
        Figure(f"a report, {database}, p50", p50, "ms", middle(theirs), stock, f"< {goal} ms", p50 < goal),
        Figure("  p95", percentile(ours, 95), "ms", percentile(theirs, 95), stock),
        Figure("  a thread hop alone, p50", middle(times["hop"]), "ms"),
    ]


def _in_a_process(env: dict[str, str]) -> dict[str, list[float]]:
    mine = {key: value for key, value in os.environ.items() if key not in ("DATABASE_URL", "REDIS_URL", "DOKPLOY_URL")}
    with tempfile.TemporaryDirectory(prefix="deploy-portal-bench-") as data:
        done = subprocess.run(
            [sys.executable, "-m", "bench.report"],
            cwd=ROOT,
            env={**mine, "DATA_DIR": data, "DJANGO_SETTINGS_MODULE": "deployportal.settings", **env},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    times: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return times


@contextmanager
def own_database(url: str) -> Iterator[str]:
    """A PostgreSQL database of our own beside the given one, dropped afterwards."""
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


def main() -> None:
    import django

    django.setup()
    from django.core.management import call_command

    call_command("setup")
    print(json.dumps(asyncio.run(_reports())))


async def _reports() -> dict[str, list[float]]:
    from asgiref.sync import sync_to_async
    from channels.layers import get_channel_layer
    from django.db.models import F
    from django.utils import timezone

    from deployments.models import Deployment, Event
    from deployments.realtime import pubsub
    from deployments.worker.runner import Run

    from . import changes

    pubsub.bind_loop()
    ours = Run(await sync_to_async(changes.half_done)("ours"))
    theirs = await sync_to_async(changes.half_done)("stock")
    layer = get_channel_layer()
    listener = await layer.new_channel()
    await layer.group_add(f"run.{ours.deployment.pk}", listener)
    await layer.group_add("stock", listener)

    async def stock(number: int) -> None:
        said = changes.report(number)
        mine = Deployment.objects.filter(pk=theirs.pk)
        await mine.aupdate(phase=said.phase, message=said.message, version=F("version") + 1, updated_at=timezone.now())
        theirs.version += 1
        await Event.objects.acreate(
            deployment_id=theirs.pk,
            seq=theirs.version,
            kind=said.kind,
            phase=said.phase,
            status=said.status,
            progress=85,
            message=said.message,
            data={},
        )
        await layer.group_send("stock", {"type": "changed"})

    async def report(number: int) -> None:
        await ours.report(changes.report(number))

    async def hop(number: int) -> None:
        await sync_to_async(int)()

    took: dict[str, list[float]] = {"ours": [], "stock": [], "hop": []}
    for number in range(ROUNDS + 1):  # the first is a rehearsal
        for name, act in (("ours", report), ("stock", stock), ("hop", hop)):
            times = await _times(act, range(number * REPORTS, (number + 1) * REPORTS))
            if number:
                took[name] += times
    return took


async def _times(act: Callable[[int], Awaitable[Any]], numbers: range) -> list[float]:
    took = []
    for number in numbers:
        began = time.perf_counter()
        await act(number)
        took.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(0)  # what was announced goes out between two reports, as it does in the portal
    return took


if __name__ == "__main__":
    main()
