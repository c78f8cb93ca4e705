import secrets
from contextlib import suppress
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import InterfaceError, InternalError, OperationalError, models, transaction
from django.db.models import ExpressionWrapper, F, Q
from django.db.models.functions import Now
from django.utils import timezone

from ..engine import failures
from ..engine.errors import Cancelled, Interrupted
from ..engine.recipe import PHASES, RESTORE, TITLES, UNCHANGED
from ..engine.records import Records
from ..engine.spec import Progress, Resources, StackSpec
from ..realtime import pubsub
from . import wire
from .external_resource import ExternalResource
from .refusal import Refusal
from .stack import Stack
from .stored_spec import StoredSpec
from .template import Template

# Raised by Django while the database is unavailable, or after PostgreSQL ended a session idle in a transaction.
DATABASE_AWAY = (OperationalError, InterfaceError, InternalError)
LEASE_SECONDS = 30
MAX_CRASHES = 5  # a deployment fails after this many crashes of its worker
RESUMABLE = {"project_id", "environment_id", "application_id", "app_name"}  # a retry needs them to start halfway


class LeaseLost(Interrupted):
    """This worker no longer holds the lease, or the deployment has ended. Stop and write nothing."""


def new_deployment_id() -> str:
    """Return an id with 128 random bits: for an anonymous deployment it is the only credential."""
    return f"dep_{secrets.token_hex(16)}"


class DeploymentQuerySet(models.QuerySet["Deployment"]):
    def visible_to(self, user: Any) -> "DeploymentQuerySet":
        """Return the deployments that this user may see: the one rule for pages, API, streams and sockets.

        Operators see all, users their own. With PORTAL_OPEN, everyone who knows its id sees an anonymous deployment.
        """
        if user.is_authenticated and user.is_staff:
            return self
        own = Q(stack__owner=user) if user.is_authenticated else Q()
        anonymous = Q(stack__owner__username=settings.OPEN_USERNAME)
        if settings.PORTAL_OPEN:
            return self.filter(own | anonymous) if own else self.filter(anonymous)
        return self.filter(own) if own else self.none()

    def changeable_by(self, user: Any) -> "DeploymentQuerySet":
        """Return the deployments that this user may cancel and retry: their own; all for an operator."""
        if not user.is_authenticated:
            return self.none()
        return self if user.is_staff else self.filter(stack__owner=user)

    def in_progress(self) -> "DeploymentQuerySet":
        return self.filter(status=Deployment.Status.IN_PROGRESS)

    def successful(self) -> "DeploymentQuerySet":
        """Return the deployments and redeployments that succeeded."""
        return self.filter(status=Deployment.Status.SUCCESS).exclude(kind=Deployment.Kind.REMOVE)

    def due(self) -> "DeploymentQuerySet":
        """Return the deployments in progress without a lease or with an expired one (database clock), oldest first."""
        return self.in_progress().filter(Q(lease_until=None) | Q(lease_until__lt=Now())).order_by("created_at")


