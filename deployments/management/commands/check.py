from typing import Any

from django.core.checks.registry import registry
from django.core.management.commands import check

from deployments.dokploy_checks import check_server
from deployments.system_checks import DOKPLOY


class Command(check.Command):
    help = f"{check.Command.help} With --tag {DOKPLOY} the Dokploy server itself is asked, which nothing else does."

    def handle(self, *app_labels: Any, **options: Any) -> None:
        # Without a tag Django runs whatever is registered: what touches the network is so only when it is asked for.
        if DOKPLOY in (options["tags"] or ()):
            registry.register(check_server, DOKPLOY)
        try:
            super().handle(*app_labels, **options)
        finally:
            registry.registered_checks.discard(check_server)
