"""What a name, an image and an environment may look like. Strict here, whatever Dokploy checks."""

import re
from collections.abc import Iterable

NAME = re.compile(r"[a-z](?:[a-z0-9-]{1,28}[a-z0-9])")
RESERVED = frozenset(
    "admin api app assets auth blog cdn dashboard dns docs dokploy ftp help imap localhost login mail mx ns ns1 ns2 "
    "pop portal root smtp sso static status support system test traefik webmail www".split()
)

# docker/distribution, reference grammar: [domain[:port]/]path[:tag][@digest]
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HOST_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
IMAGE = re.compile(
    rf"(?:(?P<registry>(?:{_HOST_LABEL}(?:\.{_HOST_LABEL})+(?::[0-9]{{1,5}})?|{_HOST_LABEL}:[0-9]{{1,5}}|localhost))/)?"
    rf"(?P<path>{_COMPONENT}(?:/{_COMPONENT})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
ENV_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
PLAIN = re.compile(r"[!$-&(-_a-~][ !\"$-~]*")  # a value that needs no quotes: no quote at its start, no # in it
SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can hold half a character, UTF-8 cannot
HOST = re.compile(rf"{_HOST_LABEL}(?:\.{_HOST_LABEL})*")


def validate_name(name: str, reserved: Iterable[str] = ()) -> str:
    """Returns the name if it may be a stack's; raises ValueError with a sentence for the person who typed it."""
    if not name:
        raise ValueError("Type a name.")
    if not name.isascii():
        raise ValueError("Use plain letters a to z, digits and hyphens.")
    if name != name.lower():
        raise ValueError("Use lower-case letters only.")
    if not name[0].isalpha():
        raise ValueError("Begin with a letter.")
    if not 3 <= len(name) <= 30:
        raise ValueError("Use 3 to 30 characters.")
    if name.endswith("-"):
        raise ValueError("A hyphen cannot be the last character.")
    if not NAME.fullmatch(name):
        raise ValueError("Use letters a to z, digits and hyphens.")
    if name[2:4] == "--":
        raise ValueError("Two hyphens cannot stand in the third and fourth place.")  # RFC 5891, 4.2.3.1: xn-- and kin
    if name in RESERVED or name in set(reserved):
        raise ValueError("This name is reserved. Choose another.")
    return name


def validate_image(image: str, registries: Iterable[str] = ()) -> str:
    """Returns the image reference if it is well-formed and its registry allowed (no list: any); else ValueError."""
    match = IMAGE.fullmatch(image)
    if match is None or len(image) > 255:
        raise ValueError("Write the image as [registry/]name[:tag][@sha256:digest].")
    registry = match["registry"] or "docker.io"
    allowed = set(registries)
    if allowed and registry not in allowed:
        raise ValueError(f"Images may only come from {', '.join(sorted(allowed))}.")
    return image


def validate_host(host: str) -> str:
    """Returns the lower-case host name if it is one (RFC 1123); else ValueError."""
    labels = host.split(".")
    if not HOST.fullmatch(host) or len(host) > 253 or any(len(label) > 63 for label in labels):
        raise ValueError("Write a host name such as apps.example.org.")
    return host.lower()


def validate_env(pairs: Iterable[tuple[str, str]]) -> None:
    """Raises ValueError with a sentence when a variable cannot reach the container unchanged."""
    for key, value in pairs:
        if not ENV_KEY.fullmatch(key):
            raise ValueError(f"“{key[:40]}” is no name of an environment variable.")
        try:
            quote(value)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None


def quote(value: str) -> str:
    """Quotes one value so that Dokploy hands it on unchanged; ValueError with a sentence if none of the quotes can.

    Dokploy knows no escape for a quote, takes \\n and \\r in double quotes for line breaks, drops a CR at a line's
    end, and replaces ${{...}} even inside quotes (seen on v0.30.2). A backslash before the closing quote hides it.
    """
    if "\0" in value or "\r" in value:
        raise ValueError("The value cannot hold a NUL or a carriage return.")
    if SURROGATE.search(value):
        raise ValueError("The value holds half a character.")
    if "${{" in value:
        raise ValueError("The value cannot hold “${{”: Dokploy would replace it.")
    if value.endswith("\\"):
        if PLAIN.fullmatch(value):
            return value
        raise ValueError("The value ends in a backslash, which Dokploy would take together with the quote after it.")
    if "'" not in value:
        return f"'{value}'"
    if "`" not in value:
        return f"`{value}`"
    if '"' not in value and "\\n" not in value and "\\r" not in value:
        return f'"{value}"'
    raise ValueError("The value mixes quotes in a way that Dokploy cannot keep. Leave out one kind of quote.")


def dotenv(pairs: Iterable[tuple[str, str]]) -> str:
    """The pairs as the text of a dotenv file, every value quoted."""
    return "".join(f"{key}={quote(value)}\n" for key, value in pairs)
