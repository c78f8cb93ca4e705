"""Run all scenarios of a conformance session, and remove everything afterwards."""

import asyncio
import time
import traceback

from ..errors import DokployError, Failure
from . import scenarios
from .cleanup import remove_everything
from .session import Session


async def run(session: Session, stop: asyncio.Event, *, limit: float) -> bool:
    """Run the scenarios in order, within `limit` seconds, and remove what they created.

    Setting `stop` ends the scenarios early. Return whether all expectations were met and nothing is left.
    """
    running, stopping = asyncio.ensure_future(_run_scenarios(session)), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({running, stopping}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            reason = "a signal arrived" if stop.is_set() else f"the time limit of {limit:.0f} s is reached"
            session.differ("completes", "yes", f"no ({reason})")
    finally:
        for task in (running, stopping):
            task.cancel()
        await asyncio.gather(running, stopping, return_exceptions=True)
        session.write("\ncleanup")
        await remove_everything(session)
    if not running.cancelled():
        running.result()  # raises an unexpected error
    return not session.differences and not session.leftovers


async def _run_scenarios(session: Session) -> None:
    total = len(scenarios.SCENARIOS)
    for number, scenario in enumerate(scenarios.SCENARIOS, 1):
        session.begin(scenario.name)
        session.write(f"\n{number} of {total}  {scenario.name}: {scenario.title}")
        started = time.monotonic()
        try:
            await scenario.run(session)
        except Failure as failure:
            text = f"{failure.code} in {failure.phase or 'no phase'}: {failure.message} {failure.evidence!r}"
            session.differ("completes", "no failure", text)
        except DokployError as error:
            session.differ("Dokploy answers", "an answer", f"{error.code}: {error} {error.evidence!r}")
        except asyncio.CancelledError:
            session.skipped += [f"{later.name}: not started" for later in scenarios.SCENARIOS[number:]]
            raise
        except Exception as error:  # without its text, which may contain the key
            place = traceback.extract_tb(error.__traceback__)[-1]
            session.differ("completes", "no error", f"{type(error).__name__} in {place.name}, line {place.lineno}")
        session.write(f"           {time.monotonic() - started:.1f} s")
