"""The reporter masks secrets, cuts long logs and holds back incomplete lines."""

import pytest

from deployments.engine.errors import Failure
from deployments.engine.reporter import Reporter
from deployments.engine.spec import Progress, StackSpec

from ...processes import IMAGE
from .harness import (
    EngineHarness,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def harness_and_reporter(*secrets: str) -> tuple[EngineHarness, Reporter]:
    harness = EngineHarness(StackSpec("inst", "stk", "dep", "shop", IMAGE, 80, "shop.test", "http://shop.test"))
    reporter = harness.reporter()
    reporter.secrets = secrets
    await reporter.begin("deploying", 85, "Deploying")
    return harness, reporter


async def test_log_lines_are_reported_without_control_characters_and_secrets() -> None:
    harness, reporter = await harness_and_reporter("tok", "token-1", "token-1-longer", "first line\nsecond line")
    colours = "\x1b[31mred\x1b[0m\ttab\x07\n\x1b]0;title\x07plain"
    await reporter.log(
        "build", f"{colours}\nTOKEN=token-1-longer token-1 tok\na first line\nsecond line", complete=True
    )
    assert harness.reports[-1].data["lines"] == ["red\ttab", "plain", "TOKEN=*** *** tok", "a ***", "***"]
    assert "second line" not in str(harness.reports)


async def test_a_secret_interrupted_by_control_characters_is_masked() -> None:
    harness, reporter = await harness_and_reporter("canary-4711")
    await reporter.log("build", "can\x1b[1mary-47\x0011", complete=True)
    assert harness.reports[-1].data["lines"] == ["***"]


async def test_lone_surrogates_are_removed_from_log_lines_and_errors() -> None:
    """JSON escapes can contain them, but a database and a page cannot."""
    harness, reporter = await harness_and_reporter()
    text = "a half\ud83d smile"
    await reporter.log("build", text, complete=True)
    await reporter.begin("rolling_back", 95, text, error=Failure("CODE", text, evidence=text))
    assert [report.message for report in harness.reports[-2:]] == ["a half smile"] * 2
    error = harness.reports[-1].error
    assert error is not None
    assert (error["message"], error["evidence"]) == ("a half smile", "a half smile")
    assert harness.reports[-2].data["lines"] == ["a half smile"]


async def test_an_incomplete_line_is_held_back() -> None:
    lines: list[str] = []

    async def report(progress: Progress) -> None:
        lines.extend(progress.data["lines"])

    reporter = Reporter(report)
    await reporter.log("build", "whole\nhal", complete=False)
    await reporter.log("build", "whole\nhalf a line\nthe en", complete=False)
    await reporter.log("build", "whole\nhalf a line\nthe end", complete=True)
    assert lines == ["whole", "half a line", "the end"]


async def test_long_logs_and_long_lines_are_cut() -> None:
    harness, reporter = await harness_and_reporter()
    lines = [f"{number} " + "x" * 1000 for number in range(3000)]
    await reporter.log("build", "\n".join(lines[:1500]), complete=True)
    await reporter.log("build", "\n".join(lines[:2500]), complete=True)
    await reporter.log("build", "\n".join(lines), complete=True)
    reported = [line for report in harness.reports if report.kind == "log" for line in report.data["lines"]]
    assert reported == [line[:500] for line in lines[:2000]] + ["… the rest of the log is at Dokploy"]
