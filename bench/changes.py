"""What the bench does inside the portal's process: deployments that only it works on, and reports about them."""

import re
import time
from typing import Any

from asgiref.sync import sync_to_async
from channels.layers import get_channel_layer
from django.db import transaction
from django.template.loader import render_to_string
from django.utils import timezone

from deployments import identity
from deployments.engine.recipe import PHASES
from deployments.engine.spec import Progress, Resources
from deployments.models import Deployment, Template
from deployments.realtime import deployment_page
from deployments.realtime.hub import Hub

WORKER = "bench"
VERSION = re.compile(r'data-version="\d+"')
LINES = [f"{number:012x}: Pull complete" for number in range(12)]


def half_done(name: str, *, anonymous: bool = False) -> Deployment:
    """A deployment that has come as far as the pulling of its image. No runner takes it up.

    It is the demo's visitor's, who may watch it, or nobody's, so that whoever has its id may ask the API for it.
    """
    person = identity.open_user() if anonymous else identity.demo_user()
    template = Template.objects.filter(active=True).first()
    assert template is not None
    with transaction.atomic():
        values = {key: field.initial for key, field in template.form_fields().items()}
        made = Deployment.request(person, name, template, values, via=Deployment.Via.API)
        held = timezone.now() + timezone.timedelta(days=1)
        Deployment.objects.filter(pk=made.pk).update(lease_owner=WORKER, lease_token=1, lease_until=held)
    run = Deployment.objects.select_related("stack", "stack__owner", "stack__template").get(pk=made.pk)
    for progress in begun():
        run.record(progress)
    return run


def begun() -> list[Progress]:
    reports = []
    for phase in PHASES[:5]:
        reports.append(Progress("phase", phase.name, phase.title, progress=phase.progress, data={"step": "begins"}))
        if phase.undo is not None:
            kind = phase.name.removeprefix("creating_")
            data = {"kind": kind, "mark": f"deployportal/bench/{kind}"}
            reports.append(
                Progress("receipt", phase.name, f"About to make the {kind}", data={"state": "intended", **data})
            )
            made = {"state": "made", "id": f"{kind}-0123456789abcdef", **data}
            reports.append(Progress("receipt", phase.name, f"The {kind} is there", data=made))
        done = f"{phase.title}: done"
        have = Resources(project_id="p-0123456789", environment_id="e-0123456789", application_id="a-0123456789")
        reports.append(Progress("phase", phase.name, done, resources=have, data={"step": "ends"}))
    deploying = PHASES[5]
    reports.append(
        Progress("phase", deploying.name, deploying.title, progress=deploying.progress, data={"step": "begins"})
    )
    log = {"source": "b-0123456789", "first": 1, "lines": LINES}
    reports.append(Progress("log", deploying.name, LINES[-1], data=log))
    return reports


def report(number: int) -> Progress:
    return Progress("phase", PHASES[5].name, f"Dokploy pulls the image, look {number}")


class Changes:
    """The product's own way: Deployment.record, and what hangs on its commit."""

    def __init__(self) -> None:
        self.runs: dict[str, Deployment] = {}
        self.committed = 0

    async def new(self, name: str, *, anonymous: bool = False) -> dict[str, Any]:
        run = await sync_to_async(half_done)(name, anonymous=anonymous)
        self.runs[run.pk] = run
        announce = run._announce

        def stamped() -> None:  # the first thing after the commit
            self.committed = time.monotonic_ns()
            self.announce(announce)

        run._announce = stamped  # type: ignore[method-assign]
        return {"id": run.pk, "version": run.version}

    def announce(self, announce: Any) -> None:
        announce()

    async def make(self, id: str, times: int) -> dict[str, int]:
        run = self.runs[id]
        for number in range(times):
            await sync_to_async(run.record)(report(number))
            await self.made(run)
        return {"version": run.version, "at": self.committed}

    async def made(self, run: Deployment) -> None:
        pass

    def renders(self, id: str) -> int:
        """How often the topic was rendered since somebody watches it."""
        hub = Hub._current
        topic = hub._topics.get(f"run.{id}") if hub else None
        return topic.renders if topic else 0

    async def ended(self) -> int:
        return await Deployment.objects.exclude(status=Deployment.Status.IN_PROGRESS).acount()

    async def look(self, id: str) -> dict[str, Any]:
        return await sync_to_async(self._look)(id)

    def _look(self, id: str) -> dict[str, Any]:
        run = Deployment.objects.get(pk=id)
        events = [
            {"at": event.at.timestamp(), "phase": event.phase, "kind": event.kind, "message": event.message}
            for event in run.events.all()
        ]
        return {"requests": run.requests, "created": run.created_at.timestamp(), "events": events}


class Stock(Changes):
    """Stock Channels: rendered once, then a group_send to a group in which every socket is a member."""

    def announce(self, announce: Any) -> None:
        pass

    async def make(self, id: str, times: int) -> dict[str, int]:
        self.html = ""
        return await super().make(id, times)

    async def made(self, run: Deployment) -> None:
        # In its favour a burst is rendered only once.
        self.html = self.html or await sync_to_async(self.render)(run.pk)
        html = VERSION.sub(f'data-version="{run.version}"', self.html, 1)
        await get_channel_layer().group_send(f"stock.{run.pk}", {"type": "changed", "html": html})

    def render(self, id: str) -> str:
        run = Deployment.objects.select_related("stack__owner", "stack__template", "requested_by").get(pk=id)
        return render_to_string("_live.html", {"live": deployment_page.live(run, list(run.events.all()), "owner")})

    def renders(self, id: str) -> int:
        return 0
