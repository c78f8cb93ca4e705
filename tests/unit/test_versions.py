"""The versions of Dokploy that the portal accepts."""

import pytest

from deployments.engine import versions


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("v0.30.2", (0, 30, 2)),
        ("0.29.13", (0, 29, 13)),
        ("v1.0.0", (1, 0, 0)),
        ("v0.30.3-community.1", (0, 30, 3)),
        *((text, None) for text in ("", "canary", "v0.30", "0.30.2.1", "v0.30.2\n", "v٠.٣٠.٢", "0.30.2 <b>", "v0..2")),
    ],
)
def test_a_version_is_parsed_and_an_invalid_one_gives_none(text: str, version: versions.Version | None) -> None:
    assert versions.parse(text) == version


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("v0.19.0", {"CVE-2026-43917", "CVE-2026-27130"}),
        ("v0.26.7", {"CVE-2026-45632", "CVE-2026-45662"}),
        ("v0.27.0", {"CVE-2026-45631"}),
        ("v0.29.2", {"CVE-2026-45631", "CVE-2026-45628"}),
        ("v0.29.12", {"CVE-2026-72863"}),
    ],
)
def test_the_advisories_of_a_version_are_listed(text: str, known: set[str]) -> None:
    assert known <= {advisory.cve for advisory in versions.advisories_for(text)}
    version_error = versions.version_error(text)
    assert version_error is not None
    assert all(name in version_error for name in known)
    assert version_error.startswith(f"Dokploy {text} has known vulnerabilities")
    assert version_error.endswith("Update it to v0.29.13 or later.")


def test_an_advisory_applies_from_the_version_that_introduced_it_to_the_one_that_fixed_it() -> None:
    def applies(text: str) -> bool:
        return "CVE-2026-45631" in {advisory.cve for advisory in versions.advisories_for(text)}

    assert [applies(text) for text in ("v0.26.7", "v0.27.0", "v0.28.8", "v0.29.2", "v0.29.3")] == [
        *(False, True, True, True, False)
    ]


@pytest.mark.parametrize("text", ["v0.29.13", "v0.30.2", "v0.30.8", "v1.0.0", "canary", ""])
def test_a_version_without_advisories_has_no_error(text: str) -> None:
    assert versions.advisories_for(text) == ()
    assert versions.version_error(text) is None


def test_the_tested_version_is_neither_too_old_nor_untested() -> None:
    tested = versions.format_version(versions.TESTED)
    assert tested == "v0.30.2"
    assert versions.TESTED >= versions.OLDEST
    assert [versions.is_untested(text) for text in (tested, "v0.29.13", "v0.30.3", "canary")] == [
        *(False, False, True, False)
    ]
