"""Reports of the steps. Each report is awaited: it is committed before the step goes on."""

import asyncio
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .errors import Failure
from .probe import ProbeStep
from .records import Records
from .spec import Kind, Progress, Report, Resources, Status

LINES_PER_DEPLOYMENT = 2_000
LINE_CHARACTERS = 500
LOG_SECONDS = 0.25  # between two events with log lines: at most four events a second
SHORTEST_SECRET = 4  # in characters; masking every “1” would make the log unreadable
# ECMA-48 control sequences, other characters that do not print, and lone surrogates, which UTF-8 cannot encode.
_CONTROL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]"
)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a deployment ends: the fields of its last report. `leftovers` describes what an undo could not remove."""

    phase: str
    status: Status
    message: str
    error: Failure | None = None
    leftovers: Sequence[str] = ()
    progress: int | None = None


class Reporter:
    """Sends the reports of the steps, one after the other.

    Attributes:
        resources: the ids that the next report carries. Only the reporter holds the current ones; see `update`.
        records: what is recorded about the stack's objects.
        started_at: when each Dokploy deployment was started, by its title prefix and the event loop's clock.
        phase, message, attempt: the current phase, its last message and its attempt, from 1.
        changed_anything: whether this deployment has reported a change of an object, from this or an earlier worker.
        last_report: when the last report was accepted, by the event loop's clock.
    """

    def __init__(
        self,
        report: Report,
        *,
        resources: Resources | None = None,
        records: Records | None = None,
        log_lines: Mapping[str, int] | None = None,
        phase: str = "initializing",
        changed_anything: bool = False,
    ) -> None:
        """Create a reporter that continues from the records of earlier workers.

        `report` is called with each Progress. `log_lines` is the number of log lines already reported for each Dokploy
        deployment, by its id.
        """
        self._report = report
        self._lock = asyncio.Lock()
        self.resources = resources or Resources()
        self.records = Records(records or ())
        self._secrets: list[str] = []
        self.started_at: dict[str, float] = {}
        self._log_lines = dict(log_lines or {})
        self._next_log = 0.0
        self.phase = phase
        self.changed_anything = changed_anything
        self.message = ""
        self.attempt = 1
        self.last_report = 0.0

    @property
    def secrets(self) -> tuple[str, ...]:
        """The values that are masked in every report, and each line of theirs, longest first."""
        return tuple(self._secrets)

    @secrets.setter
    def secrets(self, values: Iterable[str]) -> None:
        parts = {part for value in values for part in (value, *value.splitlines()) if len(part) >= SHORTEST_SECRET}
        self._secrets = sorted(parts, key=len, reverse=True)  # one secret may be the beginning of another

    def update(self, **ids: Any) -> Resources:
        """Change ids while a step runs. The next report records them; a repeated step starts with them."""
        self.resources = replace(self.resources, **ids)
        return self.resources

    # -- phases --------------------------------------------------------------------------------------------------------

    async def begin(self, phase: str, progress: int | None, message: str, *, error: Failure | None = None) -> None:
        """Report the beginning of a phase."""
        self.phase, self.message, self.attempt = phase, message, 1
        await self._send("phase", message, progress=progress, error=error, data={"step": "begins"})

    async def end(self, message: str, *, progress: int | None = None, resources: Resources | None = None) -> None:
        """Report the end of the current phase. The phase has ended only when this has returned."""
        self.resources = resources or self.resources
        self.message = message
        await self._send("phase", message, progress=progress, data={"step": "ends"})

    async def finish(self, ending: Ending) -> None:
        """Report the end of the deployment. Nothing may be reported after it."""
        self.phase, self.message = ending.phase, ending.message
        await self._send(
            "phase",
            ending.message,
            status=ending.status,
            progress=ending.progress,
            error=ending.error,
            leftovers=ending.leftovers,
        )

    async def status(self, message: str, **data: Any) -> None:
        """Report what the current phase is doing. A repeated message is reported only if it has data."""
        if message != self.message or data:
            self.message = message
            await self._send("phase", message, data=data)

    async def heartbeat(self) -> None:
        """Report that the deployment is still being worked on."""
        await self._send("phase", self.message, data={"alive": True})

    async def note(self, message: str) -> None:
        """Report a note, which does not change the phase's message."""
        await self._send("note", message)

    async def probe_steps(self, steps: Iterable[ProbeStep], attempt: int) -> None:
        """Report the steps of one probe of the health check."""
        rungs = [{"name": step.name, "ok": step.ok, "text": step.text} for step in steps]
        message = " · ".join(f"{rung['name']} {rung['text']}" for rung in rungs)
        await self._send("rung", message, data={"rungs": rungs, "attempt": attempt})

    # -- the log of a Dokploy deployment -------------------------------------------------------------------------------

    async def log(self, source: str, text: str, *, complete: bool) -> None:
        """Report the lines of a log that were not reported yet, all in one event.

        `source` is the id of the Dokploy deployment; `text` is the log from its beginning. Unless the log is complete,
        a last line without a newline is held back, because it is still being written. If the last event with log lines
        was reported less than LOG_SECONDS ago, wait first.
        """
        lines = text.splitlines()
        if lines and not complete and not text.endswith("\n"):
            lines.pop()
        reported = self._log_lines.get(source, 0)
        new = lines[reported:LINES_PER_DEPLOYMENT]
        if not new:
            return
        await asyncio.sleep(self._next_log - asyncio.get_running_loop().time())
        self._log_lines[source] = reported + len(new)
        shown = [self._clean(line)[:LINE_CHARACTERS] for line in new]
        if reported + len(new) == LINES_PER_DEPLOYMENT:
            shown.append("… the rest of the log is at Dokploy")
        await self._send("log", shown[-1], data={"source": source, "first": reported + 1, "lines": shown})
        self._next_log = asyncio.get_running_loop().time() + LOG_SECONDS

    def is_full(self, source: str) -> bool:
        """Return whether this log has reached LINES_PER_DEPLOYMENT, after which no line is reported."""
        return self._log_lines.get(source, 0) >= LINES_PER_DEPLOYMENT

    # -- the objects at Dokploy ----------------------------------------------------------------------------------------

    async def intend(self, type: str, mark: str) -> None:
        """Record the intent to create an object. Called before the create call."""
        await self._send_receipt("intended", type, mark=mark)

    async def created(self, type: str, mark: str, id: str) -> None:
        """Record the id of an object that was created or found. Recording it again changes nothing."""
        await self._send_receipt("made", type, mark=mark, id=id)

    async def removing(self, type: str, id: str) -> None:
        """Record that an object is about to be deleted."""
        await self._send_receipt("removing", type, id=id)

    async def removed(self, type: str, id: str | None = None) -> None:
        """Record that an object is confirmed to be gone; without an id, that all objects of this type are."""
        await self._send_receipt("gone", type, id=id)

    async def left_behind(self, type: str, id: str | None, why: str) -> None:
        """Record that an object could not be removed."""
        await self._send_receipt("left", type, id=id, why=self._clean(why))

    async def _send_receipt(self, state: str, type: str, **data: Any) -> None:
        noun = "Dokploy deployment" if type == "deploy" else type
        messages = {
            "intended": f"About to create the {noun}",
            "made": f"The {noun} exists",
            "removing": f"Removing the {noun}",
            "gone": f"The {noun} was removed" if data.get("id") else f"No {noun} is left",
            "left": f"The {noun} could not be removed: {data.get('why')}",
        }
        await self._send("receipt", messages[state], data={"state": state, "kind": type, **data})

    # -- sending -------------------------------------------------------------------------------------------------------

    async def _send(
        self,
        kind: Kind,
        message: str,
        *,
        status: Status = "in_progress",
        progress: int | None = None,
        error: Failure | None = None,
        leftovers: Sequence[str] = (),
        data: dict[str, Any] | None = None,
    ) -> None:
        error_fields = None if error is None else self._error_fields(error, leftovers)
        async with self._lock:
            report = Progress(
                kind,
                self.phase,
                self._clean(message),
                status,
                progress=progress,
                resources=self.resources,
                data=data or {},
                error=error_fields,
            )
            if kind == "receipt":
                self.records.apply(report)
                self.changed_anything = True
            await self._report(report)
            self.last_report = asyncio.get_running_loop().time()

    def _error_fields(self, error: Failure, leftovers: Sequence[str]) -> dict[str, Any]:
        fields = {
            "phase": error.phase,
            "code": error.code,
            "message": self._clean(error.message),
            "evidence": self._clean(error.evidence),
            "retryable": error.retryable,
        }
        return {**fields, "left": [self._clean(line) for line in leftovers]} if leftovers else fields

    def _clean(self, text: str) -> str:
        """Return the text without control characters, with the secrets masked."""
        text = _CONTROL.sub("", text)
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text
