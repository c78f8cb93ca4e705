import secrets

from django.db import models


class Installation(models.Model):
    """The identity of this portal at Dokploy: the middle part of every mark. The table has one row."""

    id = models.CharField(primary_key=True, max_length=32)
    only = models.BooleanField(default=True, unique=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    orphans_scanned_at = models.DateTimeField(null=True, blank=True, db_column="looked_for_orphans_at")

    class Meta:
        constraints = [models.CheckConstraint(condition=models.Q(only=True), name="one_installation")]

    def __str__(self) -> str:
        return self.id

    @classmethod
    def current(cls) -> "Installation":
        """Return the one row, created with a random id if it does not exist."""
        return cls.objects.get_or_create(only=True, defaults={"id": secrets.token_hex(8)})[0]
