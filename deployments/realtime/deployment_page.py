"""What the pages say about a deployment, read from its rows alone: the same after a refresh, elsewhere, in a year.

Functions of a deployment, its events and an audience: "owner", "operator", or "link" for who only holds the run's id.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from statistics import quantiles
from typing import Any

from django.conf import settings
from django.db.models import OuterRef, Subquery
from django.urls import reverse
from django.utils import timezone

from ..engine import failures
from ..engine.recipe import RECIPES, TITLES, Phase
from ..models import Deployment, Event, Stack

LINES_SHOWN = 200
STACKS_SHOWN = 200
GONE_SHOWN, GONE_LOOKED_AT = 3, 10
DURATIONS_COUNTED = 20
DURATIONS_NEEDED = 3
DURATIONS_FOR_SLOW = 10  # “slower than 9 of 10 runs” needs ten
USUAL_SECONDS = 10.0
WORDS = {
    "waiting": "not started",
    "active": "running",
    "done": "done",
    "failed": "failed",
    "cancelled": "cancelled",
    "kept": "there already",
    "skipped": "not reached",
    "undone": "undone",
}
RESOURCE_STATE_LABELS = {
    "intended": "being made",
    "made": "there",
    "removing": "removing",
    "gone": "gone, verified",
    "left": "still there",
}
HIDDEN_RESOURCES = {"deploy"}  # vanishes with its application
FAVICONS = {"live": "live", "gone": "live", "idle": "live", "failed": "failed", "cancelled": "failed"}
DOING = {"deploy": "Deploying", "redeploy": "Deploying", "remove": "Removing"}


@dataclass(slots=True)
class PhaseRow:
    """One phase on the rail."""

    name: str
    title: str
    state: str = "waiting"
    started: datetime | None = None
    seconds: float | None = None
    attempts: int = 1
    message: str = ""
    lines: list[str] = field(default_factory=list)
    hidden_lines: int = 0
    objects: list[dict[str, Any]] = field(default_factory=list)
    rungs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def word(self) -> str:
        return WORDS[self.state]

    @property
    def open(self) -> bool:
        return self.state in ("active", "failed", "cancelled")


def live(deployment: Deployment, events: list[Event], audience: str) -> dict[str, Any]:
    """The context of _live.html."""
    rows = _rail(deployment, events, audience)
    undo = _undo(deployment, events)
    error = deployment.error
    undoing = bool(error)
    step = _step(deployment)
    ended = deployment.completed_at
    seconds = (ended - deployment.created_at).total_seconds() if ended else None
    queued = deployment.phase == "initializing" and deployment.lease_until is None and not deployment.done
    steps = len(_phases(deployment))
    headline, tone = _headline(deployment, step, queued)
    elapsed = (timezone.now() - (deployment.started_at or deployment.created_at)).total_seconds()
    slow = not ended and elapsed > _slow_after()
    if slow and tone == "running":
        tone = "slow"
    return {
        "id": deployment.pk,
        "version": deployment.version,
        "done": deployment.done,
        "name": deployment.stack.name,
        "kind": deployment.kind,
        "address": deployment.stack.url,
        "url": deployment.stack.url
        if deployment.status == Deployment.Status.SUCCESS and _is_live(deployment)
        else None,
        "headline": headline,
        "tone": tone,
        "title": f"({step}/{steps}) {DOING[deployment.kind]} · {deployment.stack.name}"
        if tone in ("running", "slow")
        else f"{headline} · {deployment.stack.name}",
        "favicon": FAVICONS.get(tone, "running"),
        "announce": f"{deployment.stack.name}: {headline}",
        "who": _who(deployment),
        "via": deployment.get_via_display(),
        "template": deployment.template.name,
        "requested": deployment.created_at,
        "started": deployment.started_at,
        "ended": ended,
        "seconds": max(seconds, 0.0) if seconds is not None else None,
        "usual": None if _removes(deployment) else usual(),
        "progress": deployment.progress,
        "step": step,
        "steps": steps,
        "valuetext": f"{step} of {steps}, {TITLES.get(deployment.phase, deployment.phase).lower()}",
        "shows_bar": not undoing,
        "now": None
        if deployment.done
        else {"text": _now_text(deployment, rows), "sign": deployment.updated_at, "slow": slow},
        "rail": rows,
        "undo": undo,
        "failure": _failure(deployment, audience, undo) if error else None,
        "success": _success(deployment, rows, seconds) if deployment.status == Deployment.Status.SUCCESS else None,
        "actions": _actions(deployment) if audience != "link" else [],
    }


def _removes(deployment: Deployment) -> bool:
    return deployment.kind == Deployment.Kind.REMOVE


def _is_gone(deployment: Deployment) -> bool:
    """Whether, after this deployment, nothing is there any more, by now: the name may be somebody else's."""
    return deployment.done and deployment.stack.state == Stack.State.GONE


