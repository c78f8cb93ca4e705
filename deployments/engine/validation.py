"""Validate names, images, hosts and environment variables. The rules are stricter than Dokploy's.

Each function raises ValueError with a sentence for the user who entered the value.
"""

import re
from collections.abc import Iterable

NAME = re.compile(r"[a-z](?:[a-z0-9-]{1,28}[a-z0-9])")
RESERVED = frozenset(
    "admin api app assets auth blog cdn dashboard dns docs dokploy ftp help imap localhost login mail mx ns ns1 ns2 "
    "pop portal root smtp sso static status support system test traefik webmail www".split()
)

# The reference grammar of docker/distribution: [domain[:port]/]path[:tag][@digest].
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HOST_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
IMAGE = re.compile(
    rf"(?:(?P<registry>(?:{_HOST_LABEL}(?:\.{_HOST_LABEL})+(?::[0-9]{{1,5}})?|{_HOST_LABEL}:[0-9]{{1,5}}|localhost))/)?"
    rf"(?P<path>{_COMPONENT}(?:/{_COMPONENT})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
HOST = re.compile(rf"{_HOST_LABEL}(?:\.{_HOST_LABEL})*")
ENV_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NEEDS_NO_QUOTES = re.compile(r"[!$-&(-_a-~][ !\"$-~]*")  # begins with no quote and contains no #
_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON text can escape a lone surrogate; UTF-8 cannot encode it


def validate_name(name: str, reserved: Iterable[str] = ()) -> str:
    """Return the name if a stack may have it: a DNS label of 3 to 30 characters that is not reserved."""
    if not name:
        raise ValueError("Enter a name.")
    if not name.isascii():
        raise ValueError("Use only letters a to z, digits and hyphens.")
    if name != name.lower():
        raise ValueError(f"Use lower-case letters.{_suggestion(name, reserved)}")
    if not name[0].isalpha():
        raise ValueError("Start with a letter.")
    if not 3 <= len(name) <= 30:
        raise ValueError("Use 3 to 30 characters.")
    if name.endswith("-"):
        raise ValueError("The last character can't be a hyphen.")
    if not NAME.fullmatch(name):
        raise ValueError(f"Use only letters a to z, digits and hyphens.{_suggestion(name, reserved)}")
    if name[2:4] == "--":  # RFC 5891, section 4.2.3.1: such labels are reserved, for example xn--
        raise ValueError("The 3rd and 4th characters can't both be hyphens.")
    if name in RESERVED or name in set(reserved):
        raise ValueError("This name is reserved. Choose another.")
    return name


def _suggestion(name: str, reserved: Iterable[str]) -> str:
    """Return a sentence that suggests a similar, valid name, or an empty string if there is none."""
    similar = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    try:
        return f" Try {validate_name(similar, reserved)}."
    except ValueError:
        return ""


def validate_image(image: str, registries: Iterable[str] = ()) -> str:
    """Return the image reference if it is well-formed and its registry is in `registries`. An empty list allows all."""
    match = IMAGE.fullmatch(image)
    if match is None or len(image) > 255:
        raise ValueError("Write the image as [registry/]name[:tag][@sha256:digest].")
    registry = match["registry"] or "docker.io"
    allowed = set(registries)
    if allowed and registry not in allowed:
        raise ValueError(f"Use an image from {' or '.join(sorted(allowed))}.")
    return image


def validate_host(host: str) -> str:
    """Return the host name in lower case if it is valid (RFC 1123)."""
    labels = host.split(".")
    if not HOST.fullmatch(host) or len(host) > 253 or any(len(label) > 63 for label in labels):
        raise ValueError("Write a host name such as apps.example.org.")
    return host.lower()


def quote(value: str) -> str:
    r"""Return the value, quoted so that Dokploy passes it on unchanged. An error's message never contains the value.

    Dokploy v0.30.2 parses the text with the dotenv package, whose quotes are ', ` and ". It behaves as follows:

    - Quotes cannot be escaped, and a backslash before the closing quote hides that quote.
    - In double quotes, \n and \r become line breaks.
    - A carriage return at the end of a line is dropped.
    - ${{...}} is replaced by the value of another variable, even inside quotes.
    """
    if "\0" in value or "\r" in value:
        raise ValueError("The value can't contain a NUL character or a carriage return.")
    if _SURROGATE.search(value):
        raise ValueError("The value contains an incomplete character. Enter it again.")
    if "${{" in value:
        raise ValueError("The value can't contain “${{”, because Dokploy would replace it.")
    if value.endswith("\\"):
        if _NEEDS_NO_QUOTES.fullmatch(value):
            return value
        raise ValueError("This value can't end with a backslash, because Dokploy would misread it.")
    if "'" not in value:
        return f"'{value}'"
    if "`" not in value:
        return f"`{value}`"
    if '"' not in value and "\\n" not in value and "\\r" not in value:
        return f'"{value}"'
    raise ValueError("Dokploy can't store this combination of quotes. Leave out one kind of quote.")


def dotenv(pairs: Iterable[tuple[str, str]]) -> str:
    """Return the environment variables as the text of a dotenv file. `quote` describes how Dokploy parses it."""
    return "".join(f"{key}={quote(value)}\n" for key, value in pairs)
