"""Run the phases of a deployment in order, undo them in reverse, or restore the previous version.

The progress of each phase is reported before its first call and after its last. A report, or a guard before a call
that changes something, may raise Interrupted: the engine then stops at once. It can also be cancelled at any time.
"""

from collections.abc import Sequence
from dataclasses import replace

from .deploy import deploy, image_of_previous_version
from .dokploy import Dokploy
from .errors import Failure
from .recipe import PHASES, REMOVAL, RESTORE, Phase
from .reporter import Reporter
from .retry import retry
from .spec import Resources, StackSpec

PATIENCE_SECONDS = 300.0


async def run(
    dokploy: Dokploy,
    spec: StackSpec,
    reporter: Reporter,
    *,
    phases: Sequence[Phase] = PHASES,
    first_phase: str | None = None,
    patience: float = PATIENCE_SECONDS,
) -> Resources:
    """Deploy the stack as the spec asks, or remove it when `phases` is REMOVAL.

    Args:
        dokploy: the client.
        spec: the stack.
        reporter: receives the progress, and holds the records of earlier workers.
        phases: the phases to run.
        first_phase: the name of the phase to resume with. An unknown name means the first one, which is safe.
        patience: how long to wait for outages of Dokploy to end within one phase, in seconds.

    Returns:
        The ids of the stack's objects at Dokploy.

    Raises:
        Failure: a phase failed; `Failure.phase` names it.
        Interrupted: a report or a call was refused.
    """
    names = [phase.name for phase in phases]
    first = names.index(first_phase) if first_phase in names else 0
    for phase in phases[first:]:
        await reporter.begin(phase.name, phase.progress, phase.title)
        resources = await _complete(phase, dokploy, spec, reporter, patience)
        await reporter.end(f"{phase.title}: done", resources=resources)
    return reporter.resources


async def undo(
    dokploy: Dokploy, spec: StackSpec, reporter: Reporter, *, patience: float = PATIENCE_SECONDS
) -> list[str]:
    """Remove what the stack's deployments created, the last first.

    Return a description of each object that could not be removed. Never raise Failure.
    """
    leftovers = []
    for phase in REMOVAL:
        try:
            await _complete(phase, dokploy, spec, reporter, patience)
        except Failure as failure:
            if phase.resource is not None:
                await reporter.left_behind(phase.resource.type, None, failure.message)
                leftovers.append(f"the {phase.resource.type} ({failure.message})")
    return leftovers


async def restore(
    dokploy: Dokploy, spec: StackSpec, previous: StackSpec, reporter: Reporter, *, patience: float = PATIENCE_SECONDS
) -> list[str]:
    """Restore the previous version of a stack after a failed redeployment. Delete only surplus objects that are empty.

    If Docker already runs the previous version, save its settings without deploying it. `spec` is that of the
    redeployment. `previous.deployment` must name this restore, not the previous deployment: otherwise the previous
    Dokploy deployment would be found by its title, and none would be sent. Return a description of the failure, or an
    empty list. Never raise Failure.
    """
    if reporter.resources.application_id is None:  # the redeployment failed before it changed anything
        return []
    try:
        running_image = await image_of_previous_version(dokploy, spec, reporter)
        if running_image is not None:
            previous = replace(previous, image=running_image)
        for phase in RESTORE:
            if running_image is not None and phase.step is deploy:
                continue
            await reporter.status(f"Restoring the previous version: {phase.title.lower()}")
            reporter.resources = await _complete(phase, dokploy, previous, reporter, patience)
    except Failure as failure:
        return [f"the previous version ({failure.message})"]
    return []


async def _complete(phase: Phase, dokploy: Dokploy, spec: StackSpec, reporter: Reporter, patience: float) -> Resources:
    """Run the phase's step until it succeeds. Raise Failure, with its phase, when it fails for good."""

    async def step() -> Resources:
        await dokploy.require_admin()
        return await phase.step(dokploy, spec, reporter.resources, reporter)

    try:
        return await retry(step, reporter, attempts=phase.attempts, timeout=phase.timeout, patience=patience)
    except Failure as failure:
        failure.phase = failure.phase or phase.name
        raise
