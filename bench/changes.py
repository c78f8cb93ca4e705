"""Deployments that only the bench works on, and the changes that it makes to them inside the server's process."""

import re
import time
from datetime import timedelta
from typing import Any

from asgiref.sync import sync_to_async
from channels.layers import get_channel_layer
from django.db import transaction
from django.template.loader import render_to_string
from django.utils import timezone

from deployments import identity
from deployments.engine.recipe import PHASES
from deployments.engine.spec import Progress, Resources
from deployments.models import Deployment, DeploymentRequest, Template
from deployments.realtime import deployment_page, pubsub
from deployments.realtime.hub import Hub
from deployments.worker.runner import Runner

WORKER = "bench"
VERSION = re.compile(r'data-version="\d+"')
LINES = [f"{number:012x}: Pull complete" for number in range(12)]
RESOURCES = Resources(project_id="p-0123456789", environment_id="e-0123456789", application_id="a-0123456789")


def held(name: str, *, anonymous: bool = False) -> Deployment:
    """Create a deployment whose lease the bench holds, so that no runner claims it.

    Its owner is the demo user, who may watch it. anonymous: it has no owner, and anyone with its id may watch it.
    """
    user = identity.open_user() if anonymous else identity.demo_user()
    template = Template.objects.filter(active=True).first()
    assert template is not None
    with transaction.atomic():
        values = {key: field.initial for key, field in template.form_fields().items()}
        created = DeploymentRequest(user, template, values, Deployment.Via.API).deploy(name)
        until = timezone.now() + timedelta(days=1)
        Deployment.objects.filter(pk=created.pk).update(lease_owner=WORKER, lease_token=1, lease_until=until)
    return created


def half_done(name: str, *, anonymous: bool = False) -> Deployment:
    """Create a deployment that is in the phase in which Dokploy pulls its image."""
    created = held(name, anonymous=anonymous)
    deployment = Deployment.objects.select_related("stack__owner", "template").get(pk=created.pk)
    for progress in first_reports():
        deployment.record(progress)
    return deployment


def first_reports() -> list[Progress]:
    """Return the reports of a deployment from its beginning until Dokploy pulls its image."""
    reports = []
    for phase in PHASES[:5]:
        reports.append(Progress("phase", phase.name, phase.title, progress=phase.progress, data={"step": "begins"}))
        if phase.resource is not None:
            kind = phase.resource.type
            data = {"kind": kind, "mark": f"deployportal/bench/{kind}"}
            for state, id in (("intended", ""), ("made", f"{kind}-0123456789abcdef")):
                reports.append(Progress("receipt", phase.name, kind, data={"state": state, "id": id, **data}))
        done = f"{phase.title}: done"
        reports.append(Progress("phase", phase.name, done, resources=RESOURCES, data={"step": "ends"}))
    deploying = PHASES[5]
    begins = {"step": "begins"}
    reports.append(Progress("phase", deploying.name, deploying.title, progress=deploying.progress, data=begins))
    log = {"source": "b-0123456789", "first": 1, "lines": LINES}
    reports.append(Progress("log", deploying.name, LINES[-1], data=log))
    return reports


def report(number: int) -> Progress:
    """Return one report of the phase in which Dokploy pulls the image."""
    return Progress("phase", PHASES[5].name, f"Dokploy pulls the image, attempt {number}")


class Changes:
    """Changes as the product makes them: with Deployment.record, which publishes each one after its commit."""

    def __init__(self) -> None:
        self.deployments: dict[str, Deployment] = {}
        self.committed = 0
        self._prepared: list[str] = []

    async def new(self, name: str, *, anonymous: bool = False) -> dict[str, Any]:
        """Create a half-done deployment and return its id and version."""
        deployment = await sync_to_async(half_done)(name, anonymous=anonymous)
        self.deployments[deployment.pk] = deployment
        publish = deployment._publish

        def committed() -> None:  # called right after the commit
            self.committed = time.time_ns()
            self.publish(publish)

        deployment._publish = committed  # type: ignore[method-assign]
        return {"id": deployment.pk, "version": deployment.version}

    def publish(self, publish: Any) -> None:
        """Call the product's function that publishes a change."""
        publish()

    async def make(self, id: str, times: int) -> dict[str, int]:
        """Make changes one after the other.

        Returns the last version, when the first change began, and when the last was committed (ns since 1970).
        """
        deployment, began = self.deployments[id], time.time_ns()
        for number in range(times):
            await sync_to_async(deployment.record)(report(number))
            await self.made(deployment)
        return {"version": deployment.version, "began": began, "at": self.committed}

    async def made(self, deployment: Deployment) -> None:
        """Finish a change. Nothing remains to be done for the product."""

    def renders(self, id: str) -> int:
        """Return how often the page of a deployment was rendered since its first watcher joined."""
        hub = Hub._current
        assert hub is not None
        return hub._topics[f"run.{id}"].renders

    async def prepare(self, name: str, count: int) -> list[str]:
        """Create this many deployments that wait for `begin`, and return their ids."""
        self._prepared = [(await sync_to_async(held)(f"{name}-{number}", anonymous=True)).pk for number in range(count)]
        return self._prepared

    async def begin(self) -> int:
        """Release all prepared deployments to the runner together; return when (ns since 1970)."""
        began = time.time_ns()
        await Deployment.objects.filter(pk__in=self._prepared).aupdate(lease_owner="", lease_until=None)
        pubsub.notify_worker()
        return began

    def pause(self) -> None:
        """Let the runner claim nothing until `resume`."""
        self._limit, Runner.current().limit = Runner.current().limit, 0

    async def resume(self) -> None:
        """End all waiting deployments as failures, and let the runner claim again."""
        waiting = Deployment.objects.due().order_by()
        await waiting.aupdate(status=Deployment.Status.FAILURE, completed_at=timezone.now())
        Runner.current().limit = self._limit


class StockChanges(Changes):
    """Changes with stock Channels: group_send sends the rendered page to a group that contains each socket."""

    def publish(self, publish: Any) -> None:
        """Publish nothing: the product's own watchers are not part of the baseline."""

    async def make(self, id: str, times: int) -> dict[str, int]:
        """Make changes. Render a series of them only once, which favours the baseline."""
        self.html = ""
        return await super().make(id, times)

    async def made(self, deployment: Deployment) -> None:
        """Send the page to the group."""
        from .stock import group

        self.html = self.html or await sync_to_async(self.render)(deployment.pk)
        html = VERSION.sub(f'data-version="{deployment.version}"', self.html, count=1)
        layer = get_channel_layer()
        await layer.group_send(group(deployment.pk), {"type": "changed", "html": html})

    def render(self, id: str) -> str:
        """Return the product's page of a deployment."""
        found = Deployment.objects.select_related("stack__owner", "template", "requested_by").get(pk=id)
        page = deployment_page.page_context(found, list(found.events.all()), "owner")
        return render_to_string("_deployment.html", {"page": page})
