"""The texts about a deployment on its page and in the list of stacks."""

from typing import Any

from django.conf import settings
from django.urls import reverse

from ..engine import failures
from ..engine.recipe import RECIPES, TITLES
from ..models import Deployment, Stack

PHASE_STATES = {
    "waiting": "not started",
    "active": "running",
    "done": "done",
    "failed": "failed",
    "cancelled": "cancelled",
    "kept": "already exists",
    "skipped": "not reached",
    "undone": "undone",
}
RESOURCE_STATES = {
    "intended": "creating",
    "made": "created",
    "removing": "removing",
    "gone": "removed and verified",
    "left": "not removed",
}
VERBS = {"deploy": "Deploying", "redeploy": "Deploying", "remove": "Removing"}
CANCEL_QUESTIONS = {
    "deploy": "Cancel this deployment? Everything it created will be removed.",
    "redeploy": "Cancel this deployment? The previous version will be restored.",
}
IMPACTS = {
    "removal changed nothing": "Nothing was removed. Your stack is unchanged.",
    "removal completed later": "The rest has since been removed, and the name “{name}” is free again.",
    "removal incomplete": (
        "Some objects could not be removed. The name “{name}” stays yours until they are removed. Try again."
    ),
    "restoring": "Your stack's previous settings are being restored.",
    "redeploy changed nothing": "You lost nothing: your stack was not changed.",
    "not restored": "Your stack's previous version could not be restored. Fix the cause, then deploy again.",
    "settings restored": (
        "Your stack's previous settings are restored, but its previous image may no longer be in the registry."
    ),
    "restored": "You lost nothing: your stack's previous settings are restored.",
    "undoing": "You lost nothing. Everything that was created is being removed.",
    "undo incomplete": (
        "You lost nothing, but some objects are left at Dokploy. The name stays yours until they are removed."
    ),
    "undone": "You lost nothing, and the name “{name}” is free again.",
}
"""The title of the failure card, by case: what the failure means for the owner's stack."""


# -- status ------------------------------------------------------------------------------------------------------------


def headline(deployment: Deployment) -> tuple[str, str]:
    """Return the status in words, and its tone: the CSS class that colours it."""
    if deployment.status == Deployment.Status.SUCCESS:
        return _success_headline(deployment)
    if deployment.status == Deployment.Status.FAILURE:
        if is_cancelled(deployment):
            return "Cancelled", "cancelled"
        return f"Failed while {failed_phase_title(deployment).lower()}", "failed"
    if deployment.error:
        return ("Cancelling" if is_cancelled(deployment) else "Undoing"), "undoing"
    if deployment.cancel_requested_at:
        return "Cancel requested", "undoing"
    if deployment.phase == "initializing" and deployment.lease_until is None:
        ahead = deployment.queue_position()
        return (f"Queued, {ahead} ahead" if ahead else "Queued, next"), "queued"
    return f"{VERBS[deployment.kind]}, {step_number(deployment)} of {step_count(deployment)}", "running"


def _success_headline(deployment: Deployment) -> tuple[str, str]:
    if deployment.kind == Deployment.Kind.REMOVE:
        return "Removed, nothing left behind", "gone"
    if deployment.stack.state == Stack.State.LIVE:
        return "Live", "live"
    return ("Removed" if was_removed(deployment) else "No longer live"), "idle"


def tab_title(deployment: Deployment, text: str, tone: str) -> str:
    """Return the title of the browser tab, for a headline and its tone."""
    if tone in ("running", "slow"):
        text = f"({step_number(deployment)}/{step_count(deployment)}) {VERBS[deployment.kind]}"
    return f"{text} · {deployment.stack.name}"


def progress_text(deployment: Deployment) -> str:
    """Return the progress bar's value in words, for screen readers."""
    title = TITLES.get(deployment.phase, deployment.phase).lower()
    return f"{step_number(deployment)} of {step_count(deployment)}, {title}"


def current_text(deployment: Deployment, active_message: str) -> str:
    """Return what is being done now. active_message: the last message of the active phase, empty if there is none."""
    if deployment.error and deployment.kind == Deployment.Kind.DEPLOY:
        return "Undoing: removing everything that was created"
    return deployment.message if deployment.error else active_message or deployment.message


def requester(deployment: Deployment) -> str:
    """Return who requested the deployment, and how."""
    if deployment.via == Deployment.Via.SWEEPER:
        return "automatic cleanup"
    user = deployment.requested_by
    name = "an anonymous user" if user.username == settings.OPEN_USERNAME else user.get_username()
    return f"{name}, via the {deployment.get_via_display()}"


# -- success and failure -----------------------------------------------------------------------------------------------