def _is_live(deployment: Deployment) -> bool:
    return deployment.stack.state == Stack.State.LIVE


def _phases(deployment: Deployment) -> tuple[Phase, ...]:
    return RECIPES[deployment.kind]


def _actions(deployment: Deployment) -> list[dict[str, str]]:
    """What can be done now, by state: links, which htmx posts where there is something to ask, or "".

    Each has an id of its own: a page that follows must not make one of another, which htmx would still post.
    """
    cancel, retry = (reverse(verb, args=[deployment.pk]) for verb in ("cancel", "retry"))
    if not deployment.done:
        if deployment.error or deployment.cancel_requested_at or _removes(deployment):
            return []
        return [{"id": "cancel", "label": "Cancel", "href": cancel, "ask": "Cancel it? What was made is undone."}]
    actions = []
    if deployment.status == Deployment.Status.FAILURE and not _removes(deployment) and not deployment.superseded:
        actions.append({"id": "retry", "label": "Retry with the same answers", "href": retry, "ask": ""})
    if deployment.stack.state != Stack.State.GONE:
        remove = {"id": "remove", "label": "Remove", "href": reverse("remove", args=[deployment.stack_id])}
        if deployment.stack.is_unwanted():
            remove |= {"id": "remove-left", "label": "Try again to remove what is left", "ask": ""}
        redeploy = reverse("redeploy", args=[deployment.stack_id])
        actions += [{"id": "redeploy", "label": "Deploy again", "href": redeploy}, remove]
    elif deployment.status == Deployment.Status.FAILURE:
        actions.append(
            {"id": "start-over", "label": "Start over", "href": f"{reverse('home')}?name={deployment.stack.name}"}
        )
    return actions


def _headline(deployment: Deployment, step: int, queued: bool) -> tuple[str, str]:
    if deployment.status == Deployment.Status.SUCCESS:
        if _removes(deployment):
            return "Removed, nothing left behind", "gone"
        if _is_live(deployment):
            return "Live", "live"
        return ("Was live, removed since" if _is_gone(deployment) else "Was live, broken since"), "idle"
    cancelled = (deployment.error or {}).get("code") == "CANCELLED"
    if deployment.status == Deployment.Status.FAILURE:
        return (
            ("Cancelled", "cancelled")
            if cancelled
            else (f"Failed while {_title_of(deployment.error).lower()}", "failed")
        )
    if deployment.error:
        return ("Cancelling, undoing" if cancelled else "Undoing"), "undoing"
    if deployment.cancel_requested_at:
        return "Cancel requested", "undoing"
    if queued:
        ahead = deployment.queue_position()
        return (f"Queued, {ahead} ahead" if ahead else "Queued, next"), "queued"
    return f"{DOING[deployment.kind]}, {step} of {len(_phases(deployment))}", "running"


def _title_of(error: dict[str, Any] | None) -> str:
    return TITLES.get((error or {}).get("phase", ""), "Deploying")


