"""The context of a user's list of stacks."""

from typing import Any

from django.db.models import OuterRef, Subquery
from django.urls import reverse

from ..models import Deployment, Stack
from . import deployment_page, deployment_texts

STACKS_SHOWN = 200
REMOVED_SHOWN = 3
REMOVED_READ = 10  # more than are shown, because several may have the same name
TONES = {"queued": "running", "undoing": "running", "cancelled": "idle"}  # the list has fewer tones than the page


def newest_deployments(user_id: int) -> list[Deployment]:
    """Return the newest deployment of each of a user's stacks, newest first.

    Removed stacks are limited to the latest few, and left out if a stack of the same name exists.
    """
    newest = Deployment.objects.filter(stack=OuterRef("pk")).order_by("-created_at").values("pk")[:1]
    stacks = Stack.objects.filter(owner_id=user_id).order_by("-created_at")
    ids = [*stacks.existing().values_list(Subquery(newest), flat=True)[:STACKS_SHOWN]]
    ids += stacks.filter(state=Stack.State.GONE).values_list(Subquery(newest), flat=True)[:REMOVED_READ]
    deployments = Deployment.objects.filter(pk__in=ids).select_related("stack", "template").order_by("-created_at")
    by_name: dict[str, Deployment] = {}
    for deployment in sorted(deployments, key=_is_removed):  # existing stacks first: setdefault keeps these
        by_name.setdefault(deployment.stack.name, deployment)
    existing = [deployment for deployment in by_name.values() if not _is_removed(deployment)]
    removed = [deployment for deployment in by_name.values() if _is_removed(deployment)]
    return sorted([*existing, *removed[:REMOVED_SHOWN]], key=lambda deployment: deployment.created_at, reverse=True)


def stack_rows(deployments: list[Deployment]) -> list[dict[str, Any]]:
    """Return the rows of _stacks.html, one for each deployment."""
    return [_row(deployment) for deployment in deployments]


def _row(deployment: Deployment) -> dict[str, Any]:
    headline, tone = deployment_texts.headline(deployment)
    is_removed = _is_removed(deployment)
    if is_removed:
        headline = "Removed" if deployment.status == Deployment.Status.SUCCESS else f"{headline}, undone"
    return {
        "name": deployment.stack.name,
        "address": deployment.stack.url,
        "url": deployment.stack.url if deployment.done and deployment.stack.state == Stack.State.LIVE else None,
        "tone": TONES.get(tone, tone),
        "status": headline,
        "progress": deployment.progress if not deployment.done and not deployment.error else None,
        "template": deployment.template.name,
        "page": reverse("deployment", args=[deployment.pk]),
        "since": deployment.created_at,
        "done": deployment.done,
        "actions": [] if deployment.done and is_removed else deployment_page.actions(deployment),
    }


def _is_removed(deployment: Deployment) -> bool:
    return deployment.stack.state == Stack.State.GONE
