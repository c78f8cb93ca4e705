from typing import Any

from django import forms
from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models

from .. import encryption
from ..engine import validation
from .refusal import Refusal

PARAMETER_FIELDS = {"key", "label", "type", "default", "help", "required", "choices", "min", "max"}
PARAMETER_TYPES = ("text", "integer", "boolean", "choice", "secret")


def validate_parameters(schema: Any) -> None:
    """A template's parameters: a list of {"key", "label", "type", "default"?, "help"?, "required"?, "choices"?}."""
    if not isinstance(schema, list):
        raise ValidationError("Write the parameters as a list.")
    keys = set()
    for entry in schema:
        if not isinstance(entry, dict) or not isinstance(entry.get("key"), str):
            raise ValidationError("Every parameter is an object with a key.")
        name = entry["key"]
        if unknown := sorted(set(entry) - PARAMETER_FIELDS):
            raise ValidationError(f"{name[:60]}: there is no “{str(unknown[0])[:60]}” of a parameter.")
        if not validation.ENV_KEY.fullmatch(name) or name in keys:
            raise ValidationError(f"“{name[:60]}” is no name of a variable, or is there twice.")
        keys.add(name)
        kind = entry.get("type", "text")
        if kind not in PARAMETER_TYPES:
            raise ValidationError(f"{name}: the type is one of {', '.join(PARAMETER_TYPES)}.")
        if not all(isinstance(entry.get(field, ""), str) for field in ("label", "help")):
            raise ValidationError(f"{name}: label and help are text.")
        if not all(isinstance(entry.get(field, 0), int | None) for field in ("min", "max")):
            raise ValidationError(f"{name}: min and max are whole numbers.")
        choices = entry.get("choices") if kind == "choice" else [""]
        if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
            raise ValidationError(f"{name}: a choice needs a list of choices, each a text.")
        if kind == "secret" and entry.get("default"):
            raise ValidationError(f"{name}: a secret has no default, for everybody could read it.")
        _validate_default(name, entry)


def _validate_default(name: str, entry: dict[str, Any]) -> None:
    """A default has to pass what the person's own value has to."""
    default = entry.get("default")
    if isinstance(default, dict | list):
        raise ValidationError(f"{name}: the default is a single value.")
    if default not in (None, ""):
        try:
            _field(entry).clean(default)
        except ValidationError as error:
            raise ValidationError(f"{name}: the default does not fit. {' '.join(error.messages)}") from None


def _validate_image(image: str) -> None:
    try:
        validation.validate_image(image, settings.STACK_REGISTRIES)
    except ValueError as error:
        raise ValidationError(str(error)) from None


def _validate_path(path: str) -> None:
    if not path.startswith("/") or not path.isascii() or not path.isprintable() or " " in path:
        raise ValidationError("Write a path such as /health.")