def success_card(deployment: Deployment) -> dict[str, str]:
    """Return the title and the text of the card of a deployment that succeeded; the text may be empty."""
    if deployment.kind == Deployment.Kind.REMOVE:
        text = f"Nothing is left behind, and the name “{deployment.stack.name}” is free again."
        return {"title": "The stack was removed", "text": text}
    if deployment.stack.state == Stack.State.LIVE:
        return {"title": "The stack is live", "text": ""}
    if was_removed(deployment):
        return {"title": "The stack was live", "text": "It has since been removed."}
    return {"title": "The stack was live", "text": "It has since stopped working."}


def failure_card(deployment: Deployment, audience: str, undo_complete: bool | None) -> dict[str, Any]:
    """Return the card of a deployment that failed or is being undone.

    undo_complete: whether every object was removed; None if there was nothing to remove.
    """
    error = deployment.error or {}
    failure = failures.get(error["code"])
    cancelled = is_cancelled(deployment)
    evidence = error.get("evidence", "") if audience != "link" else ""
    return {
        "impact": impact_text(deployment, undo_complete),
        "cancelled": cancelled,
        "message": error["message"],
        "cause": failure.causes[0] if failure.causes and not cancelled else "",
        "evidence": evidence,
        "advice": failure.advice[0] if failure.advice else "",
        "operator": failure.operator if audience == "operator" else "",
        "code": error["code"],
        "help": reverse("help", args=[error["code"]]),
        "report": _report(deployment, evidence),
    }


def _report(deployment: Deployment, evidence: str) -> str:
    """Return the text that “Copy report” copies."""
    error = deployment.error or {}
    what = "Removal" if deployment.kind == Deployment.Kind.REMOVE else "Deployment"
    where = failed_phase_title(deployment).lower()
    lines = [
        f"{what} {deployment.pk} of {deployment.stack.name} failed while {where}.",
        f"{error['code']}: {error['message']}",
        *([f"Evidence: {evidence}"] if evidence else []),
        *(f"Left: {left}" for left in error.get("left", [])),
        f"Requested {deployment.created_at:%Y-%m-%d %H:%M:%S} UTC, template {deployment.template.slug}.",
    ]
    return "\n".join(lines)


def impact_text(deployment: Deployment, undo_complete: bool | None) -> str:
    """Return what the failure means for the owner's stack."""
    if deployment.kind == Deployment.Kind.REMOVE:
        case = _removal_case(deployment)
    elif deployment.kind == Deployment.Kind.REDEPLOY:
        case = _redeploy_case(deployment)
    else:
        case = _deploy_case(deployment, undo_complete)
    return IMPACTS[case].format(name=deployment.stack.name)


def _removal_case(deployment: Deployment) -> str:
    if deployment.stack.state == Stack.State.LIVE and not _left_behind(deployment):
        return "removal changed nothing"
    return "removal completed later" if was_removed(deployment) else "removal incomplete"


def _redeploy_case(deployment: Deployment) -> str:
    if not deployment.done:
        return "restoring"
    if deployment.changed_nothing((deployment.error or {})["phase"]) and not _left_behind(deployment):
        return "redeploy changed nothing"
    if _left_behind(deployment) or deployment.phase != "rolling_back":
        return "not restored"
    previous = deployment.last_successful()
    return "settings restored" if previous is not None and not previous.is_pinned() else "restored"


def _deploy_case(deployment: Deployment, undo_complete: bool | None) -> str:
    if not deployment.done:
        return "undoing"
    left_behind = _left_behind(deployment) and not was_removed(deployment)
    return "undo incomplete" if left_behind or undo_complete is False else "undone"


def _left_behind(deployment: Deployment) -> list[str]:
    """Return the objects that the undo or the removal could not remove."""
    return (deployment.error or {}).get("left") or []


# -- facts -------------------------------------------------------------------------------------------------------------


def is_cancelled(deployment: Deployment) -> bool:
    """Return whether the deployment ended, or is being undone, because a user cancelled it."""
    return (deployment.error or {}).get("code") == "CANCELLED"


def was_removed(deployment: Deployment) -> bool:
    """Return whether the deployment has ended and its stack is gone. The name may belong to another user now."""
    return deployment.done and deployment.stack.state == Stack.State.GONE


def failed_phase_title(deployment: Deployment) -> str:
    """Return the title of the phase that failed."""
    return TITLES.get((deployment.error or {}).get("phase", ""), "Deploying")


def step_count(deployment: Deployment) -> int:
    """Return the number of phases."""
    return len(RECIPES[deployment.kind])


def step_number(deployment: Deployment) -> int:
    """Return the number of the current phase, counted from 1; after a failure, of the phase that failed."""
    names = [phase.name for phase in RECIPES[deployment.kind]]
    name = deployment.error["phase"] if deployment.error else deployment.phase
    if name == "completed":
        return len(names)
    return names.index(name) + 1 if name in names else 1
