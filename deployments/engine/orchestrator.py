"""Run the phases of a deployment in order, undo them in reverse, or restore the former version.

The progress of each phase is reported before its first call and after its last. A report, or a guard before a call
that changes something, may raise Interrupted: the engine then stops at once.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from math import inf
from typing import TypeVar

from .deploy import drain_deploys
from .dokploy import CALL_SECONDS, Dokploy
from .errors import DokployError, Failure, Unavailable
from .recipe import PHASES, RESTORE, Phase, Step
from .reporter import Reporter
from .resources.base import remove_duplicates
from .spec import Resources, StackSpec

HEARTBEAT_SECONDS = 4.0  # the portal promises a report at least every five seconds
PATIENCE_SECONDS = 300.0
FIRST_BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 4.0
RECOVERED_SECONDS = 4 * CALL_SECONDS  # an attempt that fails after so long succeeded at first: the outage is a new one
FLAPPING_FACTOR = 10  # after this multiple of the patience, several short outages count as one long outage

T = TypeVar("T")


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
        patience: how long an outage of Dokploy is waited for within one phase, in seconds.

    Returns:
        The ids of the stack's objects at Dokploy.

    Raises:
        Failure: a phase failed; `Failure.phase` names it.
        Interrupted: a report or a call was refused.
    """
    names = [phase.name for phase in phases]
    first = names.index(first_phase) if first_phase in names else 0
    resources = reporter.resources
    for phase in phases[first:]:
        await reporter.begin(phase.name, phase.progress, phase.title)
        resources = await _complete(phase, phase.step, dokploy, spec, resources, reporter, patience)
        await reporter.end(f"{phase.title}: done", resources=resources)
    await _remove_duplicates(phases[-1], dokploy, spec, resources, reporter, patience)
    return resources


async def undo(
    dokploy: Dokploy, spec: StackSpec, reporter: Reporter, *, patience: float = PATIENCE_SECONDS
) -> list[str]:
    """Remove what the stack's deployments created, the last first.

    Return a description of each object that could not be removed. Never raise Failure.
    """
    leftovers, resources = [], reporter.resources
    for phase in reversed(PHASES):
        if phase.undo is None:
            continue
        try:
            await _complete(phase, phase.undo, dokploy, spec, resources, reporter, patience)
        except Failure as failure:
            if phase.undo is not drain_deploys:  # the removal of the application fails for the same reason
                kind = phase.name.removeprefix("creating_")
                await reporter.left_behind(kind, None, failure.message)
                leftovers.append(f"the {kind} ({failure.message})")
    return leftovers


async def restore(
    dokploy: Dokploy, former: StackSpec, reporter: Reporter, *, patience: float = PATIENCE_SECONDS
) -> list[str]:
    """Restore the former version of a stack after a failed redeployment. Delete only duplicates.

    `former.deployment` must name this restore, not the former deployment: otherwise the former Dokploy deployment would
    be found by its title, and none would be sent. Return a description of the failure, or an empty list. Never raise
    Failure.
    """
    resources = reporter.resources
    if resources.application_id is None:  # the redeployment failed before it changed anything
        return []
    try:
        for phase in RESTORE:
            await reporter.status(f"Restoring the former version: {phase.title.lower()}")
            resources = await _complete(phase, phase.step, dokploy, former, resources, reporter, patience)
    except Failure as failure:
        return [f"the former version ({failure.message})"]
    await _remove_duplicates(RESTORE[-1], dokploy, former, resources, reporter, patience)
    return []


async def _remove_duplicates(
    phase: Phase, dokploy: Dokploy, spec: StackSpec, resources: Resources, reporter: Reporter, patience: float
) -> None:
    try:
        await _complete(phase, remove_duplicates, dokploy, spec, resources, reporter, patience)
    except Failure as failure:  # the stack answers: a duplicate that may remain is no reason to undo it
        await reporter.note(f"The search for duplicates failed: {failure.message}")


async def _complete(
    phase: Phase,
    step: Step,
    dokploy: Dokploy,
    spec: StackSpec,
    resources: Resources,
    reporter: Reporter,
    patience: float,
) -> Resources:
    """Run the step until it succeeds. Raise Failure, with its phase, when it fails for good."""
    try:
        return await _retry(phase, lambda: step(dokploy, spec, resources, reporter), reporter, patience)
    except Failure as failure:
        failure.phase = failure.phase or phase.name
        raise


async def _retry(phase: Phase, call: Callable[[], Awaitable[T]], reporter: Reporter, patience: float) -> T:
    """Make the call until it succeeds.

    An outage is waited for, `patience` seconds in all. A temporary error is tried again, `phase.attempts` times in all.
    A permanent error and a call that exceeds `phase.timeout` raise Failure at once.
    """
    loop = asyncio.get_running_loop()
    attempt, backoff, outage = 1, FIRST_BACKOFF_SECONDS, 0.0
    phase_started = loop.time()
    while True:
        started = loop.time()
        try:
            return await _with_heartbeats(call, phase.timeout, reporter)
        except TimeoutError:
            raise Failure("TIMEOUT", f"The phase took longer than its limit of {phase.timeout:.0f} s.") from None
        except Unavailable as error:
            now = loop.time()
            recovered = phase.timeout == inf and now - started > RECOVERED_SECONDS
            if recovered and now - phase_started < FLAPPING_FACTOR * patience:
                outage, backoff = 0.0, FIRST_BACKOFF_SECONDS
            # Of a long attempt, only the last call belongs to the outage: the calls before it succeeded.
            outage += min(now - started, CALL_SECONDS) + backoff
            if outage > patience:
                raise Failure.of(error) from error
            await reporter.status(f"Waiting for Dokploy: {error}")
        except DokployError as error:
            outage = 0.0
            if error.permanent or attempt >= phase.attempts:
                raise Failure.of(error) from error
            attempt += 1
            reporter.attempt = attempt
            await reporter.status(f"Attempt {attempt} of {phase.attempts}: {error}", attempt=attempt)
        # Without a timeout: if the whole process stalls, a timeout would expire together with the pause.
        await _with_heartbeats(partial(asyncio.sleep, backoff), inf, reporter)
        backoff = min(backoff * 2, MAX_BACKOFF_SECONDS)


async def _with_heartbeats(call: Callable[[], Awaitable[T]], timeout: float, reporter: Reporter) -> T:
    """Return the call's result. Report a heartbeat whenever nothing was reported for HEARTBEAT_SECONDS.

    Raise TimeoutError after `timeout` seconds.
    """
    loop = asyncio.get_running_loop()

    async def call_with_timeout() -> T:
        async with asyncio.timeout(timeout):
            return await call()

    task = asyncio.ensure_future(call_with_timeout())
    try:
        while not task.done():
            since_report = loop.time() - reporter.last_report
            done, _ = await asyncio.wait({task}, timeout=max(HEARTBEAT_SECONDS - since_report, 0))
            if not done and loop.time() - reporter.last_report >= HEARTBEAT_SECONDS:
                await reporter.heartbeat()
        return task.result()
    finally:
        if not task.done():
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)  # also retrieves an exception that is not raised here
