import hashlib
import secrets
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.db import IntegrityError, InterfaceError, InternalError, OperationalError, models, transaction
from django.db.models import ExpressionWrapper, F, Q
from django.db.models.functions import Now
from django.utils import timezone

from .. import encryption
from ..engine import failures
from ..engine.errors import Cancelled, Interrupted
from ..engine.recipe import PHASES, RESTORE, TITLES, UNCHANGED
from ..engine.spec import Progress, Resources, StackSpec
from ..realtime import pubsub
from .installation import Installation
from .refusal import Refusal
from .stack import ExternalResource, Stack
from .template import Template

# What Django raises where the database is away, or has ended the session of who stood still in a transaction.
DATABASE_AWAY = (OperationalError, InterfaceError, InternalError)
LEASE_SECONDS = 30
CRASHES = 5  # a run that killed its worker so often is ended
KEPT = {"project_id", "environment_id", "application_id", "app_name"}  # what a retry needs to go on in the middle
RESOURCE_NAMES = {
    "projectId": "project_id",
    "environmentId": "environment_id",
    "applicationId": "application_id",
    "domainId": "domain_id",
}


class LeaseLost(Interrupted):
    """Another worker has the run now. Write nothing, stop."""


def new_deployment_id() -> str:
    return f"dep_{secrets.token_hex(16)}"  # 128 random bits: where people need not sign in it is the only key to a run


class DeploymentQuerySet(models.QuerySet["Deployment"]):
    def visible_to(self, user: Any) -> "DeploymentQuerySet":
        """The one rule for every door: operators see all, people their own, and who holds its id an open run."""
        if user.is_authenticated and user.is_staff:
            return self
        mine = Q(stack__owner=user) if user.is_authenticated else Q()
        is_open = Q(stack__owner__username=settings.OPEN_USERNAME)
        if settings.PORTAL_OPEN:
            return self.filter(mine | is_open) if mine else self.filter(is_open)
        return self.filter(mine) if mine else self.none()

    def changeable_by(self, user: Any) -> "DeploymentQuerySet":
        """What this person may cancel and retry: their own, an operator all. Who only holds an id may not."""
        if not user.is_authenticated:
            return self.none()
        return self if user.is_staff else self.filter(stack__owner=user)

    def in_progress(self) -> "DeploymentQuerySet":
        return self.filter(status=Deployment.Status.IN_PROGRESS)

    def successful(self) -> "DeploymentQuerySet":
        """What left a stack running."""
        return self.filter(status=Deployment.Status.SUCCESS).exclude(kind=Deployment.Kind.REMOVE)

    def due(self) -> "DeploymentQuerySet":
        """What nobody works on, by the database's clock; oldest first."""
        return self.in_progress().filter(Q(lease_until=None) | Q(lease_until__lt=Now())).order_by("created_at")


