"""The versions of Dokploy that the portal accepts, and the one that it was made for.

The portal refuses vulnerable versions: its API key gives root access to Dokploy's host.
"""

import re

Version = tuple[int, int, int]

TESTED: Version = (0, 30, 2)
"""The version that the client was made for and whose responses were recorded."""
OLDEST: Version = (0, 29, 13)
"""The oldest version that the portal accepts. Older ones have known vulnerabilities; see ADVISORIES."""
ADVISORIES = "https://github.com/Dokploy/dokploy/security/advisories"


def parse(text: str) -> Version | None:
    """Return the version: (0, 30, 2) for “v0.30.2”. A suffix after - or + is ignored. None for any other text."""
    match = re.fullmatch(r"v?([0-9]{1,6})\.([0-9]{1,6})\.([0-9]{1,6})([-+][\w.+-]*)?", text, re.ASCII)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def version_error(text: str) -> str | None:
    """Return why the portal does not use a server of this version, as a sentence.

    None for a version that the portal accepts, and for one that cannot be parsed.
    """
    version = parse(text)
    if version is None or version >= OLDEST:
        return None
    return (
        f"Dokploy {format_version(version)} has known vulnerabilities ({ADVISORIES}). "
        f"Update it to {format_version(OLDEST)} or later."
    )


def is_untested(text: str) -> bool:
    """Return whether the version is newer than the one that the client was made for."""
    version = parse(text)
    return version is not None and version > TESTED


def format_version(version: Version) -> str:
    """Return the version as Dokploy writes it, such as “v0.30.2”."""
    return "v" + ".".join(map(str, version))
