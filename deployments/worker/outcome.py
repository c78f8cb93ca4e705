"""End a deployment that did not succeed: undo a deploy, restore a redeploy, name what a removal left."""

from typing import Any

from django.conf import settings

from ..engine import failures, orchestrator
from ..engine.dokploy import Dokploy
from ..engine.errors import Failure
from ..engine.recipe import REMOVAL
from ..engine.reporter import Reporter
from ..engine.spec import StackSpec
from ..models import Deployment
from .claimed_deployment import ClaimedDeployment


def stored_failure(error: dict[str, Any]) -> Failure:
    """Return the Failure that a deployment's `error` column holds."""
    failure = Failure(error["code"], error["message"], evidence=error.get("evidence", ""), retryable=error["retryable"])
    failure.phase = error["phase"]
    return failure


def portal_failure(code: str, phase: str) -> Failure:
    """Return a Failure whose cause is known to the portal itself, with the text of the failures table."""
    kind = failures.BY_CODE[code]
    failure = Failure(code, kind.text, retryable=kind.retryable)
    failure.phase = phase
    return failure


async def undo(
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
    elif not reporter.pending:
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


async def fail_removal(claimed: ClaimedDeployment, reporter: Reporter, failure: Failure) -> None:
    """End a removal that failed. A removal is not undone; the objects that it did not remove are named."""
    if not await claimed.in_db(claimed.deployment.changed_anything):
        await reporter.finish("failed", "failure", "Nothing was removed and nothing has changed", error=failure)
        return
    names = [phase.name for phase in REMOVAL]
    first = names.index(failure.phase) if failure.phase in names else 0
    kinds = [name.removeprefix("removing_") for name in names[first:]]
    for kind in kinds:
        await reporter.left_behind(kind, None, failure.message)
    message = f"Left at Dokploy: the {', the '.join(kinds)}"
    await reporter.finish("failed", "failure", message, error=failure, leftovers=[f"the {kind}" for kind in kinds])