class Deployment(models.Model):
    """One run that brings a stack to what was asked for. Its rows are the truth; whoever runs it holds a lease."""

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

    # -- asked for -----------------------------------------------------------------------------------------------------

    @classmethod
    def request(
        cls,
        user: Any,
        name: str,
        template: Template,
        parameters: dict[str, Any],
        *,
        via: str,
        idempotency_key: str | None = None,
        address: str | None = None,
    ) -> "Deployment":
        """Takes the name and puts a run into the queue, or raises Refusal; of two at once one wins. Never asks Dokploy.

        parameters: already checked (Template.form_fields). idempotency_key: the same caller with the same key gets the
        run that the key made. address: whence an anonymous request came.
        """
        digest = None
        if idempotency_key:
            caller = address or "" if user.username == settings.OPEN_USERNAME else ""
            digest = hashlib.sha256(f"{caller}\0{idempotency_key}".encode()).hexdigest()
            if earlier := cls._with_idempotency_key(user, digest):
                return earlier
        Stack.validate_name(name)
        return cls.get_or_create_deployment(
            lambda: cls._request(user, user, name, template, parameters, via, digest, address),
            lambda: cls._with_idempotency_key(user, digest),
        )

    @classmethod
    def request_again(
        cls, user: Any, stack: Stack, template: Template, parameters: dict[str, Any], *, via: str
    ) -> "Deployment":
        """A redeploy of this stack, for its owner or an operator (Stack.visible_to), or a Refusal."""
        return cls.get_or_create_deployment(
            lambda: cls._again(user, stack, template, parameters, via, None), lambda: None
        )

    @classmethod
    def request_removal(cls, user: Any, stack: Stack, *, via: str) -> "Deployment":
        """A run that takes this stack away, for its owner or an operator. Asked for twice it is the same run."""

        def under_way() -> "Deployment | None":
            return stack.deployments.in_progress().filter(kind=cls.Kind.REMOVE).first()

        def make() -> "Deployment":
            if earlier := under_way():
                return earlier
            stack.refresh_from_db(from_queryset=Stack.objects.select_for_update(no_key=True))
            stack.require_idle()
            if via == cls.Via.SWEEPER and not stack.is_to_be_removed():  # who looked may have slept since
                raise Refusal("CONFLICT", f"“{stack.name}” is wanted again.")
            deployment = cls(stack=stack, template=stack.template, kind=cls.Kind.REMOVE, requested_by=user, via=via)
            deployment.spec = {"image": stack.template.image, "port": stack.template.port}  # a removal needs no more
            deployment._carry_over_app_name()
            return deployment._enqueue()

        return cls.get_or_create_deployment(make, under_way)

    def retry(self, user: Any, *, via: str) -> "Deployment":
        """A new run for one that failed, with the same answers; what is there already is found, and not made again.

        For its owner or an operator (changeable_by). Asked for twice it is the same run. Refusal CONFLICT where there
        is nothing to retry.
        """
        if self.status != self.Status.FAILURE:
            what = "is still going on" if self.status == self.Status.IN_PROGRESS else "went well"
            raise Refusal("CONFLICT", f"This run {what}, so there is nothing to retry.")

        def under_way() -> "Deployment | None":
            return self.retries.in_progress().first()

        def make() -> "Deployment":
            if earlier := under_way():
                return earlier
            if self.superseded:
                raise Refusal("CONFLICT", "The stack has gone on since then. Look at its newest run.")
            deployment = self._repeat(user, via)
            deployment.retry_of = self
            deployment.save(update_fields=["retry_of"])
            return deployment

        return self.get_or_create_deployment(make, under_way)

    def _repeat(self, user: Any, via: str) -> "Deployment":
        stack = self.stack
        stack.refresh_from_db()
        if self.kind == self.Kind.REMOVE:
            return Deployment.request_removal(user, stack, via=via)
        answers = self.environment()
        if not self.has_readable_secrets() and (lost := self.template.secret_keys()):
            text = f"Its answers are not all known any more ({', '.join(sorted(lost))}). Deploy it anew, and give them."
            raise Refusal("CONFLICT", text)
        try:
            parameters = self.template.clean_answers(answers)
        except Refusal as refusal:  # the template was changed meanwhile
            text = f"Its answers do not fit any more. {refusal.message} Deploy it anew with the form."
            raise Refusal("CONFLICT", text, field=refusal.field) from None
        if stack.state != Stack.State.GONE:
            deployment = Deployment._again(user, stack, self.template, parameters, via, None)
            if (self.error or {}).get("code") != "DOKPLOY_NOT_FOUND":  # what is gone is made again, from the start
                deployment.resources |= {name: self.resources[name] for name in KEPT if name in self.resources}
            deployment.save(update_fields=["resources"])
            stack.external_resources.filter(state=ExternalResource.State.LEFT).update(
                state=ExternalResource.State.MADE, why=""
            )
            return deployment
        if Stack.objects.existing().filter(name=stack.name).exists():
            raise Refusal("NAME_TAKEN", f"“{stack.name}” was taken meanwhile. Choose another name.", field="name")
        address = stack.requested_from
        return Deployment._request(user, stack.owner, stack.name, self.template, parameters, via, None, address)

    def cancel(self, user: Any) -> None:
        """Asks for the end of this deployment: who works on it stops at its next report, and undoes what was made.

        Asked for twice it is one request. Refusal CONFLICT where there is nothing to cancel.
        """
        with transaction.atomic():
            deployment = Deployment.objects.select_for_update().select_related("stack").get(pk=self.pk)
            if deployment.done:
                raise Refusal("CONFLICT", "It is over already, so there is nothing to cancel.")
            if deployment.kind == self.Kind.REMOVE:
                raise Refusal("CONFLICT", "A removal cannot be cancelled: part of the stack may be gone already.")
            if deployment.error and deployment.cancel_requested_at is None:
                raise Refusal("CONFLICT", "It has failed and is being undone already.")
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
        """The end of a cancelled run that no worker has had: nothing waits for one where there is nothing to undo."""
        if self.lease_token or (self.kind == self.Kind.DEPLOY and self.pending_resources()):
            return
        entry = failures.BY_CODE["CANCELLED"]
        error = {"phase": self.phase, "code": entry.code, "message": entry.what, "retryable": entry.retryable}
        with suppress(LeaseLost):  # one took it just now, and will see the request
            self.record(
                Progress("phase", "failed", "It had not begun, so there is nothing to undo", "failure", error=error)
            )

    @classmethod
    def request_due_removals(cls) -> list["Deployment"]:
        """The sweeper's: removals of stacks that have expired, and of what failed runs and removals left behind."""
        deployments = []
        for stack in Stack.objects.to_be_removed():
            with suppress(Refusal):
                deployments.append(cls.request_removal(stack.owner, stack, via=cls.Via.SWEEPER))
        return deployments

    @staticmethod
    def get_or_create_deployment(
        make: Callable[[], "Deployment"], earlier: Callable[[], "Deployment | None"]
    ) -> "Deployment":
        """Makes a run in a transaction. Where somebody was faster: what they made if it serves, else once more."""
        for last in (False, True):
            try:
                with transaction.atomic():
                    return make()
            except (IntegrityError, Refusal) as error:  # perhaps the same caller, with the same request
                if found := earlier():
                    return found
                if last or isinstance(error, Refusal):
                    raise
        raise AssertionError("unreachable")

    @classmethod
    def _with_idempotency_key(cls, user: Any, digest: str | None) -> "Deployment | None":
        """The run that this caller's idempotency key made."""
        return cls.objects.filter(requested_by=user, idempotency_key=digest).first() if digest else None

    @classmethod
    def _request(
        cls,
        user: Any,
        owner: Any,
        name: str,
        template: Template,
        parameters: dict[str, Any],
        via: str,
        digest: str | None,
        address: str | None,
    ) -> "Deployment":
        stack = Stack.objects.existing().filter(name=name).first()
        if stack is not None:
            if stack.owner_id != owner.pk or owner.username == settings.OPEN_USERNAME:
                raise Refusal("NAME_TAKEN", f"“{name}” is taken. Choose another name.", field="name")
            return cls._again(user, stack, template, parameters, via, digest)
        cls._require_quota(owner, address)
        url = Stack.address_of(name)
        stack = Stack.objects.create(
            name=name, owner=owner, template=template, url=url, host=host_of(url), requested_from=address
        )
        deployment = cls(stack=stack, template=template, requested_by=user, via=via, idempotency_key=digest)
        deployment._write_spec(template, parameters)
        return deployment._enqueue()

    @classmethod
    def _again(
        cls, user: Any, stack: Stack, template: Template, parameters: dict[str, Any], via: str, digest: str | None
    ) -> "Deployment":
        # It may be gone meanwhile. no_key: or who asks for its removal just now would wait for us, and we for them.
        stack.refresh_from_db(from_queryset=Stack.objects.select_for_update(no_key=True))
        stack.require_idle()
        deployment = cls(stack=stack, template=template, requested_by=user, via=via, idempotency_key=digest)
        if (
            deployment.last_successful() is not None
        ):  # whatever became of it since: what ran once is restored, never removed
            deployment.kind = cls.Kind.REDEPLOY
        deployment._carry_over_app_name()
        deployment._write_spec(template, parameters)
        return deployment._enqueue()

    def _carry_over_app_name(self) -> None:
        """The application's row may be gone, and its container may be there still: it is known by its name."""
        last = self.stack.deployments.first()
        if last is not None and "app_name" in last.resources:
            self.resources = {"app_name": last.resources["app_name"]}

    def _enqueue(self) -> "Deployment":
        self.message = "Queued"
        self.version = 1
        last = self.stack.deployments.first()
        if last is not None:  # in the order of their making, also after the clock was set back
            self.created_at = max(self.created_at, last.created_at + timedelta(microseconds=1))
        self.save(force_insert=True)
        self._write_event("phase", self.message, {"step": "begins", "resources": {}})
        transaction.on_commit(self._publish)
        transaction.on_commit(pubsub.notify_worker)
        return self

    @classmethod
    def _require_quota(cls, user: Any, address: str | None) -> None:
        if cls.objects.in_progress().count() >= settings.PORTAL_WAITING:
            raise Refusal("QUOTA", "The portal has its hands full. Try again in a minute.", retry_after=60)
        stacks = Stack.objects.existing().filter(owner=user)
        if user.username == settings.OPEN_USERNAME:
            if stacks.count() >= settings.PORTAL_OPEN_QUOTA:
                raise Refusal("QUOTA", "There are too many stacks without an owner. Sign in.", retry_after=3600)
            stacks = stacks.filter(requested_from=address)
        elif user.is_staff:
            return
        if stacks.count() >= settings.PORTAL_QUOTA:
            raise Refusal("QUOTA", f"You have {settings.PORTAL_QUOTA} stacks, which is the limit.", retry_after=3600)

    def _write_spec(self, template: Template, parameters: dict[str, Any]) -> None:
        """Freezes what this run begins with. What is secret lies encrypted beside it."""
        secret = template.secret_keys()
        self.spec = {
            "image": template.image,
            "port": template.port,
            "certificate": settings.STACK_CERTIFICATE,
            "registry": template.registry,
            "registry_username": template.registry_username,
            "memory_bytes": template.memory_bytes,
            "cpus": template.cpus,
            "health_path": template.health_path,
            "health_interval": template.health_interval,
            "health_timeout": template.health_timeout,
            "env": {key: _as_env(value) for key, value in parameters.items() if key not in secret},
        }
        self.spec_encrypted = encryption.encrypt(
            {
                "registry_password": template.registry_password,
                "env": {key: _as_env(value) for key, value in parameters.items() if key in secret},
            }
        )

    def stack_spec(self) -> StackSpec:
        """What the engine is to bring about, secrets in clear. Raises encryption.DecryptionError."""
        locked = encryption.decrypt(self.spec_encrypted) or {}
        public = {key: value for key, value in self.spec.items() if key != "env"}
        env = {**self.spec.get("env", {}), **locked.get("env", {})}
        return StackSpec(
            installation=Installation.current().id,
            stack=self.stack_id,
            deployment=self.pk,
            name=self.stack.name,
            host=self.stack.host,
            url=self.stack.url,
            env=tuple(env.items()),
            registry_password=locked.get("registry_password", ""),
            router_address=settings.STACK_ROUTER_ADDRESS,
            deploy_timeout=settings.DOKPLOY_DEPLOY_SECONDS,
            secrets=tuple(filter(None, [locked.get("registry_password"), *locked.get("env", {}).values()])),
            **public,
        )

    def first_phase(self) -> str:
        """The phase to go on with: of a retry the one that failed, as far as what it needs was left. What was set is
        set anew all the same: an undo may have set it back."""
        if self.phase != "initializing" or self.retry_of is None or self.kind == self.Kind.REMOVE:
            return self.phase
        there = self.stack.external_resources.exclude(state=ExternalResource.State.GONE).exclude(external_id="")
        kinds = set(there.values_list("kind", flat=True)) if self.resources.keys() >= KEPT else set()
        failed = (self.retry_of.error or {}).get("phase")
        for phase in PHASES:
            made = phase.name.removeprefix("creating_")
            if phase.name in (failed, RESTORE[0].name) or (made != phase.name and made not in kinds):
                return phase.name
        return self.phase

    def success_message(self) -> str:
        """What a run that succeeded says at its end."""
        if self.kind == self.Kind.REMOVE:
            return f"{self.stack.name} is gone, and its name is free again"
        return f"{self.stack.name} is live at {self.stack.url}"

    def last_successful(self) -> "Deployment | None":
        """The last run that left the stack working: what a failed redeploy goes back to."""
        return self.stack.deployments.successful().exclude(pk=self.pk).first()

    def is_pinned(self) -> bool:
        """Whether the image that it ran can be had again, by its digest, whatever became of its tag."""
        return "@" in self.spec.get("image", "") or bool(self.recorded_resources().image_digest)

    def has_readable_secrets(self) -> bool:
        """Whether its secrets can be read: their key is not lost."""
        try:
            encryption.decrypt(self.spec_encrypted)
        except encryption.DecryptionError:
            return False
        return True

    def environment(self) -> dict[str, str]:
        """The variables that this run sets, secrets in clear as far as they can be read."""
        try:
            locked = encryption.decrypt(self.spec_encrypted) or {}
        except encryption.DecryptionError:
            locked = {}
        return {**self.spec.get("env", {}), **locked.get("env", {})}

    # -- worked on -----------------------------------------------------------------------------------------------------

    @classmethod
    def claim(cls, worker: str, *, excluding: list[str]) -> "Deployment | None":
        """Takes the oldest run that nobody works on: one conditional UPDATE, so that of several workers one gets it."""
        while seen := cls.objects.due().exclude(pk__in=excluding).first():
            crashed = F("crashes") + 1 if seen.lease_owner else F("crashes")  # its last worker never let go
            taken = (
                cls.objects.due()
                .filter(pk=seen.pk, lease_token=seen.lease_token)
                .update(
                    lease_owner=worker,
                    lease_token=F("lease_token") + 1,
                    lease_until=_lease_end(),
                    crashes=crashed,
                    started_at=seen.started_at or timezone.now(),
                )
            )
            if taken:
                return cls.objects.select_related("stack", "stack__owner", "template").get(pk=seen.pk)
        return None

    @classmethod
    def heartbeat(cls, worker: str, ids: list[str]) -> set[str]:
        """Renews the leases of the runs that this worker works on; returns the ids of those that it still holds."""
        mine = cls.objects.in_progress().filter(lease_owner=worker, pk__in=ids)
        mine.update(lease_until=_lease_end())
        return set(mine.values_list("pk", flat=True))

    @classmethod
    def release_all(cls) -> int:
        """Lets go of every run. Only for a process that knows that no other worker lives (it holds the lock file)."""
        return cls.objects.in_progress().exclude(lease_until=None).update(lease_until=None)

    def release(self) -> None:
        """An orderly end of working on it: the next worker may go on at once."""
        held = Deployment.objects.in_progress().filter(pk=self.pk, lease_token=self.lease_token)
        if held.update(lease_until=None, lease_owner=""):
            pubsub.notify_worker()

    def record(self, progress: Progress, requests: list[str] | None = None) -> None:
        """Writes down one report: row, event and receipt in one transaction, announced on commit.

        Raises LeaseLost, having written nothing, when another worker has the deployment or it is over; Cancelled,
        having written nothing, when it would have succeeded and was cancelled before.
        """
        final = progress.status != "in_progress"
        now = timezone.now()
        changes: dict[str, Any] = {"updated_at": now}
        if progress.resources is not None:
            changes["resources"] = _resources_dict(progress.resources)
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
            held = Deployment.objects.filter(pk=self.pk, lease_token=self.lease_token, status="in_progress")
            if not held.filter(version=self.version).update(version=self.version + 1, **changes):
                # the lease is lost, or somebody else wrote an event of this run in between: its number is taken
                found = held.select_for_update().values_list("version", "cancel_requested_at").first()
                if found is None:
                    raise LeaseLost
                self.version, self.cancel_requested_at = found
                if self.cancel_requested_at and progress.status == "success":  # who cancelled was told that it is
                    raise Cancelled
                held.update(version=self.version + 1, **changes)
            for field, value in changes.items():
                setattr(self, field, value)
            self.version += 1
            data = dict(progress.data)
            if progress.kind == "phase":
                data["resources"] = self.wire_resources()
                if self.error:
                    data["error"] = self.error
            if progress.kind == "receipt":
                self._write_receipt(progress)
            self._write_event(progress.kind, progress.message, data)
            if final:
                self._settle_stack()
            transaction.on_commit(self._publish)

    def _settle_stack(self) -> None:
        if self.kind == self.Kind.REMOVE:
            if self.changed_anything():  # else the stack is as it was
                self.stack.settle(works=False, template=None)
            return
        error, redeploys = self.error or {}, self.kind == self.Kind.REDEPLOY
        if self.changed_nothing(error.get("phase")):  # the stack is as it was, which need not be live
            return
        succeeded = self.status == self.Status.SUCCESS
        restored = redeploys and self.phase == "rolling_back" and not error.get("left")
        self.stack.settle(works=succeeded or restored, template=self.template if succeeded else None)

    def _write_event(self, kind: str, message: str, data: dict[str, Any]) -> None:
        Event.objects.create(
            deployment=self,
            seq=self.version,
            at=self.updated_at,
            kind=kind,
            phase=self.phase,
            status=self.status,
            progress=self.progress,
            message=message[:500],
            data=data,
        )

    def _write_receipt(self, progress: Progress) -> None:
        state, kind = progress.data["state"], progress.data["kind"]
        id = progress.data.get("id") or ""
        receipts = ExternalResource.objects.filter(stack=self.stack_id, kind=kind).exclude(
            state=ExternalResource.State.GONE
        )
        if state in (ExternalResource.State.INTENDED, ExternalResource.State.MADE):
            mark, now = progress.data["mark"], timezone.now()
            if not receipts.filter(mark=mark).update(state=state, external_id=id, updated_at=now):
                ExternalResource.objects.create(
                    stack_id=self.stack_id,
                    deployment=self,
                    kind=kind,
                    mark=mark,
                    phase=progress.phase,
                    external_id=id,
                    state=state,
                )
            return
        if id:
            receipts = receipts.filter(external_id__in=[id, ""])  # "": intended, and found only now
            receipts.update(external_id=id)
        receipts.update(state=state, why=str(progress.data.get("why", ""))[:500], updated_at=timezone.now())

    def changed_anything(self) -> bool:
        """Whether this run has made or removed anything, or was about to."""
        return self.events.filter(kind="receipt").exists()

    def changed_nothing(self, failed: str | None) -> bool:
        """Whether this is a redeploy that failed, in this phase, before it had touched the stack. That it has come
        further once is seen by its progress: another version may have begun it, and know other phases."""
        return self.kind == self.Kind.REDEPLOY and failed in UNCHANGED and self.progress < RESTORE[0].progress

    def _publish(self) -> None:
        pubsub.publish([f"run.{self.pk}", f"stacks.{self.stack.owner_id}"])

    # -- taken up again ------------------------------------------------------------------------------------------------

    def recorded_resources(self) -> Resources:
        return Resources(**{key: value for key, value in self.resources.items() if key in Resources.__slots__})

    def pending_resources(self) -> set[tuple[str, str]]:
        """Kind and mark of what was about to be made, or was made, and is not gone."""
        return set(self.stack.external_resources.exclude(state=ExternalResource.State.GONE).values_list("kind", "mark"))

    def recorded_ids(self) -> dict[str, str]:
        """The ids at Dokploy of what was made and is not gone, and the kind of each."""
        there = self.stack.external_resources.exclude(state=ExternalResource.State.GONE).exclude(external_id="")
        return dict(there.values_list("external_id", "kind"))

    def reported_log_lines(self) -> dict[str, int]:
        """How many lines of each deploy's log are among the events."""
        seen: dict[str, int] = {}
        for data in self.events.filter(kind="log").values_list("data", flat=True):
            seen[data["source"]] = data["first"] - 1 + len(data["lines"])
        return seen

    # -- read ----------------------------------------------------------------------------------------------------------

    @property
    def superseded(self) -> bool:
        """Whether there is a retry of it, or its stack has gone on since."""
        newer = Q(retry_of=self) | Q(stack=self.stack_id, created_at__gt=self.created_at)
        return Deployment.objects.filter(newer).exists()

    @property
    def done(self) -> bool:
        return self.status != self.Status.IN_PROGRESS

    def queue_position(self) -> int:
        """How many runs wait in front of this one, which waits too."""
        return Deployment.objects.due().filter(created_at__lt=self.created_at).count()

    def audience(self, user: Any) -> str:
        """Whose eyes: "operator", "owner", or "link" for who only holds the id. Only for what is visible_to(user)."""
        if user.is_authenticated and user.is_staff:
            return "operator"
        return "owner" if user.is_authenticated and self.stack.owner_id == user.pk else "link"

    def wire_resources(self) -> dict[str, str]:
        return {wire: self.resources[own] for wire, own in RESOURCE_NAMES.items() if self.resources.get(own)}

    def to_dict(self, audience: str, *, event: "Event | None" = None) -> dict[str, Any]:
        """The state as scripts see it, times ISO 8601 in UTC; with an event, the state at that event."""
        at = event or self
        resources = event.data.get("resources", {}) if event else self.wire_resources()
        error = event.data.get("error") if event else self.error
        over = at.status != self.Status.IN_PROGRESS
        return {
            "deploymentId": self.pk,
            "name": self.stack.name,
            "kind": self.kind,
            "phase": at.phase,
            "status": at.status,
            "progress": at.progress,
            "message": at.message,
            "currentStep": TITLES.get(at.phase, at.phase),
            "url": self.stack.url if resources.get("domainId") else None,
            "resources": resources,
            "error": _wire_error(error, audience),
            "timestamps": {
                "started": iso(self.created_at),
                "updated": iso(event.at if event else self.updated_at),
                "completed": iso(self.completed_at) if over else None,
            },
            **({} if event else {"logs": self.requests if audience != "link" else []}),
            "version": event.seq if event else self.version,
            "cancelRequested": self.cancel_requested_at is not None,
        }


