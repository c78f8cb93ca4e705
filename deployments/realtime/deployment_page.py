"""The context of a deployment's page, computed from its rows in the database alone.

An audience is "operator", "owner", or "link" for a viewer who has only the deployment's address.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.urls import reverse
from django.utils import timezone

from ..engine.recipe import RECIPES, phase_of_resource
from ..models import Deployment, Event, Stack
from . import deployment_texts
from .durations import slow_after, usual_duration

LINES_SHOWN = 200
PRIVATE_EVENTS = {"log", "receipt"}  # not shown to the audience "link"
FAVICONS = {"live": "live", "gone": "live", "idle": "live", "failed": "failed", "cancelled": "failed"}


def page_context(deployment: Deployment, events: list[Event], audience: str) -> dict[str, Any]:
    """Return the context of _deployment.html."""
    phases = phase_rows(deployment, events, audience)
    undo = undo_card(deployment, events)
    headline, tone = deployment_texts.headline(deployment)
    slow = _is_slow(deployment)
    tone = "slow" if slow and tone == "running" else tone
    stack, succeeded = deployment.stack, deployment.status == Deployment.Status.SUCCESS
    return {
        "id": deployment.pk,
        "version": deployment.version,
        "done": deployment.done,
        "name": stack.name,
        "kind": deployment.kind,
        "address": stack.url,
        "url": stack.url if succeeded and stack.state == Stack.State.LIVE else None,
        "headline": headline,
        "tone": tone,
        "title": deployment_texts.tab_title(deployment, headline, tone),
        "favicon": FAVICONS.get(tone, "running"),
        "announcement": f"{stack.name}: {headline}",
        "requester": deployment_texts.requester(deployment),
        "template": deployment.template.name,
        "requested": deployment.created_at,
        "started": deployment.started_at,
        "ended": deployment.completed_at,
        "seconds": _duration(deployment),
        "usual": None if deployment.kind == Deployment.Kind.REMOVE else usual_duration(),
        "progress": deployment.progress,
        "progress_text": deployment_texts.progress_text(deployment),
        "shows_progress": not deployment.error,
        "now": None if deployment.done else _current_activity(deployment, phases, slow),
        "phases": phases,
        "undo": undo,
        "failure": _failure(deployment, audience, undo),
        "success": _success(deployment, phases) if succeeded else None,
        "actions": actions(deployment) if audience != "link" else [],
    }


def _duration(deployment: Deployment) -> float | None:
    """Return the seconds from the request to the end, or None before the end."""
    ended = deployment.completed_at
    return max((ended - deployment.created_at).total_seconds(), 0.0) if ended else None


def _is_slow(deployment: Deployment) -> bool:
    elapsed = timezone.now() - (deployment.started_at or deployment.created_at)
    return deployment.completed_at is None and elapsed.total_seconds() > slow_after()


def _current_activity(deployment: Deployment, phases: list["PhaseRow"], slow: bool) -> dict[str, Any]:
    message = next((row.message for row in phases if row.state == "active"), "")
    text = deployment_texts.current_text(deployment, message)
    return {"text": text, "updated": deployment.updated_at, "slow": slow}


def _failure(deployment: Deployment, audience: str, undo: dict[str, Any] | None) -> dict[str, Any] | None:
    if not deployment.error:
        return None
    return deployment_texts.failure_card(deployment, audience, undo["complete"] if undo else None)


def _success(deployment: Deployment, phases: list["PhaseRow"]) -> dict[str, Any]:
    card: dict[str, Any] = deployment_texts.success_card(deployment)
    if deployment.kind == Deployment.Kind.REMOVE:
        card["removed"] = True
    elif deployment.stack.state == Stack.State.LIVE:
        http = next((step for step in phases[-1].probe_steps if step["name"] == "HTTP"), None)
        card |= {"url": deployment.stack.url, "http_status": http["text"] if http else ""}
    return card


# -- actions -----------------------------------------------------------------------------------------------------------


def actions(deployment: Deployment) -> list[dict[str, str]]:
    """Return the links for what can be done now.

    htmx posts an action that has "confirm"; if "confirm" is not empty, htmx asks this question first. Each action has
    its own id: otherwise an update of the page could turn one link into another, and htmx would still post to the
    address of the first.
    """
    if not deployment.done:
        return _actions_in_progress(deployment)
    links = []
    failed = deployment.status == Deployment.Status.FAILURE
    if failed and deployment.kind != Deployment.Kind.REMOVE and not deployment.superseded:
        href = reverse("retry", args=[deployment.pk])
        links.append({"id": "retry", "label": "Try again", "href": href, "confirm": ""})
    if deployment.stack.state != Stack.State.GONE:
        links += _stack_actions(deployment.stack)
    elif failed:
        href = f"{reverse('home')}?name={deployment.stack.name}"
        links.append({"id": "start-over", "label": "Change settings and deploy", "href": href})
    return links


def _actions_in_progress(deployment: Deployment) -> list[dict[str, str]]:
    question = deployment_texts.CANCEL_QUESTIONS.get(deployment.kind)
    if deployment.error or deployment.cancel_requested_at or question is None:
        return []
    href = reverse("cancel", args=[deployment.pk])
    return [{"id": "cancel", "label": "Cancel", "href": href, "confirm": question}]


def _stack_actions(stack: Stack) -> list[dict[str, str]]:
    redeploy = {"id": "redeploy", "label": "Change settings and deploy", "href": reverse("redeploy", args=[stack.pk])}
    remove = {"id": "remove", "label": "Remove", "href": reverse("remove", args=[stack.pk])}
    if stack.is_unwanted():
        remove |= {"id": "remove-left", "label": "Finish cleanup", "confirm": ""}
    return [redeploy, remove]


# -- phases ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class PhaseRow:
    """One phase of the recipe, with what its events say about it."""

    name: str
    title: str
    state: str = "waiting"
    started: datetime | None = None
    ended: datetime | None = None
    attempts: int = 1
    message: str = ""
    lines: list[str] = field(default_factory=list)
    hidden_lines: int = 0
    resources: dict[str, dict[str, str]] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)
    probe_steps: list[dict[str, Any]] = field(default_factory=list)

    @property
    def state_text(self) -> str:
        return deployment_texts.PHASE_STATES[self.state]

    @property
    def seconds(self) -> float | None:
        if self.started is None or self.ended is None:
            return None
        return max((self.ended - self.started).total_seconds(), 0.0)

    @property
    def has_details(self) -> bool:
        return bool(self.message or self.lines or self.resources or self.probe_steps)

    @property
    def is_open(self) -> bool:
        return self.state in ("active", "failed", "cancelled")


def phase_rows(deployment: Deployment, events: list[Event], audience: str) -> list[PhaseRow]:
    """Return a row for every phase of the recipe, including those that have not started."""
    rows = {phase.name: PhaseRow(phase.name, phase.title) for phase in RECIPES[deployment.kind]}
    for event in events:
        handle = EVENT_HANDLERS.get(event.type)
        row = rows.get(_phase_of(event, deployment) or "")
        if row and handle and not (audience == "link" and event.type in PRIVATE_EVENTS):
            handle(row, event)
    for row in rows.values():
        row.state = state_of(row, deployment)
        row.hidden_lines = max(len(row.lines) - LINES_SHOWN, 0)
        row.lines = row.lines[-LINES_SHOWN:]
    for row in _rows_before_the_first(list(rows.values())) if deployment.retry_of_id is not None else ():
        row.state = "kept"  # the retry started in the middle of the recipe
    return list(rows.values())


def _rows_before_the_first(rows: list["PhaseRow"]) -> list["PhaseRow"]:
    """Return the rows before the first one that has started; none when no row has."""
    started = [number for number, row in enumerate(rows) if row.started is not None]
    return rows[: started[0]] if started else []


def state_of(row: PhaseRow, deployment: Deployment) -> str:
    """Return the state of a phase, a key of deployment_texts.PHASE_STATES."""
    error = deployment.error
    if error and row.name == error["phase"]:
        return "cancelled" if deployment_texts.is_cancelled(deployment) else "failed"
    if row.ended is not None:
        undone = error and row.resources and row.resources.keys() <= row.removed
        return "undone" if undone and deployment.kind != Deployment.Kind.REMOVE else "done"
    if row.started is not None:
        return "failed" if deployment.done else "active"
    return "skipped" if error else "waiting"


def _phase_of(event: Event, deployment: Deployment) -> str | None:
    """Return the name of the phase that an event belongs to: a resource belongs to the phase that creates it."""
    if event.type != Event.Type.RESOURCE:
        return event.phase
    return phase_of_resource(deployment.kind, event.data["kind"])


def _apply_phase(row: PhaseRow, event: Event) -> None:
    row.started = row.started or event.at
    row.message = event.message
    row.attempts = max(row.attempts, int(event.data.get("attempt", 1)))
    if event.data.get("step") == "ends":
        row.ended = event.at


def _apply_log(row: PhaseRow, event: Event) -> None:
    row.lines.extend(event.data["lines"])


def _apply_probe(row: PhaseRow, event: Event) -> None:
    row.probe_steps = event.data["rungs"]


def _apply_resource(row: PhaseRow, event: Event) -> None:
    data = event.data
    if data["state"] == "gone":
        row.removed.add(data["kind"])
    resource = row.resources.setdefault(data["kind"], {"id": ""})
    resource["id"] = data.get("id") or resource["id"]
    resource["state"] = deployment_texts.RESOURCE_STATES[data["state"]]


EVENT_HANDLERS: dict[str, Callable[[PhaseRow, Event], None]] = {
    Event.Type.PHASE: _apply_phase,
    Event.Type.LOG: _apply_log,
    Event.Type.PROBE: _apply_probe,
    Event.Type.RESOURCE: _apply_resource,
}
"""What each type of event changes in the row of its phase. A type that is not listed changes nothing."""


# -- undo --------------------------------------------------------------------------------------------------------------


def undo_card(deployment: Deployment, events: list[Event]) -> dict[str, Any] | None:
    """Return the card with the resources that the undo removes, newest first, or None if there are none."""
    if not deployment.error or deployment.kind != Deployment.Kind.DEPLOY:
        return None
    states = _created_resources(events)
    if not states:
        return None
    rows = [_undo_row(deployment, kind, state) for kind, state in reversed(states.items())]
    complete = all(row["state"] == "gone" for row in rows)
    ended = "Undone, nothing left behind" if complete else "Not everything was removed"
    return {"title": ended if deployment.done else "Undoing", "rows": rows, "complete": complete}


def _created_resources(events: list[Event]) -> dict[str, str]:
    """Return the last state of each resource that was created or about to be, by kind."""
    states: dict[str, str] = {}
    for event in events:
        if event.type != Event.Type.RESOURCE or phase_of_resource(Deployment.Kind.DEPLOY, event.data["kind"]) is None:
            continue
        kind, state = event.data["kind"], event.data["state"]
        if kind in states or state in ("intended", "made"):
            states[kind] = state
    return states


def _undo_row(deployment: Deployment, kind: str, state: str) -> dict[str, str]:
    if deployment_texts.was_removed(deployment):  # a later removal finished what the undo had left
        state = "gone"
    elif state != "gone":
        state = "left" if deployment.done or state == "left" else "removing"
    return {
        "kind": kind,
        "label": deployment.stack.host if kind == "domain" else deployment.stack.name,
        "state": state,
        "state_text": deployment_texts.RESOURCE_STATES[state],
    }