def _step(deployment: Deployment) -> int:
    """The number of the phase that deployments, or, after a failure, of the one that failed."""
    names = [phase.name for phase in _phases(deployment)]
    name = deployment.error["phase"] if deployment.error else deployment.phase
    if name == "completed":
        return len(names)
    return names.index(name) + 1 if name in names else 1


def _who(deployment: Deployment) -> str:
    who = deployment.requested_by
    return "somebody without an account" if who.username == settings.OPEN_USERNAME else who.get_username()


def _now_text(deployment: Deployment, rows: list[PhaseRow]) -> str:
    if deployment.error:
        return "Undoing: removing what was made" if deployment.kind == Deployment.Kind.DEPLOY else deployment.message
    active = next((row for row in rows if row.state == "active"), None)
    return (active.message if active else deployment.message) or deployment.message


def _rail(deployment: Deployment, events: list[Event], audience: str) -> list[PhaseRow]:
    """All phases from the first second; what happened in each is read off the events."""
    rows = {phase.name: PhaseRow(phase.name, phase.title) for phase in _phases(deployment)}
    verb = "removing" if _removes(deployment) else "creating"
    ended: dict[str, datetime] = {}
    for event in events:
        data = event.data
        row = rows.get(f"{verb}_{data['kind']}" if event.type == "receipt" else event.phase)
        if row is None:
            continue
        if event.type == "phase":
            row.started = row.started or event.at
            row.message = event.message
            row.attempts = max(row.attempts, int(data.get("attempt", 1)))
            if data.get("step") == "ends":
                ended[row.name] = event.at
                row.seconds = max((event.at - row.started).total_seconds(), 0.0)
        elif event.type == "log" and audience != "link":
            row.lines.extend(data["lines"])
        elif event.type == "rung":
            row.rungs = data["rungs"]
        elif event.type == "receipt" and data["kind"] not in HIDDEN_RESOURCES and audience != "link":
            _note_object(row, data)
    failed = (deployment.error or {}).get("phase")
    for row in rows.values():
        row.hidden_lines = max(len(row.lines) - LINES_SHOWN, 0)
        row.lines = row.lines[-LINES_SHOWN:]
        if row.name == failed:
            row.state = "cancelled" if (deployment.error or {}).get("code") == "CANCELLED" else "failed"
        elif row.name in ended:
            row.state = "done"
        elif row.started is not None:
            row.state = "failed" if deployment.done else "active"
        elif deployment.error:
            row.state = "skipped"
    for row in rows.values():  # a retry begins with the first phase whose object is not there
        if row.started is not None:
            break
        if deployment.retry_of_id and any(later.started for later in rows.values()):
            row.state = "kept"
    if deployment.error and not _removes(deployment):
        for row in rows.values():
            if row.state == "done" and row.objects and _all_gone(row, events):
                row.state = "undone"
    return list(rows.values())


def _note_object(row: PhaseRow, data: dict[str, Any]) -> None:
    known = next((entry for entry in row.objects if entry["kind"] == data["kind"]), None)
    if known is None:
        known = {"kind": data["kind"], "id": "", "href": None}
        row.objects.append(known)
    known["id"] = data.get("id") or known["id"]
    known["state"] = RESOURCE_STATE_LABELS[data["state"]]


def _all_gone(row: PhaseRow, events: Iterable[Event]) -> bool:
    kinds = {entry["kind"] for entry in row.objects}
    gone = {event.data["kind"] for event in events if event.type == "receipt" and event.data["state"] == "gone"}
    return kinds <= gone


