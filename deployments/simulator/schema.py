"""Checks input and words the complaints as zod 4 does (as recorded from Dokploy v0.30.2)."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

MISSING = object()
Issue = dict[str, Any]


@dataclass(frozen=True)
class Field:
    """One input field. `presence`: required, present (null will do) or optional."""

    kind: str = "string"
    presence: str = "required"
    nullable: bool = False
    least: int | None = None
    most: int | None = None
    pattern: str | None = None
    options: tuple[str, ...] = ()
    shape: "Mapping[str, Field] | None" = None
    rule: Callable[[Any], str | None] | None = None
    messages: Mapping[str, str] = field(default_factory=dict)


def check(fields: Mapping[str, Field], given: Mapping[str, Any]) -> tuple[dict[str, Any], list[Issue]]:
    """The known fields of `given`, coerced, and what is wrong with them. Unknown fields are dropped."""
    values: dict[str, Any] = {}
    issues: list[Issue] = []
    for name, rules in fields.items():
        value = coerced(rules, given.get(name, MISSING))
        if value is MISSING and rules.presence == "optional":
            continue
        if value is MISSING and rules.presence == "present":
            message = "Invalid input: expected nonoptional, received undefined"
            issues.append({"code": "invalid_type", "expected": "nonoptional", "path": [name], "message": message})
            continue
        issues += complaints(rules, value, [name])
        values[name] = value
    return values, issues


def flattened(issues: list[Issue]) -> dict[str, Any]:
    """zod's flattenError: messages by the first part of their path."""
    errors: dict[str, list[str]] = {}
    for issue in issues:
        errors.setdefault(issue["path"][0], []).append(issue["message"])
    return {"formErrors": [], "fieldErrors": errors}


def coerced(rules: Field, value: Any) -> Any:
    """JavaScript's Number() and Boolean(), as the REST route applies them before validation."""
    if value is None and rules.nullable:
        return None
    if rules.kind == "boolean" and (value is not MISSING or rules.presence == "required"):
        return isinstance(value, list | dict) or (value is not MISSING and bool(value))
    if rules.kind == "number":
        if value is None or value == "":
            return 0
        if isinstance(value, bool):
            return int(value)
        if isinstance(value, str):
            try:
                number = float(value)
            except ValueError:
                return value
            return int(number) if number.is_integer() else number
    return value


def complaints(rules: Field, value: Any, path: list[str]) -> list[Issue]:
    if value is None and rules.nullable:
        return []
    if rules.options:
        if value in rules.options:
            return []
        expected = "|".join(f'"{option}"' for option in rules.options)
        message = f"Invalid option: expected one of {expected}"
        return [{"code": "invalid_value", "values": list(rules.options), "path": path, "message": message}]
    received = type_name(value)
    if rules.kind == "number" and received == "string":
        received = "NaN"
    expected_type = "object" if rules.kind == "object" else rules.kind
    if rules.kind != "any" and received != ("object" if rules.kind == "record" else expected_type):
        message = f"Invalid input: expected {expected_type}, received {received}"
        return [{"expected": expected_type, "code": "invalid_type", "path": path, "message": message}]
    if rules.kind == "object":
        return object_complaints(rules.shape or {}, value, path)
    if rules.kind == "record":
        return [issue for name, text in value.items() for issue in complaints(Field(), text, [*path, name])]
    return [*size_complaints(rules, value, path), *text_complaints(rules, value, path)]


def object_complaints(shape: Mapping[str, Field], value: dict[str, Any], path: list[str]) -> list[Issue]:
    issues = []
    for name, rules in shape.items():
        if name in value or rules.presence == "required":
            issues += complaints(rules, value.get(name, MISSING), [*path, name])
    unknown = [name for name in value if name not in shape]
    if unknown:
        keys = ", ".join(f'"{name}"' for name in unknown)
        message = f"Unrecognized key{'s' if len(unknown) > 1 else ''}: {keys}"
        issues.append({"code": "unrecognized_keys", "keys": unknown, "path": path, "message": message})
    return issues


def size_complaints(rules: Field, value: Any, path: list[str]) -> list[Issue]:
    if rules.least is None and rules.most is None:
        return []
    size = len(value) if isinstance(value, str) else value
    issue: Issue = {"origin": rules.kind, "inclusive": True, "path": path}
    expected = f"expected {rules.kind} to " + ("have " if rules.kind == "string" else "be ")
    unit = " characters" if rules.kind == "string" else ""
    if rules.least is not None and size < rules.least:
        message = rules.messages.get("too_small", f"Too small: {expected}>={rules.least}{unit}")
        return [{**issue, "code": "too_small", "minimum": rules.least, "message": message}]
    if rules.most is not None and size > rules.most:
        message = rules.messages.get("too_big", f"Too big: {expected}<={rules.most}{unit}")
        return [{**issue, "code": "too_big", "maximum": rules.most, "message": message}]
    return []


def text_complaints(rules: Field, value: Any, path: list[str]) -> list[Issue]:
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
    if value is MISSING:
        return "undefined"
    if value is None:
        return "null"
    names = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}
    return names[type(value)]
