"""The pages' forms, and the reading of parameters that form and API share."""

import hashlib
import secrets
from typing import Any

from django import forms
from django.contrib.auth.forms import AuthenticationForm
from django.core.cache import cache
from django.core.exceptions import ValidationError

from .models import Deployment, DeploymentRequest, Refusal, Stack, Template

LOCK_SECONDS = 15 * 60
TRIES = 5
LOST_SECRET = "The stored value can't be decrypted. Enter it again."  # noqa: S105


def read_parameters(template: Template, given: dict[str, Any], stack: Stack | None = None) -> dict[str, Any]:
    """Return the parameters, validated and typed, with defaults.

    given: values by key, as in JSON. stack: keeps its values for keys that are not given and for empty secrets.
    Raise Refusal INVALID_PARAMETER with the field, or CONFLICT when a kept secret can't be decrypted.
    """
    fields, secret = template.form_fields(), template.secret_keys()
    former, lost = (stack.parameters(template), stack.unreadable_secrets(template)) if stack else ({}, set())
    if unknown := sorted(given.keys() - fields.keys()):
        raise Refusal("INVALID_PARAMETER", f"The template has no parameter “{unknown[0][:60]}”.", field=unknown[0][:60])
    empty = {key for key in secret if not given.get(key)}
    for key in sorted(empty & lost):
        raise Refusal("CONFLICT", f"{fields[key].label}: {LOST_SECRET}", field=key)
    kept = {key: value for key, value in former.items() if key in empty or key not in given}
    return template.clean_answers({**given, **kept})


class DeployForm(forms.Form):
    """A name, a template, and the parameters of all offered templates, in fields named <slug>-<key>."""

    name = forms.CharField(max_length=30, required=False)
    template = forms.ModelChoiceField(Template.objects.none(), to_field_name="slug", empty_label=None)
    idempotency_key = forms.CharField(widget=forms.HiddenInput, required=False, max_length=64)
    stack: Stack | None = None

    def __init__(self, user: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.user = user
        self.offered = self.offer()
        self.fields["template"].queryset = Template.objects.filter(  # type: ignore[attr-defined]
            pk__in=[template.pk for template in self.offered]
        )
        self.fields["template"].initial = self.offered[0].slug if self.offered else None
        self.fields["idempotency_key"].initial = secrets.token_hex(16)
        for template in self.offered:
            for key, field in template.form_fields().items():
                field.required = False  # clean() checks the parameters of the chosen template
                self.fields[f"{template.slug}-{key}"] = field

    def offer(self) -> list[Template]:
        return list(Template.offered_to(self.user))

    def cards(self) -> list[dict[str, Any]]:
        chosen = self["template"].value()
        return [
            {
                "slug": template.slug,
                "name": template.name,
                "icon": template.icon,
                "description": template.description,
                "selected": template.slug == chosen,
                "fields": [self[f"{template.slug}-{key}"] for key in template.form_fields()],
            }
            for template in self.offered
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
        """Request the deployment. Return None, with the reason among the form's errors, if it is refused."""
        try:
            return self.request(address)
        except Refusal as refusal:
            self.add_error(refusal.field if refusal.field in self.fields else None, refusal.message)
            return None

    def request(self, address: str) -> Deployment:
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
    """The form for an existing stack, filled in with its values. A secret that is left empty keeps its value."""

    stack: Stack

    def __init__(self, user: Any, stack: Stack, *args: Any, **kwargs: Any) -> None:
        self.stack = stack
        super().__init__(user, *args, **kwargs)
        del self.fields["name"]
        self.fields["template"].initial = stack.template.slug
        for template in self.offered:
            secret, shown = template.secret_keys(), stack.parameters(template, secrets=False)
            for key in stack.unreadable_secrets(template):
                field = self.fields[f"{template.slug}-{key}"]
                field.help_text = f"{field.help_text} {LOST_SECRET}".strip()
            for key, value in stack.parameters(template).items():
                field = self.fields[f"{template.slug}-{key}"]
                if key in shown and key not in secret:
                    field.initial = value == "true" if isinstance(field, forms.BooleanField) else value
                elif value and key in secret:
                    field.help_text = f"{field.help_text} Leave it empty to keep the current value.".strip()

    def offer(self) -> list[Template]:
        """Return the offered templates, and the stack's own even if it is no longer offered."""
        offered = super().offer()
        return offered if self.stack.template in offered else [self.stack.template, *offered]

    def request(self, address: str) -> Deployment:
        template, parameters = self.cleaned_data["template"], self.cleaned_data["parameters"]
        return DeploymentRequest(self.user, template, parameters, Deployment.Via.FORM).redeploy(self.stack)


class RemoveForm(forms.Form):
    """Confirms a removal by the stack's name, unless only leftovers of a failed deployment exist."""

    name = forms.CharField(max_length=30, required=False)

    def __init__(self, stack: Stack, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stack = stack

    def clean_name(self) -> str:
        name = str(self.cleaned_data["name"]).strip()
        if name != self.stack.name and not self.stack.is_unwanted():
            raise ValidationError(f"Type the name to remove it: {self.stack.name}")
        return name


class LoginForm(AuthenticationForm):
    """Django's login form, locked for a while after too many wrong passwords for one account from one address."""

    def clean(self) -> dict[str, Any]:
        address = getattr(self.request, "address", "")
        account = str(self.data.get("username", "")).lower()
        tries = f"login:{hashlib.sha256(f'{address} {account}'.encode()).hexdigest()}"
        if cache.get(tries, 0) >= TRIES:
            raise ValidationError("Too many wrong passwords. Try again in 15 minutes.", code="locked")
        try:
            cleaned = super().clean()
        except ValidationError:
            cache.add(tries, 0, LOCK_SECONDS)
            cache.incr(tries)
            raise
        cache.delete(tries)
        return cleaned
