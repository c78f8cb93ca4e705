"""The versions of Dokploy that the portal accepts.

The portal refuses vulnerable versions: its API key gives root access to Dokploy's host. The advisories are from the
National Vulnerability Database (NVD), as of 2026-11-25. Dokploy 0.29.13 fixes about forty; the list has four of them.
"""

import re
from dataclasses import dataclass

Version = tuple[int, int, int]

TESTED: Version = (0, 30, 2)
"""The version that the client was made for and whose responses were recorded."""


@dataclass(frozen=True, slots=True)
class Advisory:
    """A published vulnerability. `impact` completes “In this version, …”."""

    cve: str
    impact: str
    fixed_in: Version
    introduced_in: Version = (0, 0, 0)


ADVISORIES = (
    Advisory("CVE-2026-43917", "a user can access other organizations", (0, 19, 1)),
    Advisory("CVE-2026-27130", "an application's name can run commands on the host", (0, 26, 7)),
    Advisory("CVE-2026-45632", "a user can run scripts on the host through other users' schedules", (0, 26, 8)),
    Advisory("CVE-2026-45662", "a registry's address can run commands on the host", (0, 29, 1)),
    Advisory("CVE-2026-45628", "an image's credentials can run commands on the host", (0, 29, 3)),
    Advisory("CVE-2026-45631", "anyone can become an administrator", (0, 29, 3), introduced_in=(0, 27, 0)),
    Advisory("CVE-2026-72735", "a domain's settings can run commands on remote servers", (0, 29, 13)),
    Advisory("CVE-2026-72862", "a database's image can run commands on remote servers", (0, 29, 13)),
    Advisory("CVE-2026-72863", "a member can open a shell in any container", (0, 29, 13)),
    Advisory("CVE-2026-86059", "a member can read the credentials of Git providers", (0, 29, 13)),
)
OLDEST: Version = max(advisory.fixed_in for advisory in ADVISORIES)
"""The oldest version that the portal accepts."""


def parse(text: str) -> Version | None:
    """Return the version: (0, 30, 2) for “v0.30.2”. A suffix after - or + is ignored. None for any other text."""
    match = re.fullmatch(r"v?([0-9]{1,6})\.([0-9]{1,6})\.([0-9]{1,6})([-+][\w.+-]*)?", text, re.ASCII)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def advisories_for(text: str) -> tuple[Advisory, ...]:
    """Return the advisories that apply to a version. None apply to a version that cannot be parsed."""
    version = parse(text)
    return tuple(a for a in ADVISORIES if version and a.introduced_in <= version < a.fixed_in)


def version_error(text: str) -> str | None:
    """Return why the portal does not use a server of this version, as a sentence.

    None for a version without an advisory, and for one that cannot be parsed.
    """
    version, advisories = parse(text), advisories_for(text)
    if version is None or not advisories:
        return None
    cves = ", ".join(advisory.cve for advisory in advisories)
    return (
        f"Dokploy {format_version(version)} has known vulnerabilities ({cves}). "
        f"Update it to {format_version(OLDEST)} or later."
    )


def is_untested(text: str) -> bool:
    """Return whether the version is newer than the one that the client was made for."""
    version = parse(text)
    return version is not None and version > TESTED


def format_version(version: Version) -> str:
    """Return the version as Dokploy writes it, such as “v0.30.2”."""
    return "v" + ".".join(map(str, version))
