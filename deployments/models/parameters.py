"""The parameters of a template: the values that a user enters. Each becomes an environment variable of the stack."""

from dataclasses import dataclass
from typing import Any

from django import forms
from django.core.exceptions import ValidationError

from ..engine import validation

TYPES = ("text", "integer", "boolean", "choice", "secret")
LONGEST_VALUE = 2000


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter as a template defines it."""

    key: str
    label: str = ""
    type: str = "text"
    default: Any = None
    help: str = ""
    required: bool = False
    choices: tuple[str, ...] = ()
    min: int | None = None
    max: int | None = None

    @classmethod
    def load(cls, entry: dict[str, Any]) -> "Parameter":
        """Return the parameter of a stored, validated entry."""
        return cls(**{**entry, "choices": tuple(entry.get("choices") or ())})

    @classmethod
    def parse(cls, entry: Any) -> "Parameter":
        """Return the parameter that a JSON object defines. Raise ValidationError with the reason if it is invalid."""
        if not isinstance(entry, dict) or not isinstance(entry.get("key"), str):
            raise ValidationError("Every parameter must be an object with a key.")
        key = entry["key"]
        if not validation.ENV_KEY.fullmatch(key):
            raise ValidationError(f"“{key[:60]}” is not a valid environment variable name.")
        if unknown := sorted(str(name) for name in entry.keys() - set(cls.__slots__)):
            raise ValidationError(f"{key}: unknown property “{unknown[0][:60]}”.")
        for names, kinds, rule in PROPERTY_RULES:
            if not all(isinstance(entry[name], kinds) for name in names if name in entry):
                raise ValidationError(f"{key}: {rule}")
        parameter = cls.load(entry)
        parameter.clean()
        return parameter

    def clean(self) -> None:
        """Raise ValidationError when the type is unknown or the properties contradict each other."""
        if self.type not in TYPES:
            raise ValidationError(f"{self.key}: the type must be one of {', '.join(TYPES)}.")
        if self.type == "choice" and (not self.choices or not all(isinstance(each, str) for each in self.choices)):
            raise ValidationError(f"{self.key}: a choice needs a list of strings as choices.")
        if self.type == "secret" and self.default:
            raise ValidationError(f"{self.key}: a secret has no default, because every user could read it.")
        if self.default not in (None, ""):
            try:
                self.field().clean(self.default)
            except ValidationError as error:
                raise ValidationError(f"{self.key}: the default is invalid. {' '.join(error.messages)}") from None

    def field(self) -> forms.Field:
        """Return the form field that reads and checks a value; form and API use the same one."""
        common: dict[str, Any] = {
            "label": self.label or self.key,
            "help_text": self.help,
            "initial": self.default,
            "required": bool(self.required),
        }
        if self.type == "integer":
            return forms.IntegerField(**common, min_value=self.min, max_value=self.max)
        if self.type == "boolean":
            return StrictBooleanField(**{**common, "required": False})
        if self.type == "choice":
            return forms.ChoiceField(**common, choices=[(choice, choice) for choice in self.choices])
        secret = self.type == "secret"
        widget = forms.PasswordInput(attrs={"autocomplete": "off"}) if secret else forms.TextInput()
        return forms.CharField(
            **common, max_length=LONGEST_VALUE, widget=widget, strip=False, validators=[_validate_value]
        )


PROPERTY_RULES: tuple[tuple[tuple[str, ...], Any, str], ...] = (
    (("label", "help"), str, "label and help must be text."),
    (("min", "max"), int | None, "min and max must be whole numbers."),
    (("choices",), list | None, "a choice needs a list of strings as choices."),
    (("default",), str | int | float | bool | None, "the default must be a single value."),
)


def validate_parameters(schema: Any) -> None:
    """Raise ValidationError unless the value is a list of parameters with distinct keys."""
    if not isinstance(schema, list):
        raise ValidationError("Write the parameters as a list.")
    keys = set()
    for parameter in map(Parameter.parse, schema):
        if parameter.key in keys:
            raise ValidationError(f"“{parameter.key[:60]}” is defined twice.")
        keys.add(parameter.key)


class StrictBooleanField(forms.BooleanField):
    """A field for true and false as JSON and forms write them. It refuses every other word."""

    def to_python(self, value: Any) -> bool:
        if value is not None and str(value).lower() not in ("true", "false", "on", "off", "1", "0", ""):
            raise ValidationError("Write true or false.")
        return super().to_python(False if str(value).lower() == "off" else value)


def _validate_value(value: str) -> None:
    try:
        validation.quote(value)
    except ValueError as error:
        raise ValidationError(str(error)) from None
