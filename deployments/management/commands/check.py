"""Django's command `check`, which with --tag dokploy also checks the Dokploy server."""

from typing import Any

from django.core.checks.registry import registry
from django.core.management.commands import check

from deployments.dokploy_checks import check_server
from deployments.system_checks import DOKPLOY


class Command(check.Command):
    help = f"{check.Command.help} With --tag {DOKPLOY}, it also checks the Dokploy server."

    def handle(self, *app_labels: Any, **options: Any) -> None:
        # Django runs every registered check when no tag is given. The check of the server uses the network, so it is
        # registered only when its tag is.
        if DOKPLOY in (options["tags"] or ()):
            registry.register(check_server, DOKPLOY)
        try:
            super().handle(*app_labels, **options)
        finally:
            registry.registered_checks.discard(check_server)
