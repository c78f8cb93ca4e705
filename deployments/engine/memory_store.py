"""The recorded state of a deployment in memory instead of the database: for the rehearsal and for tests."""

from .records import Records
from .reporter import Reporter
from .spec import Progress, Report, Resources


class MemoryStore:
    """Keeps what the reports of one deployment say.

    Attributes:
        resources: the ids of the last report.
        records: what is recorded about the stack's objects.
        log_lines: the number of reported log lines of each Dokploy deployment, by its id.
        phase: the phase of the last report, or None before the first one.
    """

    def __init__(self) -> None:
        self.resources = Resources()
        self.records = Records()
        self.log_lines: dict[str, int] = {}
        self.phase: str | None = None

    def apply(self, progress: Progress) -> None:
        """Keep what one report says."""
        self.phase = progress.phase
        if progress.resources is not None:
            self.resources = progress.resources
        if progress.kind == "receipt":
            self.records.apply(progress)
        if progress.kind == "log":
            self.log_lines[progress.data["source"]] = progress.data["first"] - 1 + len(progress.data["lines"])

    def next_deployment(self) -> "MemoryStore":
        """Return the store of the stack's next deployment: it keeps the records and the app name, and no other id."""
        store = MemoryStore()
        store.resources = Resources(app_name=self.resources.app_name)
        store.records = Records(self.records)
        return store

    def reporter(self, report: Report) -> Reporter:
        """Return a reporter that continues from this state. Pass each report that it sends to `apply`."""
        return Reporter(report, resources=self.resources, records=self.records, log_lines=self.log_lines)
