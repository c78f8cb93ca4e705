from django.db import models
from django.utils import timezone

from .deployment import Deployment


class Event(models.Model):
    """One entry of a deployment's timeline, numbered from 1 without gaps, with the deployment's state at that time."""

    class Type(models.TextChoices):
        PHASE = "phase"
        PROBE = "rung"
        LOG = "log"
        RESOURCE = "receipt"
        NOTE = "note"

    deployment = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="events")
    seq = models.PositiveIntegerField()
    at = models.DateTimeField(default=timezone.now)
    type = models.CharField(max_length=10, choices=Type.choices, db_column="kind")
    phase = models.CharField(max_length=30)
    status = models.CharField(max_length=12)
    progress = models.PositiveSmallIntegerField()
    message = models.CharField(max_length=500)
    data = models.JSONField(default=dict)

    class Meta:
        ordering = ["seq"]
        constraints = [models.UniqueConstraint(fields=["deployment", "seq"], name="one_event_of_a_number")]

    def __str__(self) -> str:
        return f"{self.seq} {self.type} {self.message}"
