import re
import secrets
from datetime import timedelta
from math import inf
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

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 60, 6 * 3600  # before the sweeper tries again
STACK_ID = re.compile(r"stk_[0-9a-f]{20}")


def host_of(url: str) -> str:
    """Return the URL's host name in lower case."""
    return (urlsplit(url).hostname or "").lower()


def new_stack_id() -> str:
    return f"stk_{secrets.token_hex(10)}"


class StackQuerySet(models.QuerySet["Stack"]):
    def existing(self) -> "StackQuerySet":
        return self.exclude(state=Stack.State.GONE)

    def visible_to(self, user: Any) -> "StackQuerySet":
        """Return the stacks that this user may list. Anonymous stacks are listed for operators only."""
        if not user.is_authenticated:
            return self.none()
        return self if user.is_staff else self.filter(owner=user)

    def to_be_removed(self) -> list["Stack"]:
        """Return the stacks that the sweeper is to remove now: expired ones, and those of which only leftovers exist.

        The pause after a failed removal grows with each attempt, up to six hours.
        """
        candidates = self.filter(Q(state=Stack.State.BROKEN) | Q(state=Stack.State.LIVE, expires_at__lt=Now()))
        return [stack for stack in candidates if stack.is_to_be_removed()]


class Stack(models.Model):
    """What a user owns: a name, an address, an expiry. The name is reserved while the stack exists."""

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
        """Return this user's stack of that name. An anonymous user owns none."""
        if not user.is_authenticated or user.username == settings.OPEN_USERNAME:
            return None
        return cls.objects.existing().filter(owner=user, name=name).first()

    @staticmethod
    def validate_name(name: str) -> str:
        """Return the name if a stack may have it. Raise Refusal INVALID_NAME otherwise."""
        try:
            validation.validate_name(name, settings.STACK_RESERVED_NAMES)
        except ValueError as error:
            raise Refusal("INVALID_NAME", str(error), field="name") from None
        reserved = {*(host.lower() for host in settings.ALLOWED_HOSTS), host_of(settings.DOKPLOY_URL)}
        if host_of(Stack.address_of(name)) in reserved:  # the portal's own host, or Dokploy's
            raise Refusal("INVALID_NAME", "This name is reserved. Choose another.", field="name")
        return name

    @classmethod
    def require_quota(cls, user: Any, address: str | None) -> float:
        """Return how many stacks this user may still create. Raise Refusal QUOTA when none.

        address: the client's, by which anonymous users are told apart. Operators have no limit.
        """
        if user.is_staff:
            return inf
        stacks = cls.objects.existing().filter(owner=user)
        if user.username == settings.OPEN_USERNAME:
            if stacks.count() >= settings.PORTAL_OPEN_QUOTA:
                raise Refusal("QUOTA", "The limit for anonymous stacks is reached. Sign in.", retry_after=3600)
            stacks = stacks.filter(requested_from=address)
        remaining = settings.PORTAL_QUOTA - stacks.count()
        if remaining <= 0:
            text = f"The limit is {settings.PORTAL_QUOTA} stacks. Remove one first."
            raise Refusal("QUOTA", text, retry_after=3600)
        return float(remaining)

    @staticmethod
    def address_of(name: str) -> str:
        """Return the URL that a stack of this name gets."""
        return str(settings.STACK_URL).replace("{name}", name)

    def require_idle(self) -> None:
        """Raise Refusal BUSY while a deployment is in progress, NOT_FOUND when the stack is gone."""
        if self.state == self.State.GONE:
            raise Refusal("NOT_FOUND", f"“{self.name}” has been removed.")
        deployment = self.deployments.in_progress().first()
        if deployment is not None:
            doing = "removed" if deployment.kind == deployment.Kind.REMOVE else "deployed"
            raise Refusal("BUSY", f"“{self.name}” is being {doing}. Wait until this has ended.", field="name")

    def parameters(self, template: Template, *, secrets: bool = True) -> dict[str, str]:
        """Return the values that the stack last had for this template: a redeployment keeps them by default.

        secrets: include the decrypted secrets. Such a result must not reach a page.
        """
        last = self._last_deployment(template)
        keys = template.form_fields().keys()
        if last is None:
            return {}
        values = last.stored_spec.environment() if secrets else last.spec.get("env", {})
        return {key: value for key, value in values.items() if key in keys}

    def unreadable_secrets(self, template: Template) -> set[str]:
        """Return the keys of stored secrets that can't be decrypted, and so can't be kept."""
        last = self._last_deployment(template)
        return set() if last is None or last.stored_spec.has_readable_secrets() else template.secret_keys()

    def _last_deployment(self, template: Template) -> Any:
        deployments = self.deployments.filter(template=template).exclude(kind="remove")
        return deployments.successful().first() or deployments.first()

    def is_to_be_removed(self) -> bool:
        """Return whether the sweeper is to remove this stack now."""
        expired = self.state == self.State.LIVE and self.expires_at is not None and self.expires_at < timezone.now()
        return (expired or self.is_unwanted()) and self.cleanup_is_due()

    def is_unwanted(self) -> bool:
        """Return whether only leftovers exist: of a stack that never worked, or whose removal was requested."""
        if self.state != self.State.BROKEN:
            return False
        last = self.deployments.first()
        return last is not None and (last.kind == last.Kind.REMOVE or not self.deployments.successful().exists())

    def cleanup_is_due(self) -> bool:
        """Return whether the pause after the last deployment is over. After a failure, it grows with each attempt."""
        last = self.deployments.first()
        if last is None or last.completed_at is None:
            return False
        if last.status == last.Status.SUCCESS:
            return True
        tries = self.deployments.filter(via=last.Via.SWEEPER).count()
        pause = min(FIRST_PAUSE_SECONDS * 4**tries, LONGEST_PAUSE_SECONDS)
        return bool(last.completed_at + timedelta(seconds=pause) < timezone.now())

    def settle(self, *, works: bool, template: Template | None) -> None:
        """Set the state after a deployment: live; broken while anything may be left; otherwise gone.

        works: whether the stack is running. template: the new one, if the deployment has changed it.
        """
        if works:
            state = self.State.LIVE
        elif self.external_resources.existing().exists():
            state = self.State.BROKEN
        else:
            state = self.State.GONE
        self.state, self.template = state, template or self.template
        self.save(update_fields=["state", "template"])
