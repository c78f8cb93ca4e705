import re
import secrets
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now
from django.utils import timezone

from ..engine import validation
from .refusal import Refusal
from .template import Template

FIRST_SWEEP_SECONDS, LONGEST_SWEEP_SECONDS = 60, 6 * 3600
STACK_ID = re.compile(r"stk_[0-9a-f]{20}")


def new_stack_id() -> str:
    return f"stk_{secrets.token_hex(10)}"


class StackQuerySet(models.QuerySet["Stack"]):
    def existing(self) -> "StackQuerySet":
        return self.exclude(state=Stack.State.GONE)

    def visible_to(self, user: Any) -> "StackQuerySet":
        """What this person may list. Runs of people who did not sign in are never listed."""
        if not user.is_authenticated:
            return self.none()
        return self if user.is_staff else self.filter(owner=user)

    def to_be_removed(self) -> list["Stack"]:
        """What has expired, and what is left of stacks that are wanted no more: that never worked, or whose removal
        failed. After each failed try the next is later, up to a quarter of a day."""
        perhaps = self.filter(Q(state=Stack.State.BROKEN) | Q(state=Stack.State.LIVE, expires_at__lt=Now()))
        return [stack for stack in perhaps if stack.is_to_be_removed()]


class Stack(models.Model):
    """What a person owns: a name, an address, an expiry. The name is theirs while the stack exists."""

    class State(models.TextChoices):
        PENDING = "pending", "being deployed"
        LIVE = "live", "live"
        BROKEN = "broken", "not live, something may be left"
        GONE = "gone", "gone"

    id = models.CharField(primary_key=True, max_length=24, default=new_stack_id, editable=False)
    name = models.CharField(max_length=30)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="stacks")
    template = models.ForeignKey(Template, on_delete=models.PROTECT, related_name="stacks")
    host = models.CharField(max_length=253)
    url = models.URLField(max_length=300)
    state = models.CharField(max_length=10, choices=State.choices, default=State.PENDING)
    requested_from = models.GenericIPAddressField(null=True, blank=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = StackQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.UniqueConstraint(fields=["name"], condition=~Q(state="gone"), name="one_stack_of_a_name"),
            models.UniqueConstraint(fields=["host"], condition=~Q(state="gone"), name="one_stack_of_a_host"),
            models.CheckConstraint(condition=Q(state__in=["pending", "live", "broken", "gone"]), name="stack_state"),
        ]

    def __str__(self) -> str:
        return self.name

    @classmethod
    def owned_by(cls, user: Any, name: str) -> "Stack | None":
        """This person's stack of that name. Who did not sign in has none: what they deploy is everybody's."""
        if not user.is_authenticated or user.username == settings.OPEN_USERNAME:
            return None
        return cls.objects.existing().filter(owner=user, name=name).first()

    @staticmethod
    def validate_name(name: str) -> str:
        """The name if it may be a stack's; Refusal INVALID_NAME with a sentence if not."""
        try:
            validation.validate_name(name, settings.STACK_RESERVED_NAMES)
        except ValueError as error:
            raise Refusal("INVALID_NAME", str(error), field="name") from None
        own = {host.lower() for host in (*settings.ALLOWED_HOSTS, urlsplit(settings.DOKPLOY_URL).hostname or "")}
        if urlsplit(Stack.address_of(name)).hostname in own:  # the portal's, or Dokploy's
            raise Refusal("INVALID_NAME", "This name is reserved. Choose another.", field="name")
        return name

    @staticmethod
    def address_of(name: str) -> str:
        """The address that a stack of this name gets."""
        return str(settings.STACK_URL).replace("{name}", name)

    def require_idle(self) -> None:
        """Refusal where a run of it is under way, or it is gone."""
        if self.state == self.State.GONE:
            raise Refusal("NOT_FOUND", f"“{self.name}” is gone already.")
        deployment = self.deployments.in_progress().first()
        if deployment is not None:
            doing = "removed" if deployment.kind == deployment.Kind.REMOVE else "deployed"
            raise Refusal("BUSY", f"“{self.name}” is being {doing} right now. Wait until that is over.", field="name")

    def parameters(self, template: Template, *, secrets: bool = True) -> dict[str, str]:
        """What the stack was last given, for this template: what a redeploy keeps where nothing else is said.

        With secrets, which come in clear, it is not for pages; without, it is what was no secret then.
        """
        last = self._last_deployment(template)
        known = template.form_fields().keys()
        if last is None:
            return {}
        values = last.environment() if secrets else last.spec.get("env", {})
        return {key: value for key, value in values.items() if key in known}

    def unreadable_secrets(self, template: Template) -> set[str]:
        """Of these parameters those that cannot be read any more, as their key is lost, and so cannot be kept."""
        last = self._last_deployment(template)
        return set() if last is None or last.has_readable_secrets() else template.secret_keys()

    def _last_deployment(self, template: Template) -> Any:
        deployments = self.deployments.filter(template=template).exclude(kind="remove")
        return deployments.successful().first() or deployments.first()

    def is_to_be_removed(self) -> bool:
        """Whether the sweeper is to remove it now."""
        expired = self.state == self.State.LIVE and self.expires_at is not None and self.expires_at < timezone.now()
        return (expired or self.is_unwanted()) and self.cleanup_is_due()

    def is_unwanted(self) -> bool:
        """Whether nothing but leftovers is there: of a stack that never worked, or whose removal was asked for."""
        if self.state != self.State.BROKEN:
            return False
        last = self.deployments.first()
        return last is not None and (last.kind == last.Kind.REMOVE or not self.deployments.successful().exists())

    def cleanup_is_due(self) -> bool:
        """Whether the sweeper may try it now: a live one at once, what failed after a pause."""
        last = self.deployments.first()
        if last is None or last.completed_at is None:
            return False
        if last.status == last.Status.SUCCESS:
            return True
        tries = self.deployments.filter(via=last.Via.SWEEPER).count()
        pause = min(FIRST_SWEEP_SECONDS * 4**tries, LONGEST_SWEEP_SECONDS)
        return bool(last.completed_at + timedelta(seconds=pause) < timezone.now())

    def settle(self, *, works: bool, template: Template | None) -> None:
        """After a deployment: live; gone, its name free again; or, while anything may be left, broken.

        template: what it is now, where the run changed that.
        """
        if works:
            state = self.State.LIVE
        elif self.external_resources.exclude(state=ExternalResource.State.GONE).exists():
            state = self.State.BROKEN
        else:
            state = self.State.GONE
        self.state, self.template = state, template or self.template
        self.save(update_fields=["state", "template"])


class ExternalResource(models.Model):
    """One object that we made, or are about to make, at Dokploy."""

    class State(models.TextChoices):
        INTENDED = "intended", "about to be made"
        MADE = "made", "there"
        REMOVING = "removing", "removing"
        GONE = "gone", "gone, verified"
        LEFT = "left", "could not be removed"

    stack = models.ForeignKey(Stack, on_delete=models.PROTECT, related_name="external_resources")
    deployment = models.ForeignKey("Deployment", on_delete=models.PROTECT, related_name="external_resources")
    kind = models.CharField(max_length=20)
    mark = models.CharField(max_length=255)
    phase = models.CharField(max_length=30)
    external_id = models.CharField(max_length=64, blank=True)
    state = models.CharField(max_length=10, choices=State.choices, default=State.INTENDED)
    why = models.CharField(max_length=500, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        db_table = "deployments_receipt"
        default_permissions = ()
        permissions = [("view_receipt", "Can view external resource")]  # the codename that groups already hold
        ordering = ["id"]
        constraints = [
            models.UniqueConstraint(
                fields=["stack", "kind", "mark"], condition=~Q(state="gone"), name="one_receipt_of_a_mark"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.external_id or self.mark} ({self.state})"
