"""Input validation with the rules and the messages of zod 4, as recorded from Dokploy v0.30.2."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

MISSING = object()
TYPE_NAMES = {
    type(None): "null",
    bool: "boolean",
    int: "number",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
}
Issue = dict[str, Any]


@dataclass(frozen=True)
class Field:
    """One input field.

    type: string, number, boolean, object, record (an object of strings) or any. presence: required, optional, or
    present, which also accepts null. minimum and maximum limit a number's value or a string's length.
    """

    type: str = "string"
    presence: str = "required"
    nullable: bool = False
    minimum: int | None = None
    maximum: int | None = None
    pattern: str | None = None
    options: tuple[str, ...] = ()
    shape: "Mapping[str, Field] | None" = None
    rule: Callable[[Any], str | None] | None = None
    messages: Mapping[str, str] = field(default_factory=dict)


def validate(fields: Mapping[str, Field], given: Mapping[str, Any]) -> tuple[dict[str, Any], list[Issue]]:
    """Return the coerced values of the known fields and the issues found. Unknown fields are dropped."""
    values: dict[str, Any] = {}
    issues: list[Issue] = []
    for name, rules in fields.items():
        value = coerce(rules, given.get(name, MISSING))
        if value is MISSING and rules.presence == "optional":
            continue
        if value is MISSING and rules.presence == "present":
            issues.append(type_issue("nonoptional", "undefined", [name]))
            continue
        issues += find_issues(rules, value, [name])
        values[name] = value
    return values, issues


def flatten_error(issues: list[Issue]) -> dict[str, Any]:
    """Group the messages by the first part of their path, as zod's flattenError does."""
    errors: dict[str, list[str]] = {}
    for issue in issues:
        errors.setdefault(issue["path"][0], []).append(issue["message"])
    return {"formErrors": [], "fieldErrors": errors}


def coerce(rules: Field, value: Any) -> Any:
    """Apply JavaScript's Number() or Boolean(), as Dokploy's REST routes do before they validate."""
    if value is None and rules.nullable:
        return None
    if rules.type == "boolean" and (value is not MISSING or rules.presence == "required"):
        return isinstance(value, list | dict) or (value is not MISSING and bool(value))
    return to_number(value) if rules.type == "number" else value


def to_number(value: Any) -> Any:
    """Convert a value as JavaScript's Number() does. Return it unchanged where the result would be NaN."""
    if value is None or value == "":
        return 0
    if isinstance(value, bool):
        return int(value)
    if not isinstance(value, str):
        return value
    try:
        number = float(value)
    except ValueError:
        return value
    return int(number) if number.is_integer() else number


def find_issues(rules: Field, value: Any, path: list[str]) -> list[Issue]:
    if value is None and rules.nullable:
        return []
    if rules.options:
        return option_issues(rules.options, value, path)
    received = type_name(value)
    if rules.type == "number" and received == "string":
        received = "NaN"
    if rules.type != "any" and received != ("object" if rules.type == "record" else rules.type):
        return [type_issue(rules.type, received, path)]
    if rules.type == "object":
        return object_issues(rules.shape or {}, value, path)
    if rules.type == "record":
        return [issue for name, text in value.items() for issue in find_issues(Field(), text, [*path, name])]
    return [*size_issues(rules, value, path), *text_issues(rules, value, path)]


def type_issue(expected: str, received: str, path: list[str]) -> Issue:
    message = f"Invalid input: expected {expected}, received {received}"
    return {"expected": expected, "code": "invalid_type", "path": path, "message": message}


def option_issues(options: tuple[str, ...], value: Any, path: list[str]) -> list[Issue]:
    if value in options:
        return []
    expected = "|".join(f'"{option}"' for option in options)
    message = f"Invalid option: expected one of {expected}"
    return [{"code": "invalid_value", "values": list(options), "path": path, "message": message}]


def object_issues(shape: Mapping[str, Field], value: dict[str, Any], path: list[str]) -> list[Issue]:
    issues = []
    for name, rules in shape.items():
        if name in value or rules.presence == "required":
            issues += find_issues(rules, value.get(name, MISSING), [*path, name])
    unknown = [name for name in value if name not in shape]
    if unknown:
        keys = ", ".join(f'"{name}"' for name in unknown)
        message = f"Unrecognized key{'s' if len(unknown) > 1 else ''}: {keys}"
        issues.append({"code": "unrecognized_keys", "keys": unknown, "path": path, "message": message})
    return issues


def size_issues(rules: Field, value: Any, path: list[str]) -> list[Issue]:
    if rules.minimum is None and rules.maximum is None:
        return []
    size = len(value) if isinstance(value, str) else value
    issue: Issue = {"origin": rules.type, "inclusive": True, "path": path}
    expected = f"expected {rules.type} to " + ("have " if rules.type == "string" else "be ")
    unit = " characters" if rules.type == "string" else ""
    if rules.minimum is not None and size < rules.minimum:
        message = rules.messages.get("too_small", f"Too small: {expected}>={rules.minimum}{unit}")
        return [{**issue, "code": "too_small", "minimum": rules.minimum, "message": message}]
    if rules.maximum is not None and size > rules.maximum:
        message = rules.messages.get("too_big", f"Too big: {expected}<={rules.maximum}{unit}")
        return [{**issue, "code": "too_big", "maximum": rules.maximum, "message": message}]
    return []


def text_issues(rules: Field, value: Any, path: list[str]) -> list[Issue]:
    if rules.pattern is not None and not re.fullmatch(rules.pattern, value):
        return [
            {
                "origin": "string",
                "code": "invalid_format",
                "format": "regex",
                "pattern": f"/^{rules.pattern}$/",
                "path": path,
                "message": rules.messages["invalid_format"],
            }
        ]
    message = rules.rule(value) if rules.rule else None
    return [{"code": "custom", "path": path, "message": message}] if message else []


def type_name(value: Any) -> str:
    return "undefined" if value is MISSING else TYPE_NAMES[type(value)]
