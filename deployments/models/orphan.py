from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.db import models, transaction
from django.db.models import Q
from django.utils import timezone

from ..engine.spec import MarkedObject
from .deployment import Deployment, host_of
from .installation import Installation
from .refusal import Refusal
from .stack import STACK_ID, ExternalResource, Stack
from .template import Template

SCAN_SECONDS = 300  # no look takes longer; one that has not reported by then was cut off


class Orphan(models.Model):
    """Something at Dokploy that carries our mark and that no receipt knows.

    Shown to operators, and removed only on request: after a backup was restored it may be somebody's stack.
    """

    kind = models.CharField(max_length=20)
    external_id = models.CharField(max_length=64, unique=True)
    name = models.CharField(max_length=255)
    mark = models.CharField(max_length=255)
    seen_at = models.DateTimeField()

    class Meta:
        ordering = ["mark", "kind"]

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"

    @classmethod
    def scan_is_due(cls, seconds: float) -> bool:
        """Whether the last look is that long ago; of several workers one is told so.

        Who is told may die before it has reported: until then the look counts for SCAN_SECONDS only.
        """
        now, pause = timezone.now(), timedelta(seconds=seconds)
        long_ago = Q(orphans_scanned_at=None) | Q(orphans_scanned_at__lt=now - pause)
        Installation.current()
        begun = now - max(pause - timedelta(seconds=SCAN_SECONDS), timedelta())
        return bool(Installation.objects.filter(long_ago).update(orphans_scanned_at=begun))

    @classmethod
    def reset_scan(cls) -> None:
        """The last look did not come to its end: the next is due now, again for one worker."""
        Installation.objects.update(orphans_scanned_at=None)

    @classmethod
    def unrecorded(cls, found: Iterable[MarkedObject]) -> list[MarkedObject]:
        """What of all that was found is in no book. What is being made or removed just now is in one."""
        known = ExternalResource.objects.exclude(state=ExternalResource.State.GONE)
        ids = set(known.values_list("external_id", flat=True))
        nameless = set(known.filter(external_id="").values_list("kind", "mark"))
        busy = set(Deployment.objects.in_progress().values_list("stack_id", flat=True))
        return [
            one
            for one in found
            if one.id not in ids
            and (one.resource_type, one.mark) not in nameless  # made, or about to be, and its id not written down
            and one.mark.rpartition("/")[2] not in busy
        ]

    @classmethod
    def report(cls, found: Iterable[MarkedObject]) -> None:
        """The end of a look: writes down what of all that was found is in no book."""
        with transaction.atomic():
            Installation.objects.update(orphans_scanned_at=timezone.now())
            orphans = {one.id: one for one in cls.unrecorded(found)}
            cls.objects.exclude(external_id__in=orphans).delete()
            for one in orphans.values():
                values = {
                    "kind": one.resource_type,
                    "name": one.name[:255],
                    "mark": one.mark,
                    "seen_at": timezone.now(),
                }
                cls.objects.update_or_create(external_id=one.id, defaults=values)

    def remove(self, user: Any) -> Deployment:
        """Takes it into the books again and puts its removal into the queue: a run like any other, to be watched.

        It takes away all that carries the same mark. Asked for twice it is the same run. Refusal CONFLICT where that
        mark is a stack's that exists, or one that somebody has changed, or where there is no template.
        """
        id = self.mark.rpartition("/")[2]
        if not STACK_ID.fullmatch(id):
            text = f"Its mark ({self.mark}) was changed by hand, so it is not known what it is. Remove it at Dokploy."
            raise Refusal("CONFLICT", text)
        removals = Deployment.objects.in_progress().filter(stack=id, kind=Deployment.Kind.REMOVE)
        return Deployment.get_or_create_deployment(lambda: self._remove(user, id), removals.first)

    def _remove(self, user: Any, id: str) -> Deployment:
        if not Orphan.objects.filter(pk=self.pk).exists():
            raise Refusal("CONFLICT", "It is no orphan any more: somebody has it removed already, or it is gone.")
        name = f"left-{id.removeprefix('stk_')[:12]}"
        url = Stack.address_of(name)
        another = {"name": name, "host": host_of(url), "url": url}
        stack = Stack.objects.filter(pk=id).first()
        if stack is None:
            template = Template.objects.first()
            if template is None:
                raise Refusal("CONFLICT", "A run needs a template, and there is none. Make one first.")
            state = Stack.State.BROKEN
            stack = Stack.objects.create(pk=id, owner=user, template=template, state=state, **another)
        elif stack.state == Stack.State.GONE:
            taken = Stack.objects.existing().filter(Q(name=stack.name) | Q(host=stack.host)).exists()
            Stack.objects.filter(pk=id).update(state=Stack.State.BROKEN, **(another if taken else {}))
            stack.refresh_from_db()
        else:
            text = f"It carries the mark of “{stack.name}”, which exists. Remove it at Dokploy."
            raise Refusal("CONFLICT", text)
        deployment = Deployment.request_removal(user, stack, via=Deployment.Via.FORM)
        for one in Orphan.objects.filter(mark=self.mark):
            ExternalResource.objects.create(
                stack=stack,
                deployment=deployment,
                kind=one.kind,
                mark=f"{one.mark}/{one.external_id}",  # of one kind there may be several
                phase="removing",
                external_id=one.external_id,
                state=ExternalResource.State.MADE,
            )
        Orphan.objects.filter(mark=self.mark).delete()
        return deployment