class Event(models.Model):
    """One line of a run's timeline, numbered from 1 without gaps. It carries its own snapshot."""

    deployment = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="events")
    seq = models.PositiveIntegerField()
    at = models.DateTimeField(default=timezone.now)
    kind = models.CharField(max_length=10)
    phase = models.CharField(max_length=30)
    status = models.CharField(max_length=12)
    progress = models.PositiveSmallIntegerField()
    message = models.CharField(max_length=500)
    data = models.JSONField(default=dict)

    class Meta:
        ordering = ["seq"]
        constraints = [models.UniqueConstraint(fields=["deployment", "seq"], name="one_event_of_a_number")]

    def __str__(self) -> str:
        return f"{self.seq} {self.kind} {self.message}"

    def to_dict(self, audience: str) -> dict[str, Any]:
        """As scripts see it. Who only holds the link gets no log lines."""
        hidden = audience == "link" and self.kind == "log"
        data = {} if hidden else dict(self.data)
        if audience == "link":
            data.pop("by", None)
        if "error" in data:
            data["error"] = _wire_error(data["error"], audience)
        return {
            "seq": self.seq,
            "at": iso(self.at),
            "kind": self.kind,
            "phase": self.phase,
            "status": self.status,
            "progress": self.progress,
            "message": "" if hidden else self.message,
            "data": data,
        }


def host_of(url: str) -> str:
    return (urlsplit(url).hostname or "").lower()


def iso(at: datetime | None) -> str | None:
    """ISO 8601 in UTC with Z, milliseconds."""
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z") if at else None


def _wire_error(error: dict[str, Any] | None, audience: str) -> dict[str, Any] | None:
    if not error:
        return None
    shown = {key: error[key] for key in ("phase", "code", "message", "retryable")}
    shown["help"] = f"/help/{error['code']}"
    if audience != "link" and error.get("evidence"):
        shown["evidence"] = error["evidence"]
    if audience == "operator" and (advice := failures.get_failure(error["code"]).operator):
        shown["operator"] = advice
    return shown


def _resources_dict(resources: Resources) -> dict[str, Any]:
    values = {name: getattr(resources, name) for name in Resources.__slots__}
    return {name: value for name, value in values.items() if value}


def _as_env(value: Any) -> str:
    if value is None:
        return ""
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def _lease_end() -> ExpressionWrapper:
    return ExpressionWrapper(Now() + timedelta(seconds=LEASE_SECONDS), output_field=models.DateTimeField())
