"""What a step writes down while it works. Each line is one awaited report: committed before the step goes on."""

import asyncio
import re
from collections.abc import Iterable, Mapping
from typing import Any

from .errors import Failure, Interrupted
from .spec import Progress, Report, Resources, Status

LINES_PER_DEPLOYMENT = 2_000
LINE_CHARACTERS = 500
LOG_SECONDS = 0.25  # between two events of log lines: at most four a second
SHORTEST_SECRET = 4  # masking “1” wherever it stands would hide the log
# ECMA-48 control sequences, what else does not print, and halves of characters: JSON can hold them, UTF-8 cannot
_CONTROL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]"
)


class Reporter:
    """Turns what a step says into reports, one after the other.

    `pending`: kind and mark of what was about to be made, or was, and is not gone; `recorded_ids`: the ids of it,
    as far as they were written down, and the kind of each; `logged`: how many log lines of each
    deploy earlier workers of this deployment have reported.
    """

    def __init__(
        self,
        report: Report,
        *,
        resources: Resources | None = None,
        pending: Iterable[tuple[str, str]] = (),
        recorded_ids: Mapping[str, str] | None = None,
        logged: dict[str, int] | None = None,
    ) -> None:
        self._report = report
        self._one_at_a_time = asyncio.Lock()
        self.resources = resources or Resources()
        self._secrets: list[str] = []
        self.pending = set(pending)
        self.recorded_ids = dict(recorded_ids or {})
        self.started_at: dict[str, float] = {}  # when, by the loop's clock, what has a limit of its own was begun
        self._logged = logged or {}
        self._next_log = 0.0
        self.phase = "initializing"
        self.message = ""
        self.attempt = 1
        self.last_report = 0.0
        self.stopped = False

    @property
    def secrets(self) -> tuple[str, ...]:
        """What is masked in everything that is reported; a value of several lines also line by line."""
        return tuple(self._secrets)

    @secrets.setter
    def secrets(self, values: Iterable[str]) -> None:
        parts = {part for value in values for part in (value, *value.splitlines()) if len(part) >= SHORTEST_SECRET}
        self._secrets = sorted(parts, key=len, reverse=True)  # one may be the beginning of another

    async def begin(self, phase: str, progress: int | None, message: str, *, error: Failure | None = None) -> None:
        self.phase, self.message, self.attempt = phase, message, 1
        await self._tell("phase", message, progress=progress, error=error, data={"step": "begins"})

    async def end(self, message: str, *, progress: int | None = None, resources: Resources | None = None) -> None:
        """The last report of a phase; the phase is over only when this has returned."""
        self.resources = resources or self.resources
        self.message = message
        await self._tell("phase", message, progress=progress, data={"step": "ends"})

    async def finish(
        self,
        phase: str,
        status: Status,
        message: str,
        *,
        progress: int | None = None,
        error: Failure | None = None,
        left: Iterable[str] = (),
    ) -> None:
        """The last report of a run; nothing comes after it. left: what an undo could not remove, a sentence each."""
        self.phase, self.message = phase, message
        await self._tell("phase", message, status=status, progress=progress, error=error, left=list(left))

    async def status(self, message: str, **data: Any) -> None:
        """What the phase is at now. The same words twice are said once."""
        if message != self.message or data:
            self.message = message
            await self._tell("phase", message, data=data)

    async def heartbeat(self) -> None:
        """A sign of life."""
        await self._tell("phase", self.message, data={"alive": True})

    async def note(self, message: str) -> None:
        await self._tell("note", message)

    async def probe_steps(self, rungs: Iterable[Any], attempt: int) -> None:
        said = [{"name": rung.name, "ok": rung.ok, "text": rung.text} for rung in rungs]
        await self._tell(
            "rung", " · ".join(f"{r['name']} {r['text']}" for r in said), data={"rungs": said, "attempt": attempt}
        )

    async def log(self, source: str, text: str, *, whole: bool) -> None:
        """Reports the lines of a deploy's log that were not reported yet, many in one event.

        text: from the log's start. whole: nothing comes after it. Else a last line without its end is still being
        written, and waits. Returns when it is reported, a moment later where the last report of lines was just now.
        """
        lines = text.splitlines()
        if lines and not whole and not text.endswith("\n"):
            lines.pop()
        seen = self._logged.get(source, 0)
        new = lines[seen:LINES_PER_DEPLOYMENT]
        if not new:
            return
        await asyncio.sleep(self._next_log - asyncio.get_running_loop().time())
        self._logged[source] = seen + len(new)
        cut = [self._clean(line)[:LINE_CHARACTERS] for line in new]
        if seen + len(new) == LINES_PER_DEPLOYMENT:
            cut.append("… the log goes on at Dokploy")
        await self._tell("log", cut[-1], data={"source": source, "first": seen + 1, "lines": cut})
        self._next_log = asyncio.get_running_loop().time() + LOG_SECONDS

    def is_full(self, source: str) -> bool:
        """No more lines of this log are reported."""
        return self._logged.get(source, 0) >= LINES_PER_DEPLOYMENT

    async def intend(self, kind: str, mark: str) -> None:
        """Before a call that makes something."""
        self.pending.add((kind, mark))
        await self._receipt("intended", kind, mark=mark)

    async def created(self, kind: str, mark: str, id: str) -> None:
        """After it; also for what was found to be ours. Writing down the same thing twice changes nothing."""
        self.recorded_ids[id] = kind
        await self._receipt("made", kind, mark=mark, id=id)

    async def removing(self, kind: str, id: str) -> None:
        self.recorded_ids[id] = kind
        await self._receipt("removing", kind, id=id)

    async def removed(self, kind: str, id: str | None = None) -> None:
        """Read again and not there any more. Without an id: nothing of this kind is left."""
        await self._receipt("gone", kind, id=id)
        self.recorded_ids = {
            other: its for other, its in self.recorded_ids.items() if other != id and (id or its != kind)
        }

    async def left_behind(self, kind: str, id: str | None, why: str) -> None:
        await self._receipt("left", kind, id=id, why=why)

    async def _receipt(self, state: str, kind: str, **data: Any) -> None:
        if "why" in data:
            data["why"] = self._clean(data["why"])
        words = {
            "intended": f"About to make the {kind}",
            "made": f"The {kind} is there",
            "removing": f"Removing the {kind}",
            "gone": f"The {kind} is gone, verified",
            "left": f"The {kind} could not be removed: {data.get('why')}",
        }
        await self._tell("receipt", words[state], data={"state": state, "kind": kind, **data})

    def _clean(self, text: str) -> str:
        """Foreign text without control characters and without this run's secrets."""
        text = _CONTROL.sub("", text)
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    async def _tell(
        self,
        kind: Any,
        message: str,
        *,
        status: Status = "in_progress",
        progress: int | None = None,
        error: Failure | None = None,
        left: list[str] | None = None,
        data: dict[str, Any] | None = None,
    ) -> None:
        said: dict[str, Any] | None = None
        if error is not None:
            said = {
                "phase": error.phase,
                "code": error.code,
                "message": self._clean(error.message),
                "evidence": self._clean(error.evidence),
                "retryable": error.retryable,
            }
            if left:
                said["left"] = [self._clean(line) for line in left]
        async with self._one_at_a_time:
            if self.stopped:  # an earlier report was refused: nothing may be written any more
                raise Interrupted
            try:
                await self._report(
                    Progress(
                        kind,
                        self.phase,
                        self._clean(message),
                        status,
                        progress=progress,
                        resources=self.resources,
                        data=data or {},
                        error=said,
                    )
                )
            except Interrupted:
                self.stopped = True
                raise
            self.last_report = asyncio.get_running_loop().time()
