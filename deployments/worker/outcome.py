"""Decide how a deployment ends after its phases: as a success, after an undo, or without an undo."""

from dataclasses import dataclass
from typing import Any

from django.conf import settings

from ..engine import failures, orchestrator
from ..engine.dokploy import Dokploy
from ..engine.errors import Failure
from ..engine.recipe import REMOVAL
from ..engine.reporter import Ending, Reporter
from ..engine.spec import StackSpec
from ..models import Deployment
from ..models.deployment import MAX_CRASHES


@dataclass(frozen=True, slots=True)
class Succeeded:
    """All phases have ended."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A phase failed, or the deployment was cancelled. Its changes are undone, unless it is a removal."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Abandoned:
    """The deployment ends as it is, because the portal can neither continue nor undo it."""

    failure: Failure
    message: str
    leftovers: tuple[str, ...] = ()


Outcome = Succeeded | Failed | Abandoned


def earlier_outcome(deployment: Deployment) -> Outcome | None:
    """Return the outcome that is known before any phase runs, or None when the phases are to run."""
    if deployment.error:  # resumed while undoing
        failure = _stored_failure(deployment.error)
        if deployment.crashes >= 2 * MAX_CRASHES:
            left = "what this deployment created (the portal was stopped repeatedly during the undo)"
            return Abandoned(failure, "The undo was given up", (left,))
        return Failed(failure)
    if deployment.crashes >= MAX_CRASHES:
        return Failed(failures.failure("TOO_MANY_CRASHES", phase=deployment.phase))
    if deployment.cancel_requested_at:
        return Failed(failures.failure("CANCELLED", phase=deployment.phase))
    return None


def portal_error(code: str, phase: str) -> Abandoned:
    """Return the outcome for an error in the portal itself."""
    failure = failures.failure(code, phase=phase)
    return Abandoned(failure, failure.message)


async def act_on(
    outcome: Outcome,
    deployment: Deployment,
    dokploy: Dokploy,
    spec: StackSpec | None,
    previous: StackSpec | None,
    reporter: Reporter,
) -> Ending:
    """Report or undo what the outcome requires, and return how the deployment ends."""
    match outcome:
        case Succeeded():
            return Ending("completed", "success", deployment.success_message(), progress=100)
        case Abandoned(failure, message, leftovers):
            return Ending("failed", "failure", message, failure, leftovers)
        case Failed(failure) if deployment.kind == Deployment.Kind.REMOVE:
            return await _fail_removal(reporter, failure)
        case Failed(failure):
            if unchanged := _why_nothing_is_undone(deployment, reporter, failure):
                return Ending("failed", "failure", unchanged, failure)
            await reporter.begin("rolling_back", 95, "Rolling back", error=failure)
            left = await _undo(deployment, dokploy, spec, previous, reporter)
            prefix = "Not restored" if deployment.kind == Deployment.Kind.REDEPLOY else "Left at Dokploy"
            message = f"{prefix}: {'; '.join(left)}" if left else "Rollback completed"
            return Ending("rolling_back", "failure", message, failure, left)


def _why_nothing_is_undone(deployment: Deployment, reporter: Reporter, failure: Failure) -> str | None:
    if reporter.phase == "rolling_back":  # resumed in the middle of the undo
        return None
    if not reporter.records:
        return "Nothing was created, so there is nothing to undo"
    if deployment.changed_nothing(failure.phase):
        return "Nothing was changed, so there is nothing to undo"
    return None


async def _undo(
    deployment: Deployment, dokploy: Dokploy, spec: StackSpec | None, previous: StackSpec | None, reporter: Reporter
) -> list[str]:
    """Remove what a first deployment created, or restore the previous version after a redeployment.

    Return a description of everything that could not be removed or restored.
    """
    assert spec is not None  # otherwise the outcome is Abandoned
    patience = settings.DOKPLOY_PATIENCE_SECONDS
    if previous is not None:
        return await orchestrator.restore(dokploy, spec, previous, reporter, patience=patience)
    if deployment.kind == Deployment.Kind.REDEPLOY:
        return ["the previous version (one of its secrets can no longer be decrypted)"]
    return await orchestrator.undo(dokploy, spec, reporter, patience=patience)


async def _fail_removal(reporter: Reporter, failure: Failure) -> Ending:
    """Report the objects that a failed removal may have left. A removal is not undone."""
    if not reporter.changed_anything:
        return Ending("failed", "failure", "Nothing was removed and nothing has changed", failure)
    names = [phase.name for phase in REMOVAL]
    first = names.index(failure.phase) if failure.phase in names else 0
    types = [phase.resource.type for phase in REMOVAL[first:] if phase.resource]
    for type in types:
        await reporter.left_behind(type, None, failure.message)
    left = [f"the {type}" for type in types]
    return Ending("failed", "failure", f"Left at Dokploy: {', '.join(left)}", failure, left)


def _stored_failure(error: dict[str, Any]) -> Failure:
    """Return the Failure that a deployment's `error` column holds."""
    failure = Failure(error["code"], error["message"], evidence=error.get("evidence", ""), retryable=error["retryable"])
    failure.phase = error["phase"]
    return failure
