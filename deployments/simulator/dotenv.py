"""Environment text as Dokploy reads it: the `dotenv` package's grammar, then `${{…}}` references."""

import re

# dotenv 16, lib/main.js; \w is ASCII in JavaScript.
LINE = re.compile(
    r"""^\s*(?:export\s+)?([A-Za-z0-9_.-]+)(?:\s*=\s*?|:\s+?)"""
    r"""(\s*'(?:\\'|[^'])*'|\s*"(?:\\"|[^"])*"|\s*`(?:\\`|[^`])*`|[^#\r\n]+)?\s*(?:#.*)?$""",
    re.MULTILINE,
)
QUOTED = re.compile(r"""^(['"`])([\s\S]*)\1$""", re.MULTILINE)
REFERENCES = (
    ("project", re.compile(r"\$\{\{project\.(.*?)\}\}"), "Invalid project environment variable: project."),
    (
        "environment",
        re.compile(r"\$\{\{environment\.(.*?)\}\}"),
        "Invalid environment variable: environment.",
    ),
    ("service", re.compile(r"\$\{\{(.*?)\}\}"), "Invalid service environment variable: "),
)


class UnknownReference(Exception):
    """A `${{…}}` that names no variable; the text is Dokploy's log line."""


def parse(text: str | None) -> dict[str, str]:
    variables = {}
    for match in LINE.finditer(re.sub(r"\r\n?", "\n", text or "")):
        value = (match[2] or "").strip()
        quote = value[:1]
        value = QUOTED.sub(lambda found: found[2], value)
        if quote == '"':
            value = value.replace("\\n", "\n").replace("\\r", "\r")
        variables[match[1]] = value
    return variables


def resolve(service: str | None, project: str | None, environment: str | None) -> list[str]:
    """The container's Env: `NAME=value` lines with the references replaced."""
    own = parse(service)
    scopes = {"project": parse(project), "environment": parse(environment), "service": own}
    resolved = []
    for name, value in own.items():
        for scope, pattern, complaint in REFERENCES:
            value = replaced(value, pattern, scopes[scope], complaint)
        resolved.append(f"{name}={value}")
    return resolved


def replaced(value: str, pattern: re.Pattern[str], variables: dict[str, str], complaint: str) -> str:
    def look_up(match: re.Match[str]) -> str:
        if match[1] not in variables:
            raise UnknownReference(complaint + match[1])
        return variables[match[1]]

    return pattern.sub(look_up, value)
