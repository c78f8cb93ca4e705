"""What the pages say about a run, read from its rows alone: the same after a refresh, elsewhere, in a year.

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

from .engine import diagnosis
from .engine.recipe import RECIPES, TITLES, Phase
from .models import Deployment, Event, Stack

LINES_SHOWN = 200
STACKS_SHOWN = 200
GONE_SHOWN, GONE_LOOKED_AT = 3, 10
RUNS_COUNTED = 20
RUNS_NEEDED = 3
RUNS_FOR_SLOW = 10  # “slower than 9 of 10 runs” needs ten
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
RECEIPT_WORDS = {
    "intended": "being made",
    "made": "there",
    "removing": "removing",
    "gone": "gone, verified",
    "left": "still there",
}
HIDDEN_RECEIPTS = {"deploy"}  # vanishes with its application
FAVICONS = {"live": "live", "gone": "live", "idle": "live", "failed": "failed", "cancelled": "failed"}
DOING = {"deploy": "Deploying", "redeploy": "Deploying", "remove": "Removing"}


@dataclass(slots=True)
class Row:
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


def live(run: Deployment, events: list[Event], audience: str) -> dict[str, Any]:
    """The context of _live.html."""
    rows = _rail(run, events, audience)
    undo = _undo(run, events)
    error = run.error
    undoing = bool(error)
    step = _step(run)
    ended = run.completed_at
    seconds = (ended - run.created_at).total_seconds() if ended else None
    queued = run.phase == "initializing" and run.lease_until is None and not run.done
    steps = len(_phases(run))
    headline, tone = _headline(run, step, queued)
    elapsed = (timezone.now() - (run.started_at or run.created_at)).total_seconds()
    slow = not ended and elapsed > _slow_after()
    if slow and tone == "running":
        tone = "slow"
    return {
        "id": run.pk,
        "version": run.version,
        "done": run.done,
        "name": run.stack.name,
        "kind": run.kind,
        "address": run.stack.url,
        "url": run.stack.url if run.status == Deployment.Status.SUCCESS and _is_live(run) else None,
        "headline": headline,
        "tone": tone,
        "title": f"({step}/{steps}) {DOING[run.kind]} · {run.stack.name}"
        if tone in ("running", "slow")
        else f"{headline} · {run.stack.name}",
        "favicon": FAVICONS.get(tone, "running"),
        "announce": f"{run.stack.name}: {headline}",
        "who": _who(run),
        "via": run.get_via_display(),
        "template": run.template.name,
        "requested": run.created_at,
        "started": run.started_at,
        "ended": ended,
        "seconds": max(seconds, 0.0) if seconds is not None else None,
        "usual": None if _removes(run) else usual(),
        "progress": run.progress,
        "step": step,
        "steps": steps,
        "valuetext": f"{step} of {steps}, {TITLES.get(run.phase, run.phase).lower()}",
        "shows_bar": not undoing,
        "now": None if run.done else {"text": _now_text(run, rows), "sign": run.updated_at, "slow": slow},
        "rail": rows,
        "undo": undo,
        "failure": _failure(run, audience, undo) if error else None,
        "success": _success(run, rows, seconds) if run.status == Deployment.Status.SUCCESS else None,
        "actions": _actions(run) if audience != "link" else [],
    }


def _removes(run: Deployment) -> bool:
    return run.kind == Deployment.Kind.REMOVE


def _is_gone(run: Deployment) -> bool:
    """Whether, after this run, nothing is there any more, by now: the name may be somebody else's."""
    return run.done and run.stack.state == Stack.State.GONE


def _is_live(run: Deployment) -> bool:
    return run.stack.state == Stack.State.LIVE


def _phases(run: Deployment) -> tuple[Phase, ...]:
    return RECIPES[run.kind]


