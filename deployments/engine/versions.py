"""Which versions of Dokploy are fit to be given a key that is root on their host.

The advisories are published ones (NVD), as known on 2026-11-25. 0.29.13 closed some forty; four stand here.
"""

import re
from dataclasses import dataclass

Version = tuple[int, int, int]

TESTED: Version = (0, 30, 2)
"""The version whose answers were recorded, and which the portal's client follows."""


@dataclass(frozen=True, slots=True)
class Advisory:
    """`what` completes “They let …”; `below` is the first version without it, `since` the first with it."""

    name: str
    what: str
    below: Version
    since: Version = (0, 0, 0)


ADVISORIES = (
    Advisory("CVE-2026-43917", "a user reach what belongs to other organizations", (0, 19, 1)),
    Advisory("CVE-2026-27130", "an application's name run commands on the host", (0, 26, 7)),
    Advisory("CVE-2026-45632", "a user run scripts on the host by schedules of others", (0, 26, 8)),
    Advisory("CVE-2026-45662", "a registry's address run commands on the host", (0, 29, 1)),
    Advisory("CVE-2026-45628", "an image's credentials run commands on the host", (0, 29, 3)),
    Advisory("CVE-2026-45631", "anybody become its administrator", (0, 29, 3), since=(0, 27, 0)),
    Advisory("CVE-2026-72735", "a domain's settings run commands on remote servers", (0, 29, 13)),
    Advisory("CVE-2026-72862", "a database's image run commands on remote servers", (0, 29, 13)),
    Advisory("CVE-2026-72863", "a member open a shell in any container", (0, 29, 13)),
    Advisory("CVE-2026-86059", "a member read the credentials of Git providers", (0, 29, 13)),
)
OLDEST: Version = max(hole.below for hole in ADVISORIES)


def parse(text: str) -> Version | None:
    """“v0.30.2” is (0, 30, 2); what follows a hyphen is not looked at. None for what is no version."""
    found = re.fullmatch(r"v?([0-9]{1,6})\.([0-9]{1,6})\.([0-9]{1,6})([-+][\w.+-]*)?", text, re.ASCII)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def advisories(text: str) -> tuple[Advisory, ...]:
    """The known advisories of a version; none of what cannot be read."""
    version = parse(text)
    return tuple(hole for hole in ADVISORIES if version and hole.since <= version < hole.below)


def version_error(text: str) -> str | None:
    """Why nothing should be made on a server of this version, in a sentence. None where nothing is known against it,
    and where it cannot be read."""
    version, known = parse(text), advisories(text)
    if version is None or not known:
        return None
    names = ", ".join(hole.name for hole in known)
    return f"Dokploy {shown(version)} has known vulnerabilities ({names}). Update it to {shown(OLDEST)} or later."


def is_untested(text: str) -> bool:
    """Newer than the version that the portal was made for."""
    version = parse(text)
    return version is not None and version > TESTED


def shown(version: Version) -> str:
    return "v" + ".".join(map(str, version))
