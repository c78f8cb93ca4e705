"""The scenarios of a conformance session, in order. Later scenarios use the stacks of earlier ones."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..dokploy import Dokploy
from ..errors import Failure, Interrupted
from ..probe import probe_stack
from ..recipe import PHASES, Phase
from ..reporter import Reporter
from ..resources import application
from ..resources.base import require_id
from ..spec import Progress, Resources, StackSpec
from .expectations import dokploy_deployments, expect_deployed, expect_removed, lasting_ids
from .session import Session

FILLERS = 4  # deployments that occupy the queue, so that another one waits

DEPLOYING = next(phase for phase in PHASES if phase.name == "deploying")


async def _settle(dokploy: Dokploy, spec: StackSpec, resources: Resources, reporter: Reporter) -> Resources:
    await application.end_dokploy_deployments(dokploy, require_id(resources.application_id), reporter)
    return resources


SETTLING = (
    Phase("settling", "Waiting for its deployments to end", 0, _settle, timeout=application.SETTLE_SECONDS + 60),
)


async def deploy(session: Session) -> None:
    """Deploy stack a."""
    stack = session.stack("a")
    before = await probe_stack(stack.spec)
    stack.expect("address answers before the deployment", False, before.answered)
    await stack.deploy()
    await expect_deployed(session, stack)


async def redeploy(session: Session) -> None:
    """Deploy stack a again, with the second image."""
    stack = session.stack("a")
    if not stack.is_complete:
        session.skip("no stack can be deployed again")
        return
    before, rows = stack.resources, await dokploy_deployments(session, stack)
    await stack.deploy(image=session.config.second_image)
    stack.expect("objects are the same as before", True, lasting_ids(before) == lasting_ids(stack.resources))
    stack.expect("number of Dokploy deployments", len(rows) + 1, len(await dokploy_deployments(session, stack)))
    await expect_deployed(session, stack)


async def missing_image(session: Session) -> None:
    """Deploy stack b with an image that cannot exist."""
    stack = session.stack("b")
    image = f"{session.name}.invalid/does-not/exist:1"  # RFC 2606: .invalid is never in the DNS
    try:
        await stack.deploy(image=image)
    except Failure as failure:
        session.write(f"           b  {failure.code}: {failure.message} {failure.evidence!r}")
        stack.expect("failed phase", DEPLOYING.name, failure.phase)
        rows = await dokploy_deployments(session, stack)
        stack.expect("status of the Dokploy deployment", ["error"], [row.status for row in rows])
        stack.expect("log gives a reason", True, failure.code != "DEPLOY_FAILED" or bool(failure.evidence))
        if failure.code == "DEPLOY_FAILED":
            session.skip("the failures table has no pattern for the reason in the log")
    else:
        session.differ("an image that cannot exist", "a failure", "a working stack")
    stack.expect("left after the undo", [], await stack.undo())
    await expect_removed(session, stack)


async def undo(session: Session) -> None:
    """Deploy stack c, and undo the deployment."""
    stack = session.stack("c")
    await stack.deploy()
    stack.expect("left after the undo", [], await stack.undo())
    await expect_removed(session, stack)


async def cancel(session: Session) -> None:
    """Stop a deployment of stack d while it waits in Dokploy's queue, and undo it.

    A second deployment of the same application always waits, even if Dokploy runs several deployments at a time. If
    Dokploy runs one at a time, deployments of stack a fill the queue instead, and the undo must leave them there.
    """
    dokploy, stack, other = session.dokploy, session.stack("d"), session.stack("a")
    one_at_a_time = await dokploy.builds_concurrency() in (1, None)
    await stack.deploy(phases=PHASES[: PHASES.index(DEPLOYING)])
    filler = other if other.is_complete and one_at_a_time else stack
    filler_titles = [f"{filler.spec.mark}/filler/{number}" for number in range(FILLERS)]
    for title in filler_titles:
        await dokploy.deploy(filler.resources.application_id or "", title)
    waited = False
    try:
        await stack.deploy(first_phase=DEPLOYING.name, interrupt_if=_is_waiting)
    except Interrupted:
        own_states = [entry.state for entry in await dokploy.queue() if entry.title == stack.spec.deploy_title(1)]
        waited = own_states == ["waiting"]
    if waited:
        stack.expect("waits in Dokploy's queue when it is stopped", True, waited)
    else:
        session.skip("no deployment waited in Dokploy's queue: it started too soon")
    stack.expect("left after the undo", [], await stack.undo())
    if filler is other:
        queued = {entry.title for entry in await dokploy.queue()}  # read first: an entry may start after this
        kept = queued | {row.title for row in await dokploy_deployments(session, other)}
        other.expect("its deployments still queued or started", FILLERS, len(kept.intersection(filler_titles)))
        await other.remove(SETTLING)
    await expect_removed(session, stack)


async def concurrent(session: Session) -> None:
    """Deploy stacks e and f at the same time, and remove them at the same time."""
    stacks = session.stack("e"), session.stack("f")
    await _gather(stack.deploy() for stack in stacks)
    for stack in stacks:
        await expect_deployed(session, stack)
    shared = lasting_ids(stacks[0].resources) & lasting_ids(stacks[1].resources)
    session.expect("objects that belong to both", [], sorted(shared))
    await _gather(stack.remove() for stack in stacks)
    for stack in stacks:
        await expect_removed(session, stack)


async def remove(session: Session) -> None:
    """Remove stack a."""
    stack = session.stack("a")
    if stack.resources.application_id is None:
        session.skip("no stack can be removed")
        return
    await stack.remove()
    await expect_removed(session, stack)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One scenario, with a title for the operator."""

    name: str
    title: str
    run: Callable[[Session], Awaitable[None]]


SCENARIOS = (
    Scenario("deploy", "A new stack is deployed as requested", deploy),
    Scenario("redeploy", "The stack is deployed again: its objects are found and changed", redeploy),
    Scenario("missing image", "An image that cannot exist is refused, explained and undone", missing_image),
    Scenario("undo", "The deployment of a working stack is undone", undo),
    Scenario("cancel", "A deployment that waits in Dokploy's queue is stopped and undone", cancel),
    Scenario("concurrent", "Two stacks are deployed at the same time, and removed at the same time", concurrent),
    Scenario("remove", "The first stack is removed", remove),
)


async def _gather(calls: Iterable[Awaitable[Any]]) -> None:
    """Wait for all calls to end, then raise the first error."""
    for result in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


def _is_waiting(progress: Progress) -> bool:
    """Return whether the engine reports that the deployment waits in Dokploy's queue."""
    return progress.phase == DEPLOYING.name and "queue" in progress.message
