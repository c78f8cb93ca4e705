"""Runs the phases, awaits the report after each, and undoes them in reverse.

The engine stops where a report, or a call that changes something, raises Interrupted; it does not ask why.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from math import inf
from typing import TypeVar

from .deploy import drain_deploys
from .dokploy import Dokploy
from .dokploy.client import CALL_SECONDS
from .errors import DokployError, Failure, Unavailable
from .recipe import PHASES, RESTORE, Phase
from .reporter import Reporter
from .resources.base import remove_duplicates
from .spec import Resources, StackSpec

HEARTBEAT_SECONDS = 4.0  # at least every five
PATIENCE_SECONDS = 300.0
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 4.0
WELL_SECONDS = 4 * CALL_SECONDS  # an attempt that lasted longer went well for a while
FLAPPING = 10  # times the patience: for so long outages in between are forgiven

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
    """Brings the stack to what the spec asks for, or with REMOVAL takes it away. Raises Failure, with its phase.

    first_phase: the phase to go on with; an unknown name begins at the first, which is harmless.
    patience: seconds that an unreachable Dokploy is waited for, within one phase.
    """
    names = [phase.name for phase in phases]
    first = names.index(first_phase) if first_phase in names else 0
    have = reporter.resources
    for phase in phases[first:]:
        await reporter.begin(phase.name, phase.progress, phase.title)
        have = await _perform(phase, lambda: phase.step(dokploy, spec, have, reporter), reporter, patience)  # noqa: B023
        await reporter.end(f"{phase.title}: done", resources=have)
    await _remove_duplicates(phases[-1], dokploy, spec, have, reporter, patience)
    return have


async def undo(
    dokploy: Dokploy, spec: StackSpec, reporter: Reporter, *, patience: float = PATIENCE_SECONDS
) -> list[str]:
    """Removes what this stack made, last made first. Returns what is left, a sentence each; never raises Failure."""
    left, have = [], reporter.resources
    for phase in reversed(PHASES):
        undo_step = phase.undo
        if undo_step is None:
            continue
        try:
            await _perform(phase, lambda: undo_step(dokploy, spec, have, reporter), reporter, patience)  # noqa: B023
        except Failure as failure:
            if phase.undo is not drain_deploys:  # the application's own removal says it then
                kind = phase.name.removeprefix("creating_")
                await reporter.left_behind(kind, None, failure.message)
                left.append(f"the {kind} ({failure.message})")
    return left


async def restore(
    dokploy: Dokploy, former: StackSpec, reporter: Reporter, *, patience: float = PATIENCE_SECONDS
) -> list[str]:
    """Brings a stack that ran before back to its former spec; deletes nothing. Returns what could not be given back.

    The spec's run names this undo: under the former run's own name its deploy of then would be found, and nothing sent.
    """
    have = reporter.resources
    if have.application_id is None:  # it failed before it touched anything
        return []
    try:
        for phase in RESTORE:
            await reporter.status(f"Bringing the former settings back: {phase.title.lower()}")
            have = await _perform(phase, lambda: phase.step(dokploy, former, have, reporter), reporter, patience)  # noqa: B023
    except Failure as failure:
        return [f"the former version ({failure.message})"]
    await _remove_duplicates(RESTORE[-1], dokploy, former, have, reporter, patience)
    return []


async def _remove_duplicates(
    phase: Phase, dokploy: Dokploy, spec: StackSpec, have: Resources, reporter: Reporter, patience: float
) -> None:
    try:
        await _perform(phase, lambda: remove_duplicates(dokploy, spec, have, reporter), reporter, patience)
    except Failure as failure:  # the stack answers: that a surplus object may be left is no reason to undo it
        await reporter.note(f"The closing look was not possible: {failure.message}")


async def _perform(phase: Phase, act: Callable[[], Awaitable[T]], reporter: Reporter, patience: float) -> T:
    """Acts until it is done. An outage is waited for, an unclear outcome is tried again, a refusal ends it."""
    loop = asyncio.get_running_loop()
    attempt, pause, away = 1, FIRST_PAUSE_SECONDS, 0.0
    first = loop.time()
    while True:
        began = loop.time()
        try:
            try:
                return await _with_heartbeats(act, phase.timeout, reporter)
            except TimeoutError:
                raise Failure("TIMEOUT", f"This took longer than its limit of {phase.timeout:.0f} s.") from None
            except Unavailable as error:
                # Of a long attempt only its last call: what went well before it was no outage, and ended the last one
                # where asking goes on for long, though not for ever.
                now = loop.time()
                if phase.timeout == inf and now - began > WELL_SECONDS and now - first < FLAPPING * patience:
                    away, pause = 0.0, FIRST_PAUSE_SECONDS
                away += min(now - began, CALL_SECONDS) + pause
                if away > patience:
                    raise Failure.of(error) from error
                await reporter.status(f"Waiting for Dokploy: {error}")
            except DokployError as error:
                away = 0.0
                if error.permanent or attempt >= phase.attempts:
                    raise Failure.of(error) from error
                attempt += 1
                reporter.attempt = attempt
                await reporter.status(f"Attempt {attempt} of {phase.attempts}: {error}", attempt=attempt)
        except Failure as failure:
            failure.phase = failure.phase or phase.name
            raise
        # Without a limit: after a stall of the whole process that would be reached together with the pause's end.
        await _with_heartbeats(lambda: asyncio.sleep(pause), inf, reporter)  # noqa: B023
        pause = min(pause * 2, LONGEST_PAUSE_SECONDS)


async def _with_heartbeats(act: Callable[[], Awaitable[T]], timeout: float, reporter: Reporter) -> T:
    """Awaits the act for `timeout` seconds; whenever nothing was reported for a while, reports a sign of life."""
    loop = asyncio.get_running_loop()

    async def bounded() -> T:
        async with asyncio.timeout(timeout):
            return await act()

    task = asyncio.ensure_future(bounded())
    try:
        while not task.done():
            quiet = loop.time() - reporter.last_report
            done, _ = await asyncio.wait({task}, timeout=max(HEARTBEAT_SECONDS - quiet, 0))
            if not done and loop.time() - reporter.last_report >= HEARTBEAT_SECONDS:
                await reporter.heartbeat()
        return task.result()
    finally:
        if not task.done():
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)  # also what nobody else asks it for
