"""Runs the engine for one claimed deployment: from its rows to its outcome."""

import logging
from dataclasses import replace

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
from .outcome import Failed, Outcome, Succeeded, earlier_outcome, finish

log = logging.getLogger(__name__)


async def execute(claimed: ClaimedDeployment, shared_dokploy: Dokploy) -> None:
    """Run a claimed deployment, from its first or interrupted phase, until it has ended.

    Raise Interrupted when the lease is lost. An error in the portal itself ends the deployment as a failure.
    """
    deployment = claimed.deployment
    claimed.hit("claim", failpoints.AFTER_COMMIT)
    reporter = await claimed.in_db(_reporter, claimed)
    dokploy = shared_dokploy.for_deployment(claimed.before_change, claimed.record_exchange)
    try:
        spec, former = await claimed.in_db(_specs, deployment)
        reporter.secrets = (settings.DOKPLOY_API_KEY, *spec.secrets, *(former.secrets if former else ()))
        try:
            outcome = earlier_outcome(deployment) or await _run_phases(claimed, dokploy, spec, reporter)
            await finish(outcome, claimed, dokploy, spec, former, reporter)
        except Cancelled:
            outcome = Failed(failures.failure("CANCELLED", phase=deployment.phase))
            await finish(outcome, claimed, dokploy, spec, former, reporter)
    except (Interrupted, *DATABASE_AWAY, MemoryError):
        raise
    except encryption.DecryptionError as error:
        log.error("%s cannot begin: %s", deployment.pk, error)
        await _abandon(reporter, "SECRET_UNREADABLE")
    except Exception:
        log.exception("%s failed because of an error in the portal", deployment.pk)
        await _abandon(reporter, "DEPLOYMENT_FAILED")


async def _run_phases(claimed: ClaimedDeployment, dokploy: Dokploy, spec: StackSpec, reporter: Reporter) -> Outcome:
    deployment = claimed.deployment
    if deployment.phase != "initializing":
        await reporter.note("Resumed after an interruption")
    try:
        await orchestrator.run(
            dokploy,
            spec,
            reporter,
            phases=RECIPES[deployment.kind],
            first_phase=await claimed.in_db(deployment.first_phase),
            patience=settings.DOKPLOY_PATIENCE_SECONDS,
        )
    except Failure as failure:
        return Failed(failure)
    return Succeeded()


async def _abandon(reporter: Reporter, code: str) -> None:
    failure = failures.failure(code, phase=reporter.phase)
    await reporter.finish("failed", "failure", failure.message, error=failure)


def _reporter(claimed: ClaimedDeployment) -> Reporter:
    deployment = claimed.deployment
    reporter = Reporter(
        claimed.report,
        resources=deployment.recorded_resources(),
        records=deployment.records(),
        log_lines=deployment.reported_log_lines(),
    )
    reporter.phase = deployment.phase
    return reporter


def _specs(deployment: Deployment) -> tuple[StackSpec, StackSpec | None]:
    """Return the spec to deploy and, for a redeployment, the spec to restore if its secrets can be decrypted."""
    spec = deployment.stack_spec()
    former = deployment.last_successful() if deployment.kind == Deployment.Kind.REDEPLOY else None
    if former is None or not former.stored_spec.has_readable_secrets():
        return spec, None
    # A name of its own: under the former one its finished Dokploy deployment would be found and nothing sent.
    restored = replace(former.stack_spec(), deployment=f"{spec.deployment}.restore")
    return spec, restored.pinned(former.recorded_resources().image_digest)
