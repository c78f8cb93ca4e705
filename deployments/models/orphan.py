from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.db import models, transaction
from django.db.models import Q
from django.utils import timezone

from ..engine.spec import MarkedObject
from .deployment import Deployment
from .external_resource import ExternalResource
from .installation import Installation
from .refusal import Refusal
from .requests import get_or_create_deployment, request_removal
from .stack import STACK_ID, Stack, host_of
from .template import Template

SCAN_SECONDS = 300  # the time limit of a scan; afterwards its claim expires


class Orphan(models.Model):
    """An object at Dokploy that carries the portal's mark and that no record mentions.

    It is listed for operators, and removed only on request: if the database was restored from a backup, the object may
    belong to a stack in use.
    """

    resource_type = models.CharField(max_length=20, db_column="kind")
    external_id = models.CharField(max_length=64, unique=True)
    name = models.CharField(max_length=255)
    mark = models.CharField(max_length=255)
    seen_at = models.DateTimeField()

    class Meta:
        ordering = ["mark", "resource_type"]

    def __str__(self) -> str:
        return f"{self.resource_type} {self.name}"

    @classmethod
    def scan_is_due(cls, seconds: float) -> bool:
        """Claim the next scan if the last one is at least this many seconds ago. Of several workers, one gets True.

        The claim expires after SCAN_SECONDS, because the worker may crash.
        """
        now, interval = timezone.now(), timedelta(seconds=seconds)
        is_due = Q(orphans_scanned_at=None) | Q(orphans_scanned_at__lt=now - interval)
        Installation.current()
        claimed_at = now - max(interval - timedelta(seconds=SCAN_SECONDS), timedelta())
        return bool(Installation.objects.filter(is_due).update(orphans_scanned_at=claimed_at))

    @classmethod
    def reset_scan(cls) -> None:
        """Make the next scan due now, after one that failed."""
        Installation.objects.update(orphans_scanned_at=None)

    @classmethod
    def unrecorded(cls, listed: Iterable[MarkedObject]) -> list[MarkedObject]:
        """Return the objects that no record mentions, except those of stacks with a deployment in progress."""
        recorded = ExternalResource.objects.existing()
        ids = set(recorded.values_list("external_id", flat=True))
        without_id = set(recorded.filter(external_id="").values_list("resource_type", "mark"))
        busy = set(Deployment.objects.in_progress().values_list("stack_id", flat=True))
        return [
            item
            for item in listed
            if item.id not in ids
            and (item.resource_type, item.mark) not in without_id  # it may have been created before its id was recorded
            and item.mark.rpartition("/")[2] not in busy
        ]

    @classmethod
    def report(cls, listed: Iterable[MarkedObject]) -> None:
        """End a scan: store the unrecorded objects as orphans, and delete the orphans that are no longer among them."""
        with transaction.atomic():
            Installation.objects.update(orphans_scanned_at=timezone.now())
            orphans = {item.id: item for item in cls.unrecorded(listed)}
            cls.objects.exclude(external_id__in=orphans).delete()
            for item in orphans.values():
                values = {
                    "resource_type": item.resource_type,
                    "name": item.name[:255],
                    "mark": item.mark,
                    "seen_at": timezone.now(),
                }
                cls.objects.update_or_create(external_id=item.id, defaults=values)

    def remove(self, user: Any) -> Deployment:
        """Record the object again and request its removal, which can be watched like any other.

        The removal covers every object with the same mark. A second request returns the same removal. Raise Refusal
        CONFLICT when the mark belongs to an existing stack or was changed by hand, or when there is no template.
        """
        id = self.mark.rpartition("/")[2]
        if not STACK_ID.fullmatch(id):
            text = f"The object's mark ({self.mark}) was changed by hand: its stack is unknown. Remove it at Dokploy."
            raise Refusal("CONFLICT", text)
        removals = Deployment.objects.in_progress().filter(stack=id, kind=Deployment.Kind.REMOVE)
        return get_or_create_deployment(lambda: self._remove(user, id), removals.first)

    def _remove(self, user: Any, id: str) -> Deployment:
        if not Orphan.objects.filter(pk=self.pk).exists():
            text = "This is no longer an orphan: its removal was already requested, or it no longer exists."
            raise Refusal("CONFLICT", text)
        stack = self._recorded_stack(user, id)
        deployment = request_removal(user, stack, via=Deployment.Via.FORM)
        for orphan in Orphan.objects.filter(mark=self.mark):
            ExternalResource.objects.create(
                stack=stack,
                deployment=deployment,
                resource_type=orphan.resource_type,
                mark=f"{orphan.mark}/{orphan.external_id}",  # several objects of one type may carry the same mark
                phase="removing",
                external_id=orphan.external_id,
                state=ExternalResource.State.MADE,
            )
        Orphan.objects.filter(mark=self.mark).delete()
        return deployment

    def _recorded_stack(self, user: Any, id: str) -> Stack:
        """Return the stack with this id, created or set to broken, under a name that is free."""
        name = f"left-{id.removeprefix('stk_')[:12]}"
        url = Stack.address_of(name)
        free = {"name": name, "host": host_of(url), "url": url}
        stack = Stack.objects.filter(pk=id).first()
        if stack is None:
            template = Template.objects.first()
            if template is None:
                raise Refusal("CONFLICT", "A removal needs a template, and there is none. Create one first.")
            return Stack.objects.create(pk=id, owner=user, template=template, state=Stack.State.BROKEN, **free)
        if stack.state != Stack.State.GONE:
            text = f"The object carries the mark of the stack “{stack.name}”, which exists. Remove it at Dokploy."
            raise Refusal("CONFLICT", text)
        taken = Stack.objects.existing().filter(Q(name=stack.name) | Q(host=stack.host)).exists()
        Stack.objects.filter(pk=id).update(state=Stack.State.BROKEN, **(free if taken else {}))
        stack.refresh_from_db()
        return stack
