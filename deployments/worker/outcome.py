"""What became of a deployment's phases, and what follows from it."""

from dataclasses import dataclass
from typing import Any

from django.conf import settings

from ..engine import failures, orchestrator
from ..engine.dokploy import Dokploy
from ..engine.errors import Failure
from ..engine.recipe import REMOVAL
from ..engine.reporter import Reporter
from ..engine.spec import StackSpec
from ..models import Deployment
from ..models.deployment import CRASHES
from .claimed_deployment import ClaimedDeployment


@dataclass(frozen=True, slots=True)
class Succeeded:
    """All phases have ended."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A phase failed, or the deployment was cancelled: what it changed is undone."""

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
        if deployment.crashes >= 2 * CRASHES:
            left = "what this deployment created (the portal was stopped repeatedly while removing it)"
            return Abandoned(failure, "The undo was given up", (left,))
        return Failed(failure)
    if deployment.crashes >= CRASHES:
        return Failed(failures.failure("TOO_MANY_CRASHES", phase=deployment.phase))
    if deployment.cancel_requested_at:
        return Failed(failures.failure("CANCELLED", phase=deployment.phase))
    return None


async def finish(
    outcome: Outcome,
    claimed: ClaimedDeployment,
    dokploy: Dokploy,
    spec: StackSpec,
    former: StackSpec | None,
    reporter: Reporter,
) -> None:
    """End the deployment as its outcome demands: report it, undo a deploy, restore the version before a redeploy."""
    deployment = claimed.deployment
    match outcome:
        case Succeeded():
            await reporter.finish("completed", "success", deployment.success_message(), progress=100)
        case Abandoned(failure, message, leftovers):
            await reporter.finish("failed", "failure", message, error=failure, leftovers=leftovers)
        case Failed(failure) if deployment.kind == Deployment.Kind.REMOVE:
            await _fail_removal(claimed, reporter, failure)
        case Failed(failure):
            await _undo(deployment, dokploy, spec, former, reporter, failure)


async def _undo(
    deployment: Deployment,
    dokploy: Dokploy,
    spec: StackSpec,
    former: StackSpec | None,
    reporter: Reporter,
    failure: Failure,
) -> None:
    """Remove what a failed first deployment created, or restore the former version after a failed redeployment."""
    unchanged = None
    if reporter.phase == "rolling_back":
        pass  # resumed in the middle of the undo
    elif not reporter.records:
        unchanged = "Nothing was created, so there is nothing to undo"
    elif deployment.changed_nothing(failure.phase):
        unchanged = "Nothing was changed, so there is nothing to undo"
    if unchanged:
        await reporter.finish("failed", "failure", unchanged, error=failure)
        return
    patience = settings.DOKPLOY_PATIENCE_SECONDS
    await reporter.begin("rolling_back", 95, "Rolling back", error=failure)
    if former is not None:
        left = await orchestrator.restore(dokploy, former, reporter, patience=patience)
    elif deployment.kind == Deployment.Kind.REDEPLOY:
        left = ["the former version (one of its secrets can no longer be decrypted)"]
    else:
        left = await orchestrator.undo(dokploy, spec, reporter, patience=patience)
    message = f"Left at Dokploy: {'; '.join(left)}" if left else "Rollback completed"
    await reporter.finish("rolling_back", "failure", message, error=failure, leftovers=left)


async def _fail_removal(claimed: ClaimedDeployment, reporter: Reporter, failure: Failure) -> None:
    """End a removal that failed. A removal is not undone; the objects that it did not remove are named."""
    if not await claimed.in_db(claimed.deployment.changed_anything):
        await reporter.finish("failed", "failure", "Nothing was removed and nothing has changed", error=failure)
        return
    names = [phase.name for phase in REMOVAL]
    first = names.index(failure.phase) if failure.phase in names else 0
    types = [phase.resource.type for phase in REMOVAL[first:] if phase.resource]
    for type in types:
        await reporter.left_behind(type, None, failure.message)
    message = f"Left at Dokploy: the {', the '.join(types)}"
    await reporter.finish("failed", "failure", message, error=failure, leftovers=[f"the {type}" for type in types])


def _stored_failure(error: dict[str, Any]) -> Failure:
    """Return the Failure that a deployment's `error` column holds."""
    failure = Failure(error["code"], error["message"], evidence=error.get("evidence", ""), retryable=error["retryable"])
    failure.phase = error["phase"]
    return failure
