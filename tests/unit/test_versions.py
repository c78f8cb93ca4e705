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


@pytest.mark.parametrize("text", ["v0.19.0", "v0.28.8", "v0.29.12"])
def test_a_version_before_the_oldest_accepted_one_is_refused(text: str) -> None:
    version_error = versions.version_error(text)
    assert version_error is not None
    assert version_error.startswith(f"Dokploy {text} has known vulnerabilities")
    assert versions.ADVISORIES in version_error
    assert version_error.endswith("Update it to v0.29.13 or later.")


@pytest.mark.parametrize("text", ["v0.29.13", "v0.30.2", "v0.30.8", "v1.0.0", "canary", ""])
def test_a_later_version_and_an_unreadable_one_have_no_error(text: str) -> None:
    assert versions.version_error(text) is None


def test_the_tested_version_is_neither_too_old_nor_untested() -> None:
    tested = versions.format_version(versions.TESTED)
    assert tested == "v0.30.2"
    assert versions.TESTED >= versions.OLDEST
    assert [versions.is_untested(text) for text in (tested, "v0.29.13", "v0.30.3", "canary")] == [
        *(False, False, True, False)
    ]
