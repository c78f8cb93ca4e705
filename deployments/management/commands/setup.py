from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand

from deployments import identity
from deployments.models import Installation, Template


class Command(BaseCommand):
    help = "Migrate the database, and create the installation's id, first template and built-in users. Idempotent."

    def handle(self, *args: Any, **options: Any) -> None:
        call_command("migrate", verbosity=0, interactive=False)
        Installation.current()
        Template.follow_settings()
        identity.open_user()
        if settings.DEMO:
            identity.demo_user()
