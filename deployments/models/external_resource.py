from typing import TYPE_CHECKING

from django.db import models
from django.db.models import Q
from django.utils import timezone

from ..engine.spec import Progress
from .stack import Stack

if TYPE_CHECKING:
    from .deployment import Deployment


class ExternalResourceQuerySet(models.QuerySet["ExternalResource"]):
    def existing(self) -> "ExternalResourceQuerySet":
        """Return the resources that exist at Dokploy or may still be created there."""
        return self.exclude(state=ExternalResource.State.GONE)


class ExternalResource(models.Model):
    """The record of one object that the portal has created, or is about to create, at Dokploy."""

    class State(models.TextChoices):
        INTENDED = "intended", "about to be created"
        MADE = "made", "created"
        REMOVING = "removing", "removing"
        GONE = "gone", "gone, verified"
        LEFT = "left", "could not be removed"

    stack = models.ForeignKey(Stack, on_delete=models.PROTECT, related_name="external_resources")
    deployment = models.ForeignKey("Deployment", on_delete=models.PROTECT, related_name="external_resources")
    resource_type = models.CharField(max_length=20, db_column="kind")
    mark = models.CharField(max_length=255)
    phase = models.CharField(max_length=30)
    external_id = models.CharField(max_length=64, blank=True)
    state = models.CharField(max_length=10, choices=State.choices, default=State.INTENDED)
    why = models.CharField(max_length=500, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    objects = ExternalResourceQuerySet.as_manager()

    class Meta:
        db_table = "deployments_receipt"
        default_permissions = ()
        permissions = [("view_receipt", "Can view external resource")]  # the codename that groups already hold
        ordering = ["id"]
        constraints = [
            models.UniqueConstraint(
                fields=["stack", "resource_type", "mark"], condition=~Q(state="gone"), name="one_receipt_of_a_mark"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.resource_type} {self.external_id or self.mark} ({self.state})"

    @classmethod
    def record(cls, deployment: "Deployment", progress: Progress) -> None:
        """Record what a report says about one object. A removal without an id concerns all objects of its type."""
        state, resource_type = progress.data["state"], progress.data["kind"]
        id, now = progress.data.get("id") or "", timezone.now()
        recorded = cls.objects.filter(stack=deployment.stack_id, resource_type=resource_type).existing()
        if state in (cls.State.INTENDED, cls.State.MADE):
            mark = progress.data["mark"]
            if not recorded.filter(mark=mark).update(state=state, external_id=id, updated_at=now):
                cls.objects.create(
                    stack_id=deployment.stack_id,
                    deployment=deployment,
                    resource_type=resource_type,
                    mark=mark,
                    phase=progress.phase,
                    external_id=id,
                    state=state,
                )
            return
        if id:
            recorded = recorded.filter(external_id__in=[id, ""])  # "": recorded before its id was known
            recorded.update(external_id=id)
        recorded.update(state=state, why=str(progress.data.get("why", ""))[:500], updated_at=now)
