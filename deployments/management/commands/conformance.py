import asyncio
import contextlib
import signal
import sys
import time
from typing import Any, cast

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from deployments import dokploy_checks, system_checks
from deployments.engine import conformance, validation
from deployments.engine.dokploy import Dokploy
from deployments.engine.spec import Certificate

MINUTE = 60.0


class Command(BaseCommand):
    help = (
        "Rehearses with throwaway stacks whether the Dokploy server at DOKPLOY_URL does what the portal relies on, and "
        "takes them away again. Ends with 0 (it does, and nothing is left), 1 (it does not) or 2 (not begun)."
    )
    requires_system_checks: list[str] = []  # those of this are made below: what is wrong ends with 2

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--image", default=settings.STACK_IMAGE, help="default: STACK_IMAGE (%(default)s)")
        parser.add_argument("--second-image", help="for the redeploy (default: the same, with another variable)")
        parser.add_argument("--port", type=int, default=settings.STACK_PORT, help="default: STACK_PORT (%(default)s)")
        parser.add_argument("--health-path", default=settings.STACK_HEALTH_PATH, help="default: %(default)s")
        parser.add_argument("--minutes", type=float, default=30.0, help="for all of it (default: %(default)s)")
        parser.add_argument("--yes", action="store_true", help="do not ask before it begins")

    def handle(self, *args: Any, **options: Any) -> None:
        if settings.DEMO:
            raise _not_begun("The demo has a simulator only. Name a real server by DOKPLOY_URL and DOKPLOY_API_KEY.")
        ground = self.ground(options)
        self.examine()
        dokploy = Dokploy(
            settings.DOKPLOY_URL, settings.DOKPLOY_API_KEY, calls_per_second=settings.DOKPLOY_CALLS_PER_SECOND
        )
        stage = conformance.Stage(dokploy, ground, self.say, key=settings.DOKPLOY_API_KEY)
        self.say(f"Throwaway stacks: {ground.url.replace('{name}', f'{stage.name}-a')} and so on, marked {stage.mark}…")
        self.say(f"Images: {ground.image}, then {ground.second_image}; port {ground.port}")
        if not options["yes"]:
            self.ask()
        began = time.monotonic()
        went_well = asyncio.run(self.rehearse(stage, options["minutes"] * MINUTE))
        self.sum_up(stage, time.monotonic() - began)
        sys.exit(0 if went_well else 1)

    def ground(self, options: dict[str, Any]) -> conformance.Ground:
        """What is asked for, looked at before anything is."""
        for message in (*system_checks.check_dokploy(), *system_checks.check_stacks()):
            if message.is_serious():
                raise _not_begun(f"{message.msg} {message.hint or ''}")
            self.say(message.msg)
        images = options["image"], options["second_image"] or options["image"]
        for image in images:
            try:
                validation.validate_image(image)
            except ValueError as error:
                raise _not_begun(f"{image!r} is no image. {error}") from None
        if options["port"] not in system_checks.PORTS:
            raise _not_begun(f"{options['port']} is no port.")
        return conformance.Ground(
            *images,
            port=options["port"],
            url=settings.STACK_URL,
            certificate=cast(Certificate, settings.STACK_CERTIFICATE),
            health_path=options["health_path"],
            health_interval=settings.STACK_HEALTH_INTERVAL_SECONDS,
            health_timeout=settings.STACK_HEALTH_TIMEOUT_SECONDS,
            router_address=settings.STACK_ROUTER_ADDRESS,
        )

    def examine(self) -> None:
        """Whether the server can be asked at all, and who it is."""
        self.say(f"The Dokploy server at {settings.DOKPLOY_URL}:")
        found = asyncio.run(dokploy_checks.examine(settings.DOKPLOY_URL, settings.DOKPLOY_API_KEY))
        for message in found:
            if not message.is_serious():
                self.say(f"  {message.msg}")
        wrong = [f"{message.msg} {message.hint or ''}" for message in found if message.is_serious()]
        if wrong:
            raise _not_begun("\n".join(wrong))

    def ask(self) -> None:
        if not sys.stdin.isatty():
            raise _not_begun("Nobody can be asked here whether to begin: add --yes.")
        answer = ""
        with contextlib.suppress(EOFError, KeyboardInterrupt):
            answer = input("This makes throwaway stacks on that server, and removes them. Type yes to begin: ")
        if answer.strip().lower() != "yes":
            raise _not_begun("Nothing was done.")

    async def rehearse(self, stage: conformance.Stage, limit: float) -> bool:
        stop = asyncio.Event()

        def stopped() -> None:
            self.say("Stopping: what was made is taken away first.")
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup is meant
                asyncio.get_running_loop().add_signal_handler(number, stopped)
        try:
            return await conformance.run(stage, stop, limit=limit)
        finally:
            await stage.dokploy.aclose()

    def sum_up(self, stage: conformance.Stage, seconds: float) -> None:
        for what in stage.left:
            self.say(f"     left  {what}")
        if not stage.left:
            self.say("           nothing")
        counts = f"{stage.held} expectations held, {len(stage.differences)} differ, {len(stage.not_seen)} not seen"
        self.say(f"\n{counts}, {len(stage.left) or 'nothing'} left at Dokploy, in {seconds:.0f} s.")
        for what in stage.differences:
            self.say(f"  differs  {what}")
        for what in stage.not_seen:
            self.say(f" not seen  {what}")

    def say(self, line: str) -> None:
        with contextlib.suppress(OSError):  # a reader that went away is no reason to leave stacks behind
            self.stdout.write(line)
            self.stdout.flush()


def _not_begun(why: str) -> CommandError:
    return CommandError(why.strip(), returncode=2)
