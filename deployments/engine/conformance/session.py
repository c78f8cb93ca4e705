"""A conformance session: its configuration, its throwaway stacks and its findings."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from urllib.parse import urlsplit

from .. import orchestrator
from ..dokploy import Dokploy
from ..errors import Interrupted
from ..memory_store import MemoryStore
from ..recipe import PHASES, REMOVAL, Phase
from ..reporter import Reporter
from ..spec import Certificate, Progress, Resources, StackSpec, mark_of

PATIENCE_SECONDS = 60.0  # how long one phase waits for a Dokploy server that cannot be reached


def never(progress: Progress) -> bool:
    """Return False: do not interrupt the deployment."""
    return False


@dataclass(frozen=True, slots=True)
class StackConfig:
    """The configuration of the throwaway stacks. `url` has {name} in its first label; times are in seconds."""

    image: str
    second_image: str
    port: int
    url: str
    certificate: Certificate = "none"
    health_path: str = "/"
    health_interval: float = 5.0
    health_timeout: float = 60.0
    proof_seconds: float = 10.0
    router_address: str = ""


class Session:
    """The server, the throwaway stacks and the findings.

    Attributes:
        installation: the installation in the stacks' marks. No portal uses the same one.
        stacks: the stacks by their letter.
        met: the number of expectations that were met.
        differences, skipped: the expectations that were not met, and those that could not be tested.
        leftovers: the objects that could not be removed.
    """

    def __init__(self, dokploy: Dokploy, config: StackConfig, write: Callable[[str], None], *, key: str) -> None:
        """Create a session. `write` takes a line for the operator; `key` is the API key, which no line may contain."""
        self.dokploy, self.config, self.write, self.key = dokploy, config, write, key
        self.installation = f"conformance-{secrets.token_hex(4)}"
        self.name = f"conf-{secrets.token_hex(3)}"
        self.stacks: dict[str, ThrowawayStack] = {}
        self.met = 0
        self.differences: list[str] = []
        self.skipped: list[str] = []
        self.leftovers: list[str] = []
        self._scenario = ""

    @property
    def mark(self) -> str:
        """The prefix of the marks of all throwaway stacks."""
        return mark_of(self.installation)

    def stack(self, letter: str) -> "ThrowawayStack":
        """Return the stack with this letter, created if it does not exist."""
        if letter not in self.stacks:
            self.stacks[letter] = ThrowawayStack(self, letter)
        return self.stacks[letter]

    def begin(self, scenario: str) -> None:
        """Set the scenario to which the following findings belong."""
        self._scenario = scenario

    def expect(self, subject: str, expected: object, actual: object) -> None:
        """Record whether the actual value is the expected one."""
        if expected == actual:
            self.met += 1
            self.write(f"       ok  {subject}: {_format(actual)}")
        else:
            self.differ(subject, _format(expected), _format(actual))

    def differ(self, subject: str, expected: str, actual: str) -> None:
        """Record a difference."""
        self.differences.append(f"{self._scenario}: {subject}: expected {expected}, got {actual}")
        self.write(f"  differs  {subject}: expected {expected}, got {actual}")

    def skip(self, reason: str) -> None:
        """Record that something could not be tested this time. This is not a difference."""
        self.skipped.append(f"{self._scenario}: {reason}")
        self.write(f"  skipped  {reason}")


class ThrowawayStack:
    """One throwaway stack, and what the engine reported about it.

    Attributes:
        resources: the ids of all objects that it ever had, including removed ones.
        is_complete: its last deployment went through all phases.
        log_line_count, irregularities: of its last deployment. An irregularity is a repeated attempt or a note.
    """

    def __init__(self, session: Session, letter: str) -> None:
        name, config = f"{session.name}-{letter}", session.config
        url = config.url.replace("{name}", name)
        self.spec = StackSpec(
            installation=session.installation,
            stack=f"stk_{name}",
            deployment="",
            name=name,
            image=config.image,
            port=config.port,
            host=urlsplit(url).hostname or "",
            url=url,
            certificate=config.certificate,
            health_path=config.health_path,
            health_interval=config.health_interval,
            health_timeout=config.health_timeout,
            proof_seconds=config.proof_seconds,
            router_address=config.router_address,
        )
        self.resources = Resources()
        self.is_complete = False
        self.log_line_count = 0
        self.irregularities: list[str] = []
        self._session, self._dokploy = session, session.dokploy
        self._letter = letter
        self._store = MemoryStore()
        self._deployment_count = 0
        self._interrupt_if: Callable[[Progress], bool] = never

    async def deploy(
        self,
        *,
        image: str | None = None,
        phases: Sequence[Phase] = PHASES,
        first_phase: str | None = None,
        interrupt_if: Callable[[Progress], bool] = never,
    ) -> None:
        """Start a deployment, or continue the last one with `first_phase`.

        Raise Failure when it fails, and Interrupted when `interrupt_if` returns True for a report.
        """
        self.log_line_count, self._interrupt_if = 0, interrupt_if
        if first_phase is None:
            self._store = self._store.next_deployment()
            self._deployment_count += 1
            value = f"it's throwaway # {secrets.token_hex(8)}"
            self.spec = replace(
                self.spec,
                deployment=f"dep_{self._deployment_count}",
                image=image or self.spec.image,
                env=(("CONFORMANCE", value),),
                secrets=(value,),
            )
        reporter = self._new_reporter()
        try:
            await orchestrator.run(
                self._dokploy, self.spec, reporter, phases=phases, first_phase=first_phase, patience=PATIENCE_SECONDS
            )
        finally:
            self._interrupt_if = never
        self.is_complete = phases is PHASES

    async def undo(self) -> list[str]:
        """Undo the last deployment. Return descriptions of the objects that could not be removed."""
        reporter = self._new_reporter()
        return await orchestrator.undo(self._dokploy, self.spec, reporter, patience=PATIENCE_SECONDS)

    async def remove(self, phases: Sequence[Phase] = REMOVAL) -> None:
        """Remove the stack, or run other phases of a removal. Raise Failure when that fails."""
        reporter = self._new_reporter()
        await orchestrator.run(self._dokploy, self.spec, reporter, phases=phases, patience=PATIENCE_SECONDS)

    def expect(self, subject: str, expected: object, actual: object) -> None:
        """Record whether the actual value is the expected one, for this stack."""
        self._session.expect(f"{self._letter}  {subject}", expected, actual)

    def _new_reporter(self) -> Reporter:
        self.is_complete, self.irregularities = False, []
        reporter = self._store.reporter(self._report)
        reporter.secrets = (self._session.key, *self.spec.secrets)
        return reporter

    async def _report(self, progress: Progress) -> None:
        """Keep what later expectations need, and write the report for the operator."""
        self._store.apply(progress)
        if progress.resources is not None:
            ids = {name: value for name, value in asdict(progress.resources).items() if value}
            self.resources = replace(self.resources, **ids)
        if progress.kind == "log":
            self.log_line_count += len(progress.data["lines"])
        if _is_repeated_attempt(progress) or progress.kind == "note":
            self.irregularities.append(progress.message)
        if _is_shown(progress):
            self._session.write(f"           {self._letter}  {progress.message}")
        if self._interrupt_if(progress):
            raise Interrupted


def _is_repeated_attempt(progress: Progress) -> bool:
    """Return whether a phase is attempted again. The last phase probes repeatedly by design."""
    return progress.kind == "phase" and "attempt" in progress.data and progress.phase != PHASES[-1].name


def _is_shown(progress: Progress) -> bool:
    data = progress.data
    is_status = progress.kind == "phase" and not data.get("alive") and data.get("step") != "ends"
    return is_status or progress.kind == "note" or data.get("state") == "left"


def _format(value: object) -> str:
    """Return the value on one line. Text that is not printable is escaped, because it may come from other programs."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return (", " if isinstance(value, list) else " ").join(map(_format, value)) or "none"
    return value if isinstance(value, str) and value.isprintable() else repr(value)
