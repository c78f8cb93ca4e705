"""The forms, and the validation of parameters that they share with the API and the command line."""

import hashlib
import secrets
from typing import Any

from django import forms
from django.contrib.auth.forms import AuthenticationForm
from django.core.cache import cache
from django.core.exceptions import ValidationError

from .models import Deployment, DeploymentRequest, Refusal, Stack, Template

LOCK_SECONDS = 15 * 60
MAX_TRIES = 5
UNREADABLE_SECRET = "The stored value can't be decrypted. Enter it again."  # noqa: S105


def read_parameters(template: Template, given: dict[str, Any], stack: Stack | None = None) -> dict[str, Any]:
    """Return the validated parameters, with the template's types and defaults.

    given: values by key, as in JSON. stack: if it exists, its values are kept for keys that are not given, and for
    secrets that are empty. Raise Refusal INVALID_PARAMETER for an invalid value or unknown key, and CONFLICT when a
    secret is to be kept but can't be decrypted; both name the field.
    """
    fields, secret_keys = template.form_fields(), template.secret_keys()
    stored, unreadable = (stack.parameters(template), stack.unreadable_secrets(template)) if stack else ({}, set())
    if unknown := sorted(given.keys() - fields.keys()):
        raise Refusal("INVALID_PARAMETER", f"The template has no parameter “{unknown[0][:60]}”.", field=unknown[0][:60])
    empty_secrets = {key for key in secret_keys if not given.get(key)}
    for key in sorted(empty_secrets & unreadable):
        raise Refusal("CONFLICT", f"{fields[key].label}: {UNREADABLE_SECRET}", field=key)
    kept = {key: value for key, value in stored.items() if key in empty_secrets or key not in given}
    return template.clean_answers({**given, **kept})


class DeployForm(forms.Form):
    """A name, a template, and the parameters of every template that the user may deploy.

    A parameter's field is named <slug>-<key>. Only the parameters of the selected template are read.
    """

    name = forms.CharField(max_length=30, required=False)
    template = forms.ModelChoiceField(Template.objects.none(), to_field_name="slug", empty_label=None)
    idempotency_key = forms.CharField(widget=forms.HiddenInput, required=False, max_length=64)
    stack: Stack | None = None

    def __init__(self, user: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.user = user
        self.templates = self.load_templates()
        choice = self.fields["template"]
        assert isinstance(choice, forms.ModelChoiceField)
        choice.queryset = Template.objects.filter(pk__in=[template.pk for template in self.templates])
        choice.initial = self.templates[0].slug if self.templates else None
        self.fields["idempotency_key"].initial = secrets.token_hex(16)
        for template in self.templates:
            for key, field in template.form_fields().items():
                field.required = False  # clean() validates the parameters of the selected template only
                self.fields[f"{template.slug}-{key}"] = field

    def load_templates(self) -> list[Template]:
        return list(Template.offered_to(self.user))

    def cards(self) -> list[dict[str, Any]]:
        """Return the context of the template cards, each with its parameters' fields."""
        selected = self["template"].value()
        return [
            {
                "slug": template.slug,
                "name": template.name,
                "icon": template.icon,
                "description": template.description,
                "selected": template.slug == selected,
                "fields": [self[f"{template.slug}-{key}"] for key in template.form_fields()],
            }
            for template in self.templates
        ]

    def clean_name(self) -> str:
        name = str(self.cleaned_data["name"]).strip()
        try:
            return Stack.validate_name(name)
        except Refusal as refusal:
            raise ValidationError(refusal.message) from None

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        template = cleaned.get("template")
        if template is not None:
            prefix = f"{template.slug}-"
            given = {key: cleaned.get(prefix + key) for key in template.form_fields() if prefix + key in cleaned}
            stack = self.stack or Stack.owned_by(self.user, cleaned.get("name", ""))
            try:
                cleaned["parameters"] = read_parameters(template, given, stack)
            except Refusal as refusal:
                field = f"{prefix}{refusal.field}"
                self.add_error(field if field in self.fields else None, refusal.message)
        return cleaned

    def deploy(self, address: str) -> Deployment | None:
        """Request the deployment and return it. Turn a Refusal into an error of the form, and return None."""
        try:
            return self.create_deployment(address)
        except Refusal as refusal:
            self.add_error(refusal.field if refusal.field in self.fields else None, refusal.message)
            return None

    def create_deployment(self, address: str) -> Deployment:
        request = DeploymentRequest(
            self.user,
            self.cleaned_data["template"],
            self.cleaned_data["parameters"],
            Deployment.Via.FORM,
            idempotency_key=self.cleaned_data["idempotency_key"] or None,
            address=address,
        )
        return request.deploy(self.cleaned_data["name"])


class RedeployForm(DeployForm):
    """The deploy form of an existing stack, with its present values. A secret that is left empty is kept."""

    stack: Stack

    def __init__(self, user: Any, stack: Stack, *args: Any, **kwargs: Any) -> None:
        self.stack = stack
        super().__init__(user, *args, **kwargs)
        del self.fields["name"]
        self.fields["template"].initial = stack.template.slug
        for template in self.templates:
            secret_keys, shown = template.secret_keys(), stack.parameters(template, secrets=False)
            for key in stack.unreadable_secrets(template):
                field = self.fields[f"{template.slug}-{key}"]
                field.help_text = f"{field.help_text} {UNREADABLE_SECRET}".strip()
            for key, value in stack.parameters(template).items():
                field = self.fields[f"{template.slug}-{key}"]
                if key in shown and key not in secret_keys:
                    field.initial = value == "true" if isinstance(field, forms.BooleanField) else value
                elif value and key in secret_keys:
                    field.help_text = f"{field.help_text} Leave empty to keep the stored value.".strip()

    def load_templates(self) -> list[Template]:
        """Return the templates that the user may deploy, and the stack's own, even if it is no longer one of them."""
        templates = super().load_templates()
        return templates if self.stack.template in templates else [self.stack.template, *templates]

    def create_deployment(self, address: str) -> Deployment:
        template, parameters = self.cleaned_data["template"], self.cleaned_data["parameters"]
        return DeploymentRequest(self.user, template, parameters, Deployment.Via.FORM).redeploy(self.stack)


class RemoveForm(forms.Form):
    """The confirmation of a removal: the user types the stack's name, unless only leftovers exist."""

    name = forms.CharField(max_length=30, required=False)

    def __init__(self, stack: Stack, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stack = stack

    def clean_name(self) -> str:
        name = str(self.cleaned_data["name"]).strip()
        if name != self.stack.name and not self.stack.is_unwanted():
            raise ValidationError(f"To remove the stack, type its name: {self.stack.name}")
        return name


class LoginForm(AuthenticationForm):
    """Django's login form, which allows a client address MAX_TRIES wrong passwords per account in LOCK_SECONDS."""

    def clean(self) -> dict[str, Any]:
        address = getattr(self.request, "address", "")
        account = str(self.data.get("username", "")).lower()
        key = f"login:{hashlib.sha256(f'{address} {account}'.encode()).hexdigest()}"
        if cache.get(key, 0) >= MAX_TRIES:
            raise ValidationError("Too many wrong passwords. Try again in 15 minutes.", code="locked")
        try:
            cleaned = super().clean()
        except ValidationError:
            cache.add(key, 0, LOCK_SECONDS)
            cache.incr(key)
            raise
        cache.delete(key)
        return cleaned
