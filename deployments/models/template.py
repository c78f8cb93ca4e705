from typing import Any

from django import forms
from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models

from .. import encryption
from ..engine import validation
from .parameters import Parameter, validate_parameters
from .refusal import Refusal


def _validate_image(image: str) -> None:
    try:
        validation.validate_image(image, settings.STACK_REGISTRIES)
    except ValueError as error:
        raise ValidationError(str(error)) from None


def _validate_path(path: str) -> None:
    if not path.startswith("/") or not path.isascii() or not path.isprintable() or " " in path:
        raise ValidationError("Write a path such as /health.")


class Template(models.Model):
    """What can be deployed: an image, its port, parameters, health check and limits."""

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
            "The values that a user enters; each becomes an environment variable. A list such as "
            '[{"key": "GREETING", "label": "Greeting", "type": "text", "default": "Hello", "required": true}]. '
            "Types: text, integer (min, max), boolean, choice (choices), secret."
        ),
    )
    registry = models.CharField(max_length=255, blank=True, help_text="Host of a private registry, for its login.")
    registry_username = models.CharField(max_length=255, blank=True)
    registry_password_encrypted = models.TextField(blank=True, editable=False, db_column="registry_password_locked")
    memory_bytes = models.PositiveBigIntegerField(null=True, blank=True)
    cpus = models.FloatField(null=True, blank=True, validators=[MinValueValidator(0.01)])
    health_path = models.CharField(max_length=200, default="/", validators=[_validate_path])
    health_interval = models.FloatField(default=5.0, validators=[MinValueValidator(0.1), MaxValueValidator(60)])
    health_timeout = models.FloatField(default=60.0, validators=[MinValueValidator(1), MaxValueValidator(600)])
    public = models.BooleanField(default=True, help_text="Also for anonymous users, where they are allowed.")
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
            text = "The template's registry password can't be decrypted. An operator must enter it again."
            raise Refusal("PAUSED", text) from None

    @registry_password.setter
    def registry_password(self, value: str) -> None:
        self.registry_password_encrypted = encryption.encrypt(value)

    @classmethod
    def follow_settings(cls) -> None:
        """Create or update the first template from the settings STACK_*. In the demo, also create two more.

        One of these two always fails.
        """
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
                            "help": "The container gets it as an environment variable.",
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
                    "description": "Its image cannot be pulled. See how a failure is explained and undone.",
                    "image": "registry.invalid/broken:1",
                    "position": 9,
                },
            )

    @classmethod
    def offered_to(cls, user: Any) -> models.QuerySet["Template"]:
        """Return the templates that this user may deploy. An anonymous user gets the public ones."""
        offered = cls.objects.filter(active=True)
        return offered if user.is_authenticated else offered.filter(public=True)

    def form_fields(self) -> dict[str, forms.Field]:
        """Return the parameters as form fields, by key. Form and API use the same fields."""
        return {parameter.key: parameter.field() for parameter in map(Parameter.load, self.parameters)}

    def clean_answers(self, answers: dict[str, Any]) -> dict[str, Any]:
        """Return the user's values by key, validated and typed. Raise Refusal INVALID_PARAMETER, naming the field."""
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
