import asyncio
import fcntl
import sys
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError, CommandParser
from rich.console import Console

from deployments import identity, terminal
from deployments.forms import read_parameters
from deployments.models import Deployment, DeploymentRequest, Refusal, Stack, Template


class Command(BaseCommand):
    help = "Deploys a stack and follows it. Exit status: 0 live, 1 failed, 2 refused."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name")
        parser.add_argument("--template", metavar="SLUG", help="the template (default: the stack's, else the first)")
        parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a parameter")
        parser.add_argument("--user", help="the owner (default: the demo user, or the first operator)")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            deployment = self.request(options)
        except Refusal as refusal:
            raise CommandError(refusal.message, returncode=2) from None
        ended = asyncio.run(terminal.follow(deployment, Console()))
        sys.exit(0 if ended.status == Deployment.Status.SUCCESS else 1)

    def request(self, options: dict[str, Any]) -> Deployment:
        if settings.ON_SQLITE:
            self.require_running_portal()
        user = self.user(options["user"])
        stack, offered = Stack.owned_by(user, options["name"]), Template.objects.filter(active=True)
        if options["template"]:
            offered = offered.filter(slug=options["template"])
        template = stack.template if stack and not options["template"] else offered.first()
        if template is None:
            raise Refusal("INVALID_PARAMETER", f"There is no template “{options['template'] or ''}”.")
        pairs = [pair.partition("=") for pair in options["set"]]
        values = read_parameters(template, {key: value for key, _, value in pairs}, stack)
        return DeploymentRequest(user, template, values, Deployment.Via.COMMAND).deploy(options["name"])

    def require_running_portal(self) -> None:
        """Raise Refusal unless `serve` runs with these settings: on one machine it runs the deployments.

        In a demo, its port is part of each stack's address.
        """
        with open(settings.DATA_DIR / "serve.lock", "a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                port = lock.read().strip()
                if settings.DEMO and port != str(settings.PORT):
                    text = f"The portal runs on port {port}. Use PORT={port} manage.py deploy …"
                    raise Refusal("PAUSED", text) from None
            else:
                raise Refusal("PAUSED", "No portal is running here. Start it: make run")

    def user(self, username: str | None) -> Any:
        users = get_user_model().objects.filter(is_active=True)
        if username is None and settings.DEMO:
            return identity.demo_user()
        found = users.filter(username=username) if username else users.filter(is_superuser=True).order_by("pk")
        if user := found.first():
            return user
        if username:
            raise Refusal("FORBIDDEN", f"There is no active user “{username}”.")
        raise Refusal("FORBIDDEN", "There is no operator yet. Create one: manage.py createsuperuser")
