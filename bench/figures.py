"""The measured figures, each beside its baseline of the same run, and the table that shows them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import quantiles

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value.

    value: None if it could not be measured; `name` or `against` then says why.
    against: what the baseline is.
    met: whether the goal is met; None without a goal.
    """

    name: str
    value: float | None
    unit: str = "ms"
    baseline: float | None = None
    against: str = ""
    goal: str = ""
    met: bool | None = None

    @property
    def ratio(self) -> str:
        """Return the value divided by the baseline as text, or "" if either is missing."""
        if not self.value or not self.baseline:
            return ""
        ratio = self.value / self.baseline
        return f"1/{1 / ratio:,.0f}" if 0 < ratio < 0.1 else f"{ratio:.2f}"


def percentile(values: Sequence[float], percent: int) -> float:
    """Return a percentile from 1 to 99."""
    return quantiles(values, n=100, method="inclusive")[percent - 1]


def show(console: Console, parts: Mapping[str, Sequence[Figure]], *, goals: bool) -> None:
    """Print one table of all parts. goals: whether to show the goals and whether they are met."""
    table = Table(title="make bench", title_justify="left")
    for heading in ("part", "figure"):
        table.add_column(heading)
    table.add_column("measured", justify="right", no_wrap=True)
    table.add_column("baseline", justify="right", no_wrap=True)
    table.add_column("against")
    table.add_column("ratio", justify="right", no_wrap=True)
    if goals:
        table.add_column("goal")
        table.add_column("", no_wrap=True)
    for part, figures in parts.items():
        for number, figure in enumerate(figures):
            verdict = {True: "[green]met[/]", False: "[red]not met[/]", None: ""}[figure.met]
            table.add_row(
                "" if number else part,
                figure.name,
                _number(figure.value, figure.unit),
                _number(figure.baseline, figure.unit),
                figure.against,
                figure.ratio,
                *((figure.goal, verdict) if goals else ()),
            )
        table.add_section()
    console.print(table)


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    digits = 0 if value == round(value) or abs(value) >= 1000 else 1 if abs(value) >= 20 else 2
    return f"{value:,.{digits}f} {unit}".rstrip()
