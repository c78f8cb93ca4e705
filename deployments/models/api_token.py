import hashlib
import secrets
from typing import Any

from django.conf import settings
from django.db import models
from django.utils import timezone


class ApiToken(models.Model):
    """A script's credential. Only its SHA-256 digest is stored: 256 random bits need no slow password hash."""

    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="api_tokens")
    label = models.CharField(max_length=60)
    prefix = models.CharField(max_length=12)
    digest = models.CharField(max_length=64, unique=True)
    created_at = models.DateTimeField(auto_now_add=True)
    last_used_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.label} ({self.prefix}…)"

    @classmethod
    def issue(cls, owner: Any, label: str) -> tuple["ApiToken", str]:
        """Create a token. Return it with its text, which is not stored. label: shown to the user, shortened."""
        text = f"dpt_{secrets.token_urlsafe(32)}"
        cleaned_label = "".join(filter(str.isprintable, label)).strip()[:60] or "token"
        token = cls.objects.create(owner=owner, label=cleaned_label, prefix=text[:9], digest=_digest(text))
        return token, text

    @classmethod
    def authenticate(cls, text: str) -> "ApiToken | None":
        """Return the token with this text, or None if it is unknown or its owner is inactive.

        Record the time of its use, at most once a minute.
        """
        token = cls.objects.select_related("owner").filter(digest=_digest(text), owner__is_active=True).first()
        if token and (token.last_used_at is None or (timezone.now() - token.last_used_at).total_seconds() > 60):
            cls.objects.filter(pk=token.pk).update(last_used_at=timezone.now())
        return token


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
