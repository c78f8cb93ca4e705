"""Environment text as Dokploy reads it: the grammar of the `dotenv` package, then `${{…}}` references."""

import re

# From dotenv 16, lib/main.js. In JavaScript \w matches ASCII characters only.
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
    """A `${{…}}` reference to a variable that does not exist. The text is the line that Dokploy logs."""


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
    """Return the container's Env: `NAME=value` lines with the references replaced. Raises UnknownReference."""
    own = parse(service)
    scopes = {"project": parse(project), "environment": parse(environment), "service": own}
    resolved = []
    for name, value in own.items():
        for scope, pattern, error in REFERENCES:
            value = replace_references(value, pattern, scopes[scope], error)
        resolved.append(f"{name}={value}")
    return resolved


def replace_references(value: str, pattern: re.Pattern[str], variables: dict[str, str], error: str) -> str:
    def variable(match: re.Match[str]) -> str:
        if match[1] not in variables:
            raise UnknownReference(error + match[1])
        return variables[match[1]]

    return pattern.sub(variable, value)
