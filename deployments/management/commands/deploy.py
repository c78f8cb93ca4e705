"""The command `deploy`: deploy a stack, and show the progress in the terminal."""

import asyncio
import fcntl
import sys
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import User
from django.core.management.base import BaseCommand, CommandError, CommandParser
from rich.console import Console

from deployments import identity, terminal
from deployments.forms import read_parameters
from deployments.models import Deployment, DeploymentRequest, Refusal, Stack, Template


class Command(BaseCommand):
    help = "Deploy a stack and show its progress. Exit code: 0 (live), 1 (failed) or 2 (refused)."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", help="the name of the stack")
        parser.add_argument(
            "--template", metavar="SLUG", help="the template (default: the stack's own, otherwise the first)"
        )
        parser.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="a parameter of the template"
        )
        parser.add_argument("--user", help="the owner (default: the demo user, otherwise the first operator)")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            deployment = self.request(options)
        except Refusal as refusal:
            raise CommandError(refusal.message, returncode=2) from None
        deployment = asyncio.run(terminal.follow(deployment, Console()))
        sys.exit(0 if deployment.status == Deployment.Status.SUCCESS else 1)

    def request(self, options: dict[str, Any]) -> Deployment:
        if settings.ON_SQLITE:
            self.require_running_portal()
        user = self.find_user(options["user"])
        stack, templates = Stack.owned_by(user, options["name"]), Template.objects.filter(active=True)
        if options["template"]:
            templates = templates.filter(slug=options["template"])
        template = stack.template if stack and not options["template"] else templates.first()
        if template is None:
            raise Refusal("INVALID_PARAMETER", f"Unknown template “{options['template'] or ''}”.")
        pairs = [pair.partition("=") for pair in options["set"]]
        values = read_parameters(template, {key: value for key, _, value in pairs}, stack)
        return DeploymentRequest(user, template, values, Deployment.Via.COMMAND).deploy(options["name"])

    def require_running_portal(self) -> None:
        """Raise Refusal PAUSED when no `manage.py serve` runs on this data directory, or when a demo uses another port.

        On one machine, `serve` runs the deployments, and its port is part of a demo stack's URL.
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
                raise Refusal("PAUSED", "The portal is not running. Start it with make run.")

    def find_user(self, username: str | None) -> User:
        """Return the active user with this name. Without a name, return the demo user or the first operator."""
        users = get_user_model().objects.filter(is_active=True)
        if username is None and settings.DEMO:
            return identity.demo_user()
        candidates = users.filter(username=username) if username else users.filter(is_superuser=True).order_by("pk")
        if user := candidates.first():
            return user
        if username:
            raise Refusal("FORBIDDEN", f"There is no active user “{username}”.")
        raise Refusal("FORBIDDEN", "There is no operator yet. Create one: manage.py createsuperuser")