class Template(models.Model):
    """What can be deployed. The first one comes from STACK_* and follows those settings."""

    slug = models.SlugField(max_length=40, unique=True)
    name = models.CharField(max_length=60)
    icon = models.CharField(max_length=8, default="📦")
    description = models.CharField(max_length=200, blank=True)
    image = models.CharField(max_length=255, validators=[_validate_image])
    port = models.PositiveIntegerField(default=8080, validators=[MinValueValidator(1), MaxValueValidator(65535)])
    parameters = models.JSONField(
        default=list,
        blank=True,
        validators=[validate_parameters],
        help_text=(
            "What a person fills in; each becomes an environment variable. A list such as "
            '[{"key": "GREETING", "label": "Greeting", "type": "text", "default": "Hello", "required": true}]. '
            "Types: text, integer (min, max), boolean, choice (choices), secret."
        ),
    )
    registry = models.CharField(max_length=255, blank=True, help_text="Address of a private registry, for its login.")
    registry_username = models.CharField(max_length=255, blank=True)
    registry_password_encrypted = models.TextField(blank=True, editable=False, db_column="registry_password_locked")
    memory_bytes = models.PositiveBigIntegerField(null=True, blank=True)
    cpus = models.FloatField(null=True, blank=True, validators=[MinValueValidator(0.01)])
    health_path = models.CharField(max_length=200, default="/", validators=[_validate_path])
    health_interval = models.FloatField(default=5.0, validators=[MinValueValidator(0.1), MaxValueValidator(60)])
    health_timeout = models.FloatField(default=60.0, validators=[MinValueValidator(1), MaxValueValidator(600)])
    public = models.BooleanField(default=True, help_text="Also for people who did not sign in, where that is allowed.")
    active = models.BooleanField(default=True)
    from_settings = models.BooleanField(default=False, editable=False)
    position = models.PositiveIntegerField(default=0)

    class Meta:
        ordering = ["position", "name"]

    def __str__(self) -> str:
        return self.name

    @property
    def registry_password(self) -> str:
        try:
            return encryption.decrypt(self.registry_password_encrypted) or ""
        except encryption.DecryptionError:
            text = "The template's password for its registry cannot be read. An operator has to set it again."
            raise Refusal("PAUSED", text) from None

    @registry_password.setter
    def registry_password(self, value: str) -> None:
        self.registry_password_encrypted = encryption.encrypt(value)

    @classmethod
    def follow_settings(cls) -> None:
        """Makes the first template, or brings it in line with STACK_*. The demo has more, one of them to fail."""
        cls.objects.update_or_create(
            from_settings=True,
            defaults={
                "image": settings.STACK_IMAGE,
                "port": settings.STACK_PORT,
                "health_path": settings.STACK_HEALTH_PATH,
                "health_interval": settings.STACK_HEALTH_INTERVAL_SECONDS,
                "health_timeout": settings.STACK_HEALTH_TIMEOUT_SECONDS,
            },
            create_defaults={
                "slug": "stack",
                "name": "AI workspace",
                "icon": "🤖",
                "description": "A coding assistant in the browser, ready to use.",
                "image": settings.STACK_IMAGE,
                "port": settings.STACK_PORT,
                "health_path": settings.STACK_HEALTH_PATH,
                "health_interval": settings.STACK_HEALTH_INTERVAL_SECONDS,
                "health_timeout": settings.STACK_HEALTH_TIMEOUT_SECONDS,
                "from_settings": True,
            },
        )
        if settings.DEMO:
            cls.objects.get_or_create(
                slug="web-page",
                defaults={
                    "name": "Web page",
                    "icon": "🌐",
                    "description": "A small web server, with two settings to try.",
                    "image": "docker.io/library/caddy:2",
                    "port": 80,
                    "position": 1,
                    "parameters": [
                        {
                            "key": "GREETING",
                            "label": "Greeting",
                            "type": "text",
                            "default": "Hello!",
                            "help": "Handed to the container as an environment variable.",
                        },
                        {"key": "SHOW_CLOCK", "label": "Show a clock", "type": "boolean", "default": True},
                    ],
                },
            )
            cls.objects.get_or_create(
                slug="broken",
                defaults={
                    "name": "Broken on purpose",
                    "icon": "🧨",
                    "description": "Its image cannot be pulled: see a failure explained, and undone.",
                    "image": "registry.invalid/broken:1",
                    "position": 9,
                },
            )

    @classmethod
    def offered_to(cls, user: Any) -> models.QuerySet["Template"]:
        """What this person may deploy. Anonymous people, where they may deploy at all, get the public ones."""
        offered = cls.objects.filter(active=True)
        return offered if user.is_authenticated else offered.filter(public=True)

    def form_fields(self) -> dict[str, forms.Field]:
        """The parameters as form fields, by key. Form and API read them through the same ones."""
        return {entry["key"]: _field(entry) for entry in self.parameters}

    def clean_answers(self, answers: dict[str, Any]) -> dict[str, Any]:
        """The answers by key, checked and typed. Refusal INVALID_PARAMETER with the field that does not fit."""
        cleaned = {}
        for key, field in self.form_fields().items():
            value = answers.get(key, field.initial)
            if isinstance(value, dict | list):
                raise Refusal("INVALID_PARAMETER", f"{field.label}: write a single value.", field=key)
            try:
                cleaned[key] = field.clean(value)
            except ValidationError as error:
                raise Refusal("INVALID_PARAMETER", f"{field.label}: {' '.join(error.messages)}", field=key) from None
        return cleaned

    def secret_keys(self) -> set[str]:
        return {entry["key"] for entry in self.parameters if entry.get("type") == "secret"}


class StrictBooleanField(forms.BooleanField):
    """True or false, as JSON and forms have them; other words are refused instead of guessed at."""

    def to_python(self, value: Any) -> bool:
        if value is not None and str(value).lower() not in ("true", "false", "on", "off", "1", "0", ""):
            raise ValidationError("Write true or false.")
        return super().to_python(False if str(value).lower() == "off" else value)


def _field(entry: dict[str, Any]) -> forms.Field:
    common: dict[str, Any] = {
        "label": entry.get("label") or entry["key"],
        "help_text": entry.get("help", ""),
        "initial": entry.get("default"),
        "required": bool(entry.get("required", False)),
    }
    kind = entry.get("type", "text")
    if kind == "integer":
        return forms.IntegerField(**common, min_value=entry.get("min"), max_value=entry.get("max"))
    if kind == "boolean":
        return StrictBooleanField(**{**common, "required": False})
    if kind == "choice":
        return forms.ChoiceField(**common, choices=[(choice, choice) for choice in entry["choices"]])
    widget = forms.PasswordInput(attrs={"autocomplete": "off"}) if kind == "secret" else forms.TextInput()
    return forms.CharField(**common, max_length=2000, widget=widget, strip=False, validators=[_validate_value])


def _validate_value(value: str) -> None:
    try:
        validation.quote(value)
    except ValueError as error:
        raise ValidationError(str(error)) from None
