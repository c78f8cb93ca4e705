"""Runs the engine for one claimed deployment: loads it, runs its phases, ends it."""

import logging
from dataclasses import dataclass, replace

from django.conf import settings

from .. import encryption
from ..engine import failures, orchestrator
from ..engine.dokploy import Dokploy
from ..engine.errors import Cancelled, Failure, Interrupted
from ..engine.recipe import RECIPES
from ..engine.reporter import Reporter
from ..engine.spec import StackSpec
from ..models import DATABASE_AWAY, Deployment
from . import failpoints
from .claimed_deployment import ClaimedDeployment
from .outcome import Abandoned, Failed, Outcome, Succeeded, act_on, earlier_outcome, portal_error

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Work:
    """The work that is left for a deployment, as loaded from its rows.

    Attributes:
        spec: the spec to deploy, or None when it cannot be read; then `outcome` is set.
        previous: for a redeployment, the spec to restore after a failure.
        first_phase: the phase to begin or continue with.
        outcome: the outcome, if it is known before any phase runs.
    """

    deployment: Deployment
    reporter: Reporter
    spec: StackSpec | None
    previous: StackSpec | None
    first_phase: str
    outcome: Outcome | None


async def execute(claimed: ClaimedDeployment, shared_dokploy: Dokploy) -> None:
    """Run a claimed deployment, from its first or interrupted phase, until it has ended.

    Raise Interrupted when the lease is lost. An error in the portal itself ends the deployment as a failure.
    """
    claimed.hit("claim", failpoints.AFTER_COMMIT)
    work = await claimed.in_db(_load, claimed)
    dokploy = shared_dokploy.for_deployment(claimed.before_change, claimed.record_exchange)
    outcome = work.outcome
    while not work.deployment.done:
        try:
            outcome = outcome or await _run_phases(work, dokploy)
            ending = await act_on(outcome, work.deployment, dokploy, work.spec, work.previous, work.reporter)
            await work.reporter.finish(ending)
        except Cancelled:  # raised only once: the reports of an undo do not raise it
            outcome = Failed(failures.failure("CANCELLED", phase=work.deployment.phase))
        except (Interrupted, *DATABASE_AWAY, MemoryError):
            raise
        except Exception:
            if isinstance(outcome, Abandoned):
                raise
            log.exception("%s failed because of an error in the portal", work.deployment.pk)
            outcome = portal_error("DEPLOYMENT_FAILED", work.reporter.phase)


async def _run_phases(work: Work, dokploy: Dokploy) -> Outcome:
    assert work.spec is not None
    if work.deployment.phase != "initializing":
        await work.reporter.note("Resumed after an interruption")
    try:
        await orchestrator.run(
            dokploy,
            work.spec,
            work.reporter,
            phases=RECIPES[work.deployment.kind],
            first_phase=work.first_phase,
            patience=settings.DOKPLOY_PATIENCE_SECONDS,
        )
    except Failure as failure:
        return Failed(failure)
    return Succeeded()


def _load(claimed: ClaimedDeployment) -> Work:
    deployment = claimed.deployment
    outcome, spec, previous = earlier_outcome(deployment), None, None
    try:
        spec, previous = _specs(deployment)
    except encryption.DecryptionError as error:
        log.error("%s cannot begin: %s", deployment.pk, error)
        outcome = portal_error("SECRET_UNREADABLE", deployment.phase)
    except (TypeError, ValueError):  # another version of the portal stored the spec
        log.exception("%s has a spec that cannot be used", deployment.pk)
        outcome = portal_error("DEPLOYMENT_FAILED", deployment.phase)
    reporter = Reporter(
        claimed.report,
        resources=deployment.recorded_resources(),
        records=deployment.records(),
        log_lines=deployment.reported_log_lines(),
        phase=deployment.phase,
        changed_anything=deployment.kind == Deployment.Kind.REMOVE and deployment.changed_anything(),
    )
    secrets = (secret for one in (spec, previous) if one for secret in one.secrets)
    reporter.secrets = (settings.DOKPLOY_API_KEY, *secrets)
    return Work(deployment, reporter, spec, previous, deployment.first_phase(), outcome)


def _specs(deployment: Deployment) -> tuple[StackSpec, StackSpec | None]:
    """Return the spec to deploy and, for a redeployment, the spec to restore if its secrets can be decrypted."""
    spec = deployment.stack_spec()
    previous = deployment.last_successful() if deployment.kind == Deployment.Kind.REDEPLOY else None
    if previous is None or not previous.stored_spec.has_readable_secrets():
        return spec, None
    # The restore needs a new name: under the previous one, the engine would find the finished Dokploy deployment.
    restored = replace(previous.stack_spec(), deployment=f"{spec.deployment}.restore")
    return spec, restored.pinned(previous.recorded_resources().image_digest)