def _actions(run: Deployment) -> list[dict[str, str]]:
    """What can be done now, by state: links, which htmx posts where there is something to ask, or "".

    Each has an id of its own: a page that follows must not make one of another, which htmx would still post.
    """
    cancel, retry = (reverse(verb, args=[run.pk]) for verb in ("cancel", "retry"))
    if not run.done:
        if run.error or run.cancel_requested_at or _removes(run):
            return []
        return [{"id": "cancel", "label": "Cancel", "href": cancel, "ask": "Cancel it? What was made is undone."}]
    actions = []
    if run.status == Deployment.Status.FAILURE and not _removes(run) and not run.retried:
        actions.append({"id": "retry", "label": "Retry with the same answers", "href": retry, "ask": ""})
    if run.stack.state != Stack.State.GONE:
        remove = {"id": "remove", "label": "Remove", "href": reverse("remove", args=[run.stack_id])}
        if run.stack.is_unwanted():
            remove |= {"id": "remove-left", "label": "Try again to remove what is left", "ask": ""}
        redeploy = reverse("redeploy", args=[run.stack_id])
        actions += [{"id": "redeploy", "label": "Deploy again", "href": redeploy}, remove]
    elif run.status == Deployment.Status.FAILURE:
        actions.append({"id": "start-over", "label": "Start over", "href": f"{reverse('home')}?name={run.stack.name}"})
    return actions


def _headline(run: Deployment, step: int, queued: bool) -> tuple[str, str]:
    if run.status == Deployment.Status.SUCCESS:
        if _removes(run):
            return "Removed, nothing left behind", "gone"
        if _is_live(run):
            return "Live", "live"
        return ("Was live, removed since" if _is_gone(run) else "Was live, broken since"), "idle"
    cancelled = (run.error or {}).get("code") == "CANCELLED"
    if run.status == Deployment.Status.FAILURE:
        return ("Cancelled", "cancelled") if cancelled else (f"Failed while {_title_of(run.error).lower()}", "failed")
    if run.error:
        return ("Cancelling, undoing" if cancelled else "Undoing"), "undoing"
    if run.cancel_requested_at:
        return "Cancel requested", "undoing"
    if queued:
        ahead = run.ahead()
        return (f"Queued, {ahead} ahead" if ahead else "Queued, next"), "queued"
    return f"{DOING[run.kind]}, {step} of {len(_phases(run))}", "running"


def _title_of(error: dict[str, Any] | None) -> str:
    return TITLES.get((error or {}).get("phase", ""), "Deploying")


def _step(run: Deployment) -> int:
    """The number of the phase that runs, or, after a failure, of the one that failed."""
    names = [phase.name for phase in _phases(run)]
    name = run.error["phase"] if run.error else run.phase
    if name == "completed":
        return len(names)
    return names.index(name) + 1 if name in names else 1


def _who(run: Deployment) -> str:
    who = run.requested_by
    return "somebody without an account" if who.username == settings.OPEN_USERNAME else who.get_username()


def _now_text(run: Deployment, rows: list[Row]) -> str:
    if run.error:
        return "Undoing: removing what was made" if run.kind == Deployment.Kind.DEPLOY else run.message
    active = next((row for row in rows if row.state == "active"), None)
    return (active.message if active else run.message) or run.message


def _rail(run: Deployment, events: list[Event], audience: str) -> list[Row]:
    """All phases from the first second; what happened in each is read off the events."""
    rows = {phase.name: Row(phase.name, phase.title) for phase in _phases(run)}
    verb = "removing" if _removes(run) else "creating"
    ended: dict[str, datetime] = {}
    for event in events:
        data = event.data
        row = rows.get(f"{verb}_{data['kind']}" if event.kind == "receipt" else event.phase)
        if row is None:
            continue
        if event.kind == "phase":
            row.started = row.started or event.at
            row.message = event.message
            row.attempts = max(row.attempts, int(data.get("attempt", 1)))
            if data.get("step") == "ends":
                ended[row.name] = event.at
                row.seconds = max((event.at - row.started).total_seconds(), 0.0)
        elif event.kind == "log" and audience != "link":
            row.lines.extend(data["lines"])
        elif event.kind == "rung":
            row.rungs = data["rungs"]
        elif event.kind == "receipt" and data["kind"] not in HIDDEN_RECEIPTS and audience != "link":
            _note_object(row, data)
    failed = (run.error or {}).get("phase")
    for row in rows.values():
        row.hidden_lines = max(len(row.lines) - LINES_SHOWN, 0)
        row.lines = row.lines[-LINES_SHOWN:]
        if row.name == failed:
            row.state = "cancelled" if (run.error or {}).get("code") == "CANCELLED" else "failed"
        elif row.name in ended:
            row.state = "done"
        elif row.started is not None:
            row.state = "failed" if run.done else "active"
        elif run.error:
            row.state = "skipped"
    for row in rows.values():  # a retry begins with the first phase whose object is not there
        if row.started is not None:
            break
        if run.retry_of_id and any(later.started for later in rows.values()):
            row.state = "kept"
    if run.error and not _removes(run):
        for row in rows.values():
            if row.state == "done" and row.objects and _all_gone(row, events):
                row.state = "undone"
    return list(rows.values())


