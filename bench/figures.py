"""What was measured, beside its baseline of the same run and its goal."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Figure:
    """met: None where there is no goal, or nothing to compare with."""

    name: str
    value: float | None
    unit: str = "ms"
    baseline: float | None = None
    against: str = ""
    goal: str = ""
    met: bool | None = None

    @property
    def ratio(self) -> str:
        if not self.value or not self.baseline:
            return ""
        ratio = self.value / self.baseline
        return f"1/{1 / ratio:,.0f}" if ratio < 0.1 else f"{ratio:.2f}"


def percentile(values: Sequence[float], percent: int) -> float:
    return quantiles(values, n=100, method="inclusive")[percent - 1]


def milliseconds(nanoseconds: Iterable[int]) -> list[float]:
    return [value / 1e6 for value in nanoseconds]


def middle(values: Iterable[float]) -> float:
    return median(values)


def show(console: Console, parts: dict[str, list[Figure]]) -> None:
    table = Table(title="make bench", title_justify="left", caption_justify="left")
    for heading in ("part", "figure"):
        table.add_column(heading)
    table.add_column("measured", justify="right", no_wrap=True)
    table.add_column("baseline", justify="right", no_wrap=True)
    table.add_column("against")
    table.add_column("ratio", justify="right", no_wrap=True)
    table.add_column("goal")
    table.add_column("", no_wrap=True)
    for part, figures in parts.items():
        for figure in figures:
            verdict = {True: "[green]met[/]", False: "[red]not met[/]", None: ""}[figure.met]
            table.add_row(
                part,
                figure.name,
                _number(figure.value, figure.unit),
                _number(figure.baseline, figure.unit),
                figure.against,
                figure.ratio,
                figure.goal,
                verdict,
            )
            part = ""
        table.add_section()
    console.print(table)


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    digits = 0 if value == round(value) or abs(value) >= 1000 else 1 if abs(value) >= 20 else 2
    return f"{value:,.{digits}f} {unit}".rstrip()
