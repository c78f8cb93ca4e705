"""The CPU cost of the portal with 10, 1,000 and 10,000 stacks, each with one finished deployment of 60 events.

Each figure is the CPU of one call inside a process of its own, `python -m bench.growth SIZE …`, without Daphne. The
baseline of each is the same call with the fewest stacks.
"""

import json
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from statistics import median
from typing import Any

from .figures import Figure
from .portals import Servers, run_module

SIZES, SHORT_SIZES = (10, 1_000, 10_000), (10, 100)
OWNERS = 50
EVENTS = 60
CALLS = 5
GOAL = 1.3
PROCESS_SECONDS = 300


def measure(servers: Servers, *, short: bool) -> list[Figure]:
    """Measure all sizes in one process, the smallest first."""
    sizes = SHORT_SIZES if short else SIZES
    found = run_module("bench.growth", *map(str, sizes), seconds=PROCESS_SECONDS)
    first, *middle, last = found["cpu"]
    figures = []
    for name, value in last.items():
        between = "".join(f"; {size:,}: {costs[name]:.1f} ms" for size, costs in zip(sizes[1:], middle, strict=False))
        against, met = f"{sizes[0]} stacks{between}", value <= GOAL * first[name]
        figures.append(Figure(f"{name}, {sizes[-1]:,} stacks", value, "ms", first[name], against, f"≤ {GOAL}", met))
    return [*figures, Figure("database, per stack with its deployment", found["kilobytes"], "kB")]


# -- the process -------------------------------------------------------------------------------------------------------


def main(sizes: list[int]) -> None:
    """Print the milliseconds of CPU of each call for each size, and the database's kB per stack, as JSON."""
    import django

    django.setup()
    from django.core.management import call_command

    call_command("setup")
    stacks = Stacks()
    began, costs = stacks.bytes(), []
    for size in sizes:
        stacks.grow(size)
        costs.append({name: cpu(call) for name, call in calls(stacks).items()})
    print(json.dumps({"cpu": costs, "kilobytes": (stacks.bytes() - began) / sizes[-1] / 1000}))


def cpu(call: Callable[[], Any]) -> float:
    """Return the median CPU milliseconds of a call, all threads together, after one warm-up call."""
    call()
    took = []
    for _ in range(CALLS):
        began = time.process_time()
        call()
        took.append((time.process_time() - began) * 1000)
    return median(took)


class Stacks:
    """Many live stacks: copies, made with SQL, of one stack that the product's code created."""

    def __init__(self) -> None:
        from django.contrib.auth import get_user_model

        from deployments.engine.spec import Progress
        from deployments.models import Deployment

        from . import changes

        users = get_user_model().objects
        self.operator = users.create(username="bench-operator", is_staff=True, is_superuser=True)
        self.owners = [users.create(username=f"owner-{number}") for number in range(OWNERS)]
        model = changes.half_done("model")
        while model.version < EVENTS - 1:
            model.record(changes.report(model.version))
        model.record(Progress("phase", "completed", "Live", "success", progress=100, resources=changes.RESOURCES))
        self.model = Deployment.objects.select_related("stack__owner").get(pk=model.pk)
        self.watched = changes.half_done("watched")
        self.open = changes.half_done("open", anonymous=True)
        self.waiting = changes.held("waiting")
        self.count = 0

    def grow(self, count: int) -> None:
        """Add copies until there are this many."""
        from deployments.models import Deployment, Event, ExternalResource, Stack

        stack, deployment = "printf('stk_%020x', n)", "printf('dep_%032x', n)"
        owner = f"{self.owners[0].pk} + n % {OWNERS}"  # the owners have consecutive ids
        created = "strftime('%Y-%m-%d %H:%M:%f', created_at, '-' || n || ' seconds')"
        own = {"name": "'grown-' || n", "host": "'grown-' || n || '.localhost'", "owner_id": owner}
        made = {"requested_by_id": owner, "stack_id": stack, "created_at": created}
        self._copy(Stack, "id", self.model.stack_id, count, id=stack, created_at=created, **own)
        self._copy(Deployment, "id", self.model.pk, count, id=deployment, **made)
        self._copy(Event, "deployment_id", self.model.pk, count, deployment_id=deployment)
        ids = {"stack_id": stack, "deployment_id": deployment, "external_id": "external_id || '-' || n"}
        self._copy(ExternalResource, "stack_id", self.model.stack_id, count, **ids)
        self.count = count

    def _copy(self, table: Any, key: str, value: str, count: int, **changed: str) -> None:
        """Copy the rows whose key has this value, once per new copy. changed: the SQL of each column that differs."""
        from django.db import connection

        meta = table._meta
        columns = [field.column for field in meta.concrete_fields if not field.primary_key or field.column in changed]
        selected = ", ".join(changed.get(column, column) for column in columns)
        numbers = f"WITH RECURSIVE numbers(n) AS (SELECT {self.count} UNION ALL SELECT n + 1 FROM numbers WHERE n < %s)"
        with connection.cursor() as cursor:
            cursor.execute(
                f"INSERT INTO {meta.db_table} ({', '.join(columns)}) {numbers} "
                f"SELECT {selected} FROM numbers, {meta.db_table} WHERE {key} = %s",
                [count - 1, value],
            )

    @staticmethod
    def bytes() -> int:
        """Return the size of the database in bytes."""
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute("SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()")
            return int(cursor.fetchone()[0])


def calls(stacks: Stacks) -> dict[str, Callable[[], Any]]:
    """Return the calls to measure, by name."""
    from django.test import Client
    from django.utils import timezone

    from deployments.models import Deployment, Orphan, Stack
    from deployments.realtime import durations, topics
    from deployments.worker import sweeper

    from . import changes

    def client(user: Any) -> Client:
        signed_in = Client(headers={"host": "localhost"})
        signed_in.force_login(user)
        return signed_in

    operator, visitor = client(stacks.operator), client(stacks.model.stack.owner)
    lists = [topics.StackListTopic(f"stacks.{user.pk}", user.pk) for user in stacks.owners]
    topic = topics.DeploymentTopic("watched", stacks.watched.pk)

    def get(by: Client, path: str) -> None:
        answer = by.get(path, headers={"accept": "application/json"} if path.startswith("/api/") else {})
        assert answer.status_code == 200, (path, answer.status_code)

    def usual() -> None:
        durations.clear_cache()
        durations.usual_duration()

    def orphans() -> None:
        sweeper._recorded_ids()
        Orphan.unrecorded([])

    def claim() -> None:
        past = timezone.now() - timedelta(days=1)
        Deployment.objects.filter(pk=stacks.waiting.pk).update(lease_until=past, lease_owner="")
        assert Deployment.claim(changes.WORKER, excluding=[]) is not None

    def report() -> None:
        stacks.watched.record(changes.report(stacks.watched.version))

    def render() -> None:
        report()
        topic.refresh({"owner"})

    admin = "/admin/deployments/deployment/"
    return {
        "admin's list of deployments": lambda: get(operator, admin),
        "  its search": lambda: get(operator, f"{admin}?q=grown-7"),
        f"hub's comparison, {OWNERS} lists": lambda: topics.stale_topics(list(lists)),
        "home page of a user with 3 stacks": lambda: get(visitor, "/"),
        "usual times": usual,
        "sweeper's reads": Stack.objects.to_be_removed,
        "orphans": orphans,
        "claim": claim,
        "report": report,
        "report and render, watched": render,
        "status": lambda: get(visitor, f"/api/status/{stacks.open.pk}"),
    }


if __name__ == "__main__":
    main([int(size) for size in sys.argv[1:]])