def _note_object(row: Row, data: dict[str, Any]) -> None:
    known = next((entry for entry in row.objects if entry["kind"] == data["kind"]), None)
    if known is None:
        known = {"kind": data["kind"], "id": "", "href": None}
        row.objects.append(known)
    known["id"] = data.get("id") or known["id"]
    known["state"] = RECEIPT_WORDS[data["state"]]


def _all_gone(row: Row, events: Iterable[Event]) -> bool:
    kinds = {entry["kind"] for entry in row.objects}
    gone = {event.data["kind"] for event in events if event.kind == "receipt" and event.data["state"] == "gone"}
    return kinds <= gone


def _undo(run: Deployment, events: list[Event]) -> dict[str, Any] | None:
    """The objects of the undo, last made first, each removing, gone or left."""
    if not run.error or run.kind != Deployment.Kind.DEPLOY:
        return None
    made: dict[str, dict[str, Any]] = {}
    for event in events:
        data = event.data
        if event.kind != "receipt" or data["kind"] in HIDDEN_RECEIPTS:
            continue
        kind = data["kind"]
        if data["state"] in ("intended", "made"):
            made[kind] = {"kind": kind, "label": run.stack.host if kind == "domain" else run.stack.name}
        if kind in made:
            made[kind]["state"] = data["state"]
    if not made:
        return None
    rows = list(reversed(made.values()))
    for entry in rows:
        if _is_gone(run):  # what was left has been removed since
            entry["state"] = "gone"
        elif entry["state"] != "gone":  # after the end it is still there, whatever was meant to become of it
            entry["state"] = "left" if run.done or entry["state"] == "left" else "removing"
        entry["word"] = RECEIPT_WORDS[entry["state"]]
    gone = all(entry["state"] == "gone" for entry in rows)
    ended = "Undone, nothing left behind" if gone else "Not everything was removed"
    return {"title": ended if run.done else "Undoing", "rows": rows, "gone": gone}