def _undo(deployment: Deployment, events: list[Event]) -> dict[str, Any] | None:
    """The objects of the undo, last made first, each removing, gone or left."""
    if not deployment.error or deployment.kind != Deployment.Kind.DEPLOY:
        return None
    made: dict[str, dict[str, Any]] = {}
    for event in events:
        data = event.data
        if event.type != "receipt" or data["kind"] in HIDDEN_RESOURCES:
            continue
        kind = data["kind"]
        if data["state"] in ("intended", "made"):
            made[kind] = {"kind": kind, "label": deployment.stack.host if kind == "domain" else deployment.stack.name}
        if kind in made:
            made[kind]["state"] = data["state"]
    if not made:
        return None
    rows = list(reversed(made.values()))
    for entry in rows:
        if _is_gone(deployment):  # what was left has been removed since
            entry["state"] = "gone"
        elif entry["state"] != "gone":  # after the end it is still there, whatever was meant to become of it
            entry["state"] = "left" if deployment.done or entry["state"] == "left" else "removing"
        entry["word"] = RESOURCE_STATE_LABELS[entry["state"]]
    gone = all(entry["state"] == "gone" for entry in rows)
    ended = "Undone, nothing left behind" if gone else "Not everything was removed"
    return {"title": ended if deployment.done else "Undoing", "rows": rows, "gone": gone}


def _failure(deployment: Deployment, audience: str, undo: dict[str, Any] | None) -> dict[str, Any]:
    error = deployment.error or {}
    entry = failures.get(error["code"])
    where = _title_of(error).lower()
    evidence = error.get("evidence", "") if audience != "link" else ""
    report = [
        f"{'Removal' if _removes(deployment) else 'Deployment'} {deployment.pk} of {deployment.stack.name} "
        f"failed while {where}.",
        f"{error['code']}: {error['message']}",
        *([f"Evidence: {evidence}"] if evidence else []),
        *(f"Left: {left}" for left in error.get("left", [])),
        f"Requested {deployment.created_at:%Y-%m-%d %H:%M:%S} UTC, template {deployment.template.slug}.",
    ]
    return {
        "lost": _lost(deployment, error, undo),
        "cancelled": error["code"] == "CANCELLED",
        "title": entry.title,
        "what": error["message"],
        "cause": entry.causes[0] if entry.causes and error["code"] != "CANCELLED" else "",
        "evidence": evidence,
        "advice": entry.advice[0] if entry.advice else "",
        "operator": entry.operator if audience == "operator" else "",
        "code": error["code"],
        "help": reverse("help", args=[error["code"]]),
        "report": "\n".join(report),
        "phase": _title_of(error),
    }


def _lost(deployment: Deployment, error: dict[str, Any], undo: dict[str, Any] | None) -> str:
    """Is anything of mine lost?"""
    if _removes(deployment):
        if not error.get("left") and _is_live(deployment):
            return "Nothing was removed: your stack is as it was."
        if _is_gone(deployment):
            return f"What was left has been removed since then, and the name “{deployment.stack.name}” is free again."
        return (
            f"Not everything could be removed. The name “{deployment.stack.name}” stays yours until it is; try again."
        )
    if deployment.kind == Deployment.Kind.REDEPLOY:
        if not deployment.done:
            return "Your stack is being brought back to its former settings."
        if deployment.changed_nothing(error["phase"]) and not error.get("left"):
            return "Nothing of yours is lost: your stack was not changed."
        if error.get("left") or deployment.phase != "rolling_back":
            return "Your stack could not be brought back to its former version. Deploy it again when the cause is gone."
        former = deployment.last_successful()
        if former is not None and not former.is_pinned():
            return "Your stack has its former settings again, but its earlier image may be gone from the registry."
        return "Nothing of yours is lost: your stack has its former settings again."
    if not deployment.done:
        return "Nothing of yours is lost. What was made is being removed again."
    if (error.get("left") and not _is_gone(deployment)) or (undo is not None and not undo["gone"]):
        return "Nothing of yours is lost, but something was left at Dokploy. The name stays yours until it is gone."
    return f"Nothing of yours is lost, and the name “{deployment.stack.name}” is free again."


def _success(deployment: Deployment, rows: list[PhaseRow], seconds: float | None) -> dict[str, Any]:
    if _removes(deployment):
        return {"gone": True, "seconds": seconds}
    if not _is_live(deployment):
        what = "removed" if _is_gone(deployment) else "broken"
        return {"was": f"It has been {what} since then."}
    http = next((rung for rung in rows[-1].rungs if rung["name"] == "HTTP"), None)
    return {"url": deployment.stack.url, "status": http["text"] if http else "", "seconds": seconds, "usual": usual()}