class Deployment(models.Model):
    """One deployment, redeployment or removal of a stack: its state, its lease and its recorded reports.

    The row is authoritative. A worker may write to the row only while it holds the lease.
    """

    class Kind(models.TextChoices):
        DEPLOY = "deploy"
        REDEPLOY = "redeploy"
        REMOVE = "remove"

    class Status(models.TextChoices):
        IN_PROGRESS = "in_progress"
        SUCCESS = "success"
        FAILURE = "failure"

    class Via(models.TextChoices):
        FORM = "form", "form"
        API = "api", "API"
        COMMAND = "command", "command line"
        SWEEPER = "sweeper", "sweeper"

    id = models.CharField(primary_key=True, max_length=40, default=new_deployment_id, editable=False)
    stack = models.ForeignKey(Stack, on_delete=models.PROTECT, related_name="deployments")
    kind = models.CharField(max_length=10, choices=Kind.choices, default=Kind.DEPLOY)
    template = models.ForeignKey(Template, on_delete=models.PROTECT, related_name="deployments")
    spec = models.JSONField(default=dict)
    spec_encrypted = models.TextField(blank=True, db_column="spec_locked")
    phase = models.CharField(max_length=30, default="initializing")
    status = models.CharField(max_length=12, choices=Status.choices, default=Status.IN_PROGRESS)
    progress = models.PositiveSmallIntegerField(default=0)
    message = models.CharField(max_length=500, blank=True)
    error = models.JSONField(null=True, blank=True)
    resources = models.JSONField(default=dict, blank=True)
    requests = models.JSONField(default=list, blank=True)
    version = models.PositiveIntegerField(default=0)
    lease_owner = models.CharField(max_length=60, blank=True)
    lease_token = models.PositiveIntegerField(default=0)
    lease_until = models.DateTimeField(null=True, blank=True)
    crashes = models.PositiveSmallIntegerField(default=0)
    retry_of = models.ForeignKey("self", null=True, blank=True, on_delete=models.PROTECT, related_name="retries")
    requested_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="deployments")
    via = models.CharField(max_length=10, choices=Via.choices, default=Via.FORM)
    idempotency_key = models.CharField(max_length=64, null=True, blank=True)
    cancel_requested_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(default=timezone.now)
    started_at = models.DateTimeField(null=True, blank=True)
    updated_at = models.DateTimeField(default=timezone.now)
    completed_at = models.DateTimeField(null=True, blank=True)

    CHANGING_COLUMNS = (
        *("phase", "status", "progress", "message", "error", "resources", "version"),
        *("lease_until", "started_at", "updated_at", "completed_at", "cancel_requested_at"),
    )
    """The columns that a page shows and that change while it is watched.

    `requests` does not belong here: it is written at the end, and the whole row is then read again.
    """

    objects = DeploymentQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]
        indexes = [
            models.Index(fields=["created_at"], condition=Q(status="in_progress"), name="running"),
            models.Index(fields=["stack", "-created_at"], name="of_a_stack"),
        ]
        constraints = [
            models.UniqueConstraint(fields=["stack"], condition=Q(status="in_progress"), name="one_run_of_a_stack"),
            models.UniqueConstraint(fields=["requested_by", "idempotency_key"], name="one_run_of_a_key"),
            models.CheckConstraint(
                condition=Q(status__in=["in_progress", "success", "failure"]), name="deployment_status"
            ),
            models.CheckConstraint(condition=Q(progress__lte=100), name="deployment_progress"),
            models.CheckConstraint(
                condition=Q(status="in_progress", completed_at=None)
                | (~Q(status="in_progress") & Q(completed_at__isnull=False)),
                name="deployment_ends_once",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.stack_id} {self.kind} {self.id}"

    @property
    def done(self) -> bool:
        return self.status != self.Status.IN_PROGRESS

    # -- created and cancelled -----------------------------------------------------------------------------------------

    def enqueue(self) -> "Deployment":
        """Save the new row with its first event, and notify a worker on commit."""
        self.message = TITLES["initializing"]
        self.version = 1
        last = self.stack.deployments.first()
        if last is not None:  # keep the order of creation even after the clock was set back
            self.created_at = max(self.created_at, last.created_at + timedelta(microseconds=1))
        self.save(force_insert=True)
        self._write_event("phase", self.message, {"step": "begins", "resources": {}})
        transaction.on_commit(self._publish)
        transaction.on_commit(pubsub.notify_worker)
        return self

    def carry_over_app_name(self) -> None:
        """Copy the app name of the stack's last application, whose container may still run after its deletion."""
        last = self.stack.deployments.first()
        if last is not None and "app_name" in last.resources:
            self.resources = {"app_name": last.resources["app_name"]}

    def cancel(self, user: Any) -> None:
        """Request a cancellation: the worker stops at its next report and undoes what was created.

        A second request changes nothing. Raise Refusal CONFLICT when there is nothing to cancel.
        """
        with transaction.atomic():
            deployment = Deployment.objects.select_for_update().select_related("stack").get(pk=self.pk)
            if deployment.done:
                raise Refusal("CONFLICT", "This deployment has ended; there is nothing to cancel.")
            if deployment.kind == self.Kind.REMOVE:
                raise Refusal("CONFLICT", "A removal can't be cancelled: part of the stack may already be gone.")
            if deployment.error and deployment.cancel_requested_at is None:
                raise Refusal("CONFLICT", "This deployment has failed and is already being undone.")
            if deployment.cancel_requested_at is None:
                deployment.cancel_requested_at = deployment.updated_at = timezone.now()
                deployment.version += 1
                deployment.save(update_fields=["cancel_requested_at", "updated_at", "version"])
                deployment._write_event("note", "Cancel requested", {"by": user.get_username()})
                transaction.on_commit(deployment._publish)
                transaction.on_commit(pubsub.notify_worker)
                deployment._end_if_unclaimed()
        self.refresh_from_db()

    def _end_if_unclaimed(self) -> None:
        """End a cancelled deployment that no worker has claimed, unless recorded objects must be removed."""
        if self.lease_token or (self.kind == self.Kind.DEPLOY and self.records()):
            return
        kind = failures.BY_CODE["CANCELLED"]
        error = {"phase": self.phase, "code": kind.code, "message": kind.text, "retryable": kind.retryable}
        message = "It had not begun, so there is nothing to undo"
        with suppress(LeaseLost):  # a worker has claimed it in the meantime, and will see the request
            self.record(Progress("phase", "failed", message, "failure", error=error))

    # -- the spec ------------------------------------------------------------------------------------------------------

    @property
    def stored_spec(self) -> StoredSpec:
        """The spec of this deployment, as the row stores it."""
        return StoredSpec(self.spec, self.spec_encrypted)

    def write_spec(self, template: Template, parameters: dict[str, Any]) -> None:
        """Set the spec from a template and its parameters, as both are now."""
        stored = StoredSpec.freeze(template, parameters)
        self.spec, self.spec_encrypted = stored.public, stored.encrypted

    def stack_spec(self) -> StackSpec:
        """Return the spec for the engine, with decrypted secrets. Raise encryption.DecryptionError."""
        return self.stored_spec.stack_spec(self.stack, self.pk)

    def is_pinned(self) -> bool:
        """Return whether this deployment's image can be pulled again by digest, whatever its tag refers to now."""
        return "@" in self.spec.get("image", "") or bool(self.recorded_resources().image_digest)

    # -- the lease -----------------------------------------------------------------------------------------------------

    @classmethod
    def claim(cls, worker: str, *, excluding: list[str]) -> "Deployment | None":
        """Claim the oldest due deployment. One conditional UPDATE decides which of several workers gets it."""
        while seen := cls.objects.due().exclude(pk__in=excluding).first():
            crashes = F("crashes") + 1 if seen.lease_owner else F("crashes")  # the last worker crashed
            claimed = (
                cls.objects.due()
                .filter(pk=seen.pk, lease_token=seen.lease_token)
                .update(
                    lease_owner=worker,
                    lease_token=F("lease_token") + 1,
                    lease_until=_lease_end(),
                    crashes=crashes,
                    started_at=seen.started_at or timezone.now(),
                )
            )
            if claimed:
                return cls.objects.select_related("stack", "stack__owner", "template").get(pk=seen.pk)
        return None

    @classmethod
    def heartbeat(cls, worker: str, ids: list[str]) -> set[str]:
        """Renew this worker's leases of these deployments. Return the ids whose lease it still holds."""
        own = cls.objects.in_progress().filter(lease_owner=worker, pk__in=ids)
        own.update(lease_until=_lease_end())
        return set(own.values_list("pk", flat=True))

    @classmethod
    def release_all(cls) -> int:
        """Release every lease. Only for a process that holds the lock file, and so knows that no other worker runs."""
        return cls.objects.in_progress().exclude(lease_until=None).update(lease_until=None)

    def release(self) -> None:
        """Release the lease, so that another worker can continue at once."""
        held = Deployment.objects.in_progress().filter(pk=self.pk, lease_token=self.lease_token)
        if held.update(lease_until=None, lease_owner=""):
            pubsub.notify_worker()

    # -- recording -----------------------------------------------------------------------------------------------------

    def record(self, progress: Progress, requests: list[str] | None = None) -> None:
        """Write one report: row, event and resource in one transaction, published on commit.

        Raise LeaseLost when this worker no longer holds the lease or the deployment has ended. Raise Cancelled when the
        report says success but a cancellation was requested before. In both cases, nothing is written.
        """
        final = progress.status != "in_progress"
        now = timezone.now()
        changes: dict[str, Any] = {"updated_at": now}
        if progress.resources is not None:
            changes["resources"] = _stored_resources(progress.resources)
        if progress.kind == "phase":
            changes.update(
                phase=progress.phase,
                message=progress.message[:500],
                status=progress.status,
                progress=max(self.progress, progress.progress or 0),
            )
            if progress.error is not None:
                changes["error"] = dict(progress.error)
        if final:
            changes.update(completed_at=now, lease_until=None, lease_owner="", requests=requests or [])
        with transaction.atomic():
            self._update_row(changes, final and progress.status == "success")
            data = dict(progress.data)
            if progress.kind == "phase":
                data["resources"] = wire.resource_ids(self.resources)
                if self.error:
                    data["error"] = self.error
            if progress.kind == "receipt":
                ExternalResource.record(self, progress)
            self._write_event(progress.kind, progress.message, data)
            if final:
                self._settle_stack()
            transaction.on_commit(self._publish)

    def _update_row(self, changes: dict[str, Any], succeeds: bool) -> None:
        """Write the changes and the next version, if the lease is still held."""
        held = Deployment.objects.filter(pk=self.pk, lease_token=self.lease_token, status="in_progress")
        if not held.filter(version=self.version).update(version=self.version + 1, **changes):
            # The lease is lost, or another writer has added an event, and its number is taken.
            current = held.select_for_update().values_list("version", "cancel_requested_at").first()
            if current is None:
                raise LeaseLost
            self.version, self.cancel_requested_at = current
            if self.cancel_requested_at and succeeds:  # the user has been told that the deployment is being cancelled
                raise Cancelled
            held.update(version=self.version + 1, **changes)
        for field, value in changes.items():
            setattr(self, field, value)
        self.version += 1

    def _settle_stack(self) -> None:
        """Set the stack's state after the final report."""
        if self.kind == self.Kind.REMOVE:
            if self.changed_anything():
                self.stack.settle(works=False, template=None)
            return
        error, redeploys = self.error or {}, self.kind == self.Kind.REDEPLOY
        if self.changed_nothing(error.get("phase")):  # the stack keeps its state, live or broken
            return
        succeeded = self.status == self.Status.SUCCESS
        restored = redeploys and self.phase == "rolling_back" and not error.get("left")
        self.stack.settle(works=succeeded or restored, template=self.template if succeeded else None)

    def _write_event(self, type: str, message: str, data: dict[str, Any]) -> None:
        self.events.create(
            seq=self.version,
            at=self.updated_at,
            type=type,
            phase=self.phase,
            status=self.status,
            progress=self.progress,
            message=message[:500],
            data=data,
        )

    def _publish(self) -> None:
        pubsub.publish([pubsub.deployment_topic(self.pk), pubsub.stack_list_topic(self.stack.owner_id)])

    # -- what was recorded ---------------------------------------------------------------------------------------------

    def first_phase(self) -> str:
        """Return the phase to begin or continue with.

        A retry begins with the earliest of these phases: the one that failed, the one that creates a missing object,
        the one that first writes settings. The settings are written again because an undo may have restored earlier
        ones.
        """
        if self.phase != "initializing" or self.retry_of is None or self.kind == self.Kind.REMOVE:
            return self.phase
        there = self.stack.external_resources.existing().exclude(external_id="")
        types = set(there.values_list("resource_type", flat=True)) if self.resources.keys() >= RESUMABLE else set()
        failed = (self.retry_of.error or {}).get("phase")
        for phase in PHASES:
            is_missing = phase.resource is not None and phase.resource.type not in types
            if phase.name in (failed, RESTORE[0].name) or is_missing:
                return phase.name
        return self.phase

    def recorded_resources(self) -> Resources:
        """Return the ids at Dokploy that this deployment has recorded so far."""
        return Resources(**{key: value for key, value in self.resources.items() if key in Resources.__slots__})

    def records(self) -> Records:
        """Return what is recorded about the stack's objects at Dokploy that exist or may still be created."""
        return Records(self.stack.external_resources.existing().values_list("resource_type", "mark", "external_id"))

    def reported_log_lines(self) -> dict[str, int]:
        """Return how many lines of each Dokploy deployment's log are among the events."""
        lines: dict[str, int] = {}
        for data in self.events.filter(type="log").values_list("data", flat=True):
            lines[data["source"]] = data["first"] - 1 + len(data["lines"])
        return lines

    def changed_anything(self) -> bool:
        """Return whether this deployment has recorded that an object exists, is gone, or is about to change."""
        return self.events.filter(type="receipt").exists()

    def changed_nothing(self, failed: str | None) -> bool:
        """Return whether this is a redeployment that failed in this phase before it touched the stack.

        The progress is checked as well: another version with other phases may have begun it.
        """
        return self.kind == self.Kind.REDEPLOY and failed in UNCHANGED and self.progress < RESTORE[0].progress

    def last_successful(self) -> "Deployment | None":
        """Return the last deployment that left the stack running: a failed redeployment restores it."""
        return self.stack.deployments.successful().exclude(pk=self.pk).first()

    def success_message(self) -> str:
        """Return the final message of a successful deployment."""
        if self.kind == self.Kind.REMOVE:
            return f"{self.stack.name} is gone, and its name is free again"
        return f"{self.stack.name} is live at {self.stack.url}"

    # -- read by pages and scripts -------------------------------------------------------------------------------------

    @property
    def superseded(self) -> bool:
        """Whether this deployment was retried, or its stack has a newer one."""
        newer = Q(retry_of=self) | Q(stack=self.stack_id, created_at__gt=self.created_at)
        return Deployment.objects.filter(newer).exists()

    def queue_position(self) -> int:
        """Return how many due deployments are older than this one."""
        return Deployment.objects.due().filter(created_at__lt=self.created_at).count()

    def audience(self, user: Any) -> str:
        """Return "operator", "owner", or "link" for a user who only knows the id. Requires `visible_to(user)`."""
        if user.is_authenticated and user.is_staff:
            return "operator"
        return "owner" if user.is_authenticated and self.stack.owner_id == user.pk else "link"


def _stored_resources(resources: Resources) -> dict[str, Any]:
    values = {name: getattr(resources, name) for name in Resources.__slots__}
    return {name: value for name, value in values.items() if value}


def _lease_end() -> "ExpressionWrapper[Any]":
    return ExpressionWrapper(Now() + timedelta(seconds=LEASE_SECONDS), output_field=models.DateTimeField())