def _failure(run: Deployment, audience: str, undo: dict[str, Any] | None) -> dict[str, Any]:
    error = run.error or {}
    entry = diagnosis.entry_of(error["code"])
    where = _title_of(error).lower()
    evidence = error.get("evidence", "") if audience != "link" else ""
    report = [
        f"{'Removal' if _removes(run) else 'Deployment'} {run.pk} of {run.stack.name} failed while {where}.",
        f"{error['code']}: {error['message']}",
        *([f"Evidence: {evidence}"] if evidence else []),
        *(f"Left: {left}" for left in error.get("left", [])),
        f"Requested {run.created_at:%Y-%m-%d %H:%M:%S} UTC, template {run.template.slug}.",
    ]
    return {
        "lost": _lost(run, error, undo),
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


def _lost(run: Deployment, error: dict[str, Any], undo: dict[str, Any] | None) -> str:
    """Is anything of mine lost?"""
    if _removes(run):
        if not error.get("left") and _is_live(run):
            return "Nothing was removed: your stack is as it was."
        if _is_gone(run):
            return f"What was left has been removed since then, and the name “{run.stack.name}” is free again."
        return f"Not everything could be removed. The name “{run.stack.name}” stays yours until it is; try again."
    if run.kind == Deployment.Kind.REDEPLOY:
        if not run.done:
            return "Your stack is being brought back to its former settings."
        if run.changed_nothing(error["phase"]) and not error.get("left"):
            return "Nothing of yours is lost: your stack was not changed."
        if error.get("left") or run.phase != "rolling_back":
            return "Your stack could not be brought back to its former version. Deploy it again when the cause is gone."
        former = run.former()
        if former is not None and not former.is_pinned():
            return "Your stack has its former settings again, but its earlier image may be gone from the registry."
        return "Nothing of yours is lost: your stack has its former settings again."
    if not run.done:
        return "Nothing of yours is lost. What was made is being removed again."
    if (error.get("left") and not _is_gone(run)) or (undo is not None and not undo["gone"]):
        return "Nothing of yours is lost, but something was left at Dokploy. The name stays yours until it is gone."
    return f"Nothing of yours is lost, and the name “{run.stack.name}” is free again."


def _success(run: Deployment, rows: list[Row], seconds: float | None) -> dict[str, Any]:
    if _removes(run):
        return {"gone": True, "seconds": seconds}
    if not _is_live(run):
        what = "removed" if _is_gone(run) else "broken"
        return {"was": f"It has been {what} since then."}
    http = next((rung for rung in rows[-1].rungs if rung["name"] == "HTTP"), None)
    return {"url": run.stack.url, "status": http["text"] if http else "", "seconds": seconds, "usual": usual()}


# -- the list of stacks ------------------------------------------------------------------------------------------------


def newest_runs(user_id: int) -> list[Deployment]:
    """The newest run of each of a person's stacks, newest first; of stacks that are gone only the latest few."""
    newest = Deployment.objects.filter(stack=OuterRef("pk")).order_by("-created_at").values("pk")[:1]
    mine = Stack.objects.filter(owner_id=user_id).order_by("-created_at")
    ids = [*mine.existing().values_list(Subquery(newest), flat=True)[:STACKS_SHOWN]]
    ids += mine.filter(state=Stack.State.GONE).values_list(Subquery(newest), flat=True)[:GONE_LOOKED_AT]
    runs: dict[str, Deployment] = {}
    found = Deployment.objects.filter(pk__in=ids).select_related("stack", "template").order_by("-created_at")
    for run in sorted(found, key=lambda run: run.stack.state == Stack.State.GONE):  # a name that is there again is that
        runs.setdefault(run.stack.name, run)
    gone = [run for run in runs.values() if run.stack.state == Stack.State.GONE][GONE_SHOWN:]
    shown = [run for run in runs.values() if run not in gone]
    return sorted(shown, key=lambda run: run.created_at, reverse=True)


def stacks(runs: list[Deployment]) -> list[dict[str, Any]]:
    """The context of _stacks.html."""
    return [_stack(run) for run in runs]


def _stack(run: Deployment) -> dict[str, Any]:
    running = not run.done
    headline, tone = _headline(run, _step(run), running and run.phase == "initializing" and run.lease_until is None)
    if run.stack.state == Stack.State.GONE:
        headline = "Removed" if run.status == Deployment.Status.SUCCESS else f"{headline}, undone"
    is_live = run.stack.state == Stack.State.LIVE
    return {
        "name": run.stack.name,
        "address": run.stack.url,
        "url": run.stack.url if is_live and not running else None,
        "tone": {"queued": "running", "undoing": "running", "cancelled": "idle"}.get(tone, tone),
        "word": headline,
        "progress": run.progress if running and not run.error else None,
        "template": run.template.name,
        "page": reverse("deployment", args=[run.pk]),
        "since": run.created_at,
        "done": run.done,
        "actions": [] if run.done and run.stack.state == Stack.State.GONE else _actions(run),
    }


# -- how long it usually takes -----------------------------------------------------------------------------------------

_took: tuple[float, list[float]] = (0.0, [])


def usual() -> str | None:
    """What 8 of 10 of the last runs that succeeded took. None below three runs."""
    took = _last_runs()
    if len(took) < RUNS_NEEDED:
        return None
    deciles = quantiles(took, n=10, method="inclusive")
    low, high = (max(round(value), 1) for value in (deciles[0], deciles[-1]))
    return f"about {low} s" if low == high else f"about {low}–{high} s"


def _slow_after() -> float:
    """Seconds after which a run is slower than 9 of 10."""
    took = _last_runs()
    return quantiles(took, n=10, method="inclusive")[-1] if len(took) >= RUNS_FOR_SLOW else float("inf")


def _last_runs() -> list[float]:
    """How long the last runs that succeeded took, in seconds. Looked up now and then."""
    global _took
    if time.monotonic() > _took[0]:
        done = Deployment.objects.that_worked().order_by("-created_at")
        times = done.values_list("started_at", "completed_at")[:RUNS_COUNTED]
        found = [(end - start).total_seconds() for start, end in times if start and end]
        _took = (time.monotonic() + USUAL_SECONDS, found)
    return _took[1]