# -- the list of stacks ------------------------------------------------------------------------------------------------


def newest_deployments(user_id: int) -> list[Deployment]:
    """The newest run of each of a person's stacks, newest first; of stacks that are gone only the latest few."""
    newest = Deployment.objects.filter(stack=OuterRef("pk")).order_by("-created_at").values("pk")[:1]
    mine = Stack.objects.filter(owner_id=user_id).order_by("-created_at")
    ids = [*mine.existing().values_list(Subquery(newest), flat=True)[:STACKS_SHOWN]]
    ids += mine.filter(state=Stack.State.GONE).values_list(Subquery(newest), flat=True)[:GONE_LOOKED_AT]
    deployments: dict[str, Deployment] = {}
    found = Deployment.objects.filter(pk__in=ids).select_related("stack", "template").order_by("-created_at")
    for deployment in sorted(
        found, key=lambda deployment: deployment.stack.state == Stack.State.GONE
    ):  # a name that is there again is that
        deployments.setdefault(deployment.stack.name, deployment)
    gone = [deployment for deployment in deployments.values() if deployment.stack.state == Stack.State.GONE][
        GONE_SHOWN:
    ]
    shown = [deployment for deployment in deployments.values() if deployment not in gone]
    return sorted(shown, key=lambda deployment: deployment.created_at, reverse=True)


def stacks(deployments: list[Deployment]) -> list[dict[str, Any]]:
    """The context of _stacks.html."""
    return [_stack(deployment) for deployment in deployments]


def _stack(deployment: Deployment) -> dict[str, Any]:
    running = not deployment.done
    headline, tone = _headline(
        deployment, _step(deployment), running and deployment.phase == "initializing" and deployment.lease_until is None
    )
    if deployment.stack.state == Stack.State.GONE:
        headline = "Removed" if deployment.status == Deployment.Status.SUCCESS else f"{headline}, undone"
    is_live = deployment.stack.state == Stack.State.LIVE
    return {
        "name": deployment.stack.name,
        "address": deployment.stack.url,
        "url": deployment.stack.url if is_live and not running else None,
        "tone": {"queued": "running", "undoing": "running", "cancelled": "idle"}.get(tone, tone),
        "word": headline,
        "progress": deployment.progress if running and not deployment.error else None,
        "template": deployment.template.name,
        "page": reverse("deployment", args=[deployment.pk]),
        "since": deployment.created_at,
        "done": deployment.done,
        "actions": [] if deployment.done and deployment.stack.state == Stack.State.GONE else _actions(deployment),
    }


# -- how long it usually takes -----------------------------------------------------------------------------------------

_took: tuple[float, list[float]] = (0.0, [])


def usual() -> str | None:
    """What 8 of 10 of the last runs that succeeded took. None below three runs."""
    took = _last_runs()
    if len(took) < DURATIONS_NEEDED:
        return None
    deciles = quantiles(took, n=10, method="inclusive")
    low, high = (max(round(value), 1) for value in (deciles[0], deciles[-1]))
    return f"about {low} s" if low == high else f"about {low}–{high} s"


def _slow_after() -> float:
    """Seconds after which a deployment is slower than 9 of 10."""
    took = _last_runs()
    return quantiles(took, n=10, method="inclusive")[-1] if len(took) >= DURATIONS_FOR_SLOW else float("inf")


def _last_runs() -> list[float]:
    """How long the last runs that succeeded took, in seconds. Looked up now and then."""
    global _took
    if time.monotonic() > _took[0]:
        done = Deployment.objects.successful().order_by("-created_at")
        times = done.values_list("started_at", "completed_at")[:DURATIONS_COUNTED]
        found = [(end - start).total_seconds() for start, end in times if start and end]
        _took = (time.monotonic() + USUAL_SECONDS, found)
    return _took[1]
