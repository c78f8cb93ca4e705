"""The runner lets go in order."""

import asyncio
import threading
from typing import Any

import pytest
from asgiref.sync import sync_to_async

from deployments.models import Deployment
from deployments.runner import Runner

from .people import People


@pytest.mark.django_db(transaction=True)
async def test_a_claim_that_is_under_way_when_the_worker_is_drained_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    people = await sync_to_async(People)()
    run = await sync_to_async(people.run)(people.owner, "shop")
    claiming, go_on, claim = threading.Event(), threading.Event(), Deployment.claim

    def slow(*args: Any, **kwargs: Any) -> Any:
        found = claim(*args, **kwargs)
        if found is not None:
            claiming.set()
            go_on.wait(5)
        return found

    monkeypatch.setattr(Deployment, "claim", slow)
    runner = Runner(sweep=0)
    runner.start()
    runner.ring()
    assert await asyncio.to_thread(claiming.wait, 5)
    draining = asyncio.ensure_future(runner.drain())
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.wait_for(draining, 10)
    await sync_to_async(run.refresh_from_db)()
    assert (run.lease_until, run.lease_owner, run.status) == (None, "", "in_progress")
    again = await sync_to_async(claim)("another", excluding=[])
    assert again is not None
    assert again.pk == run.pk
    assert again.crashes == 0
