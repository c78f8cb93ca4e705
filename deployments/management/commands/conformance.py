"""The command `conformance`: rehearse the portal's operations on the Dokploy server, with throwaway stacks."""

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
        "Test with throwaway stacks whether the Dokploy server at DOKPLOY_URL behaves as the portal expects, and "
        "remove them. Exit code: 0 if nothing differs and nothing is left, 1 otherwise, 2 if the test did not start."
    )
    requires_system_checks: list[str] = []  # `_read_config` runs the necessary ones; an error exits with 2

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--image", default=settings.STACK_IMAGE, help="default: STACK_IMAGE, %(default)s")
        parser.add_argument("--second-image", help="the image of the redeployment (default: the one of --image)")
        parser.add_argument("--port", type=int, default=settings.STACK_PORT, help="default: STACK_PORT, %(default)s")
        parser.add_argument("--health-path", default=settings.STACK_HEALTH_PATH, help="default: %(default)s")
        parser.add_argument("--minutes", type=float, default=30.0, help="time limit (default: %(default)s)")
        parser.add_argument("--yes", action="store_true", help="start without asking")

    def handle(self, *args: Any, **options: Any) -> None:
        if settings.DEMO:
            raise _not_started("The demo has only a simulator. Set DOKPLOY_URL and DOKPLOY_API_KEY for a real server.")
        config = self._read_config(options)
        self._check_server()
        dokploy = Dokploy(
            settings.DOKPLOY_URL, settings.DOKPLOY_API_KEY, calls_per_second=settings.DOKPLOY_CALLS_PER_SECOND
        )
        session = conformance.Session(dokploy, config, self._write, key=settings.DOKPLOY_API_KEY)
        first_url = config.url.replace("{name}", f"{session.name}-a")
        self._write(f"Throwaway stacks: {first_url} and so on, marked {session.mark}…")
        self._write(f"Images: {config.image}, then {config.second_image}; port {config.port}")
        if not options["yes"]:
            self._confirm()
        started = time.monotonic()
        passed = asyncio.run(self._run(session, options["minutes"] * MINUTE))
        self._write_summary(session, time.monotonic() - started)
        sys.exit(0 if passed else 1)

    def _read_config(self, options: dict[str, Any]) -> conformance.StackConfig:
        """Return the configuration. Raise CommandError when a setting or an option is wrong."""
        for message in (*system_checks.check_dokploy(), *system_checks.check_stacks()):
            if message.is_serious():
                raise _not_started(f"{message.msg} {message.hint or ''}")
            self._write(message.msg)
        images = options["image"], options["second_image"] or options["image"]
        for image in images:
            try:
                validation.validate_image(image)
            except ValueError as error:
                raise _not_started(f"{image!r} is not an image. {error}") from None
        if options["port"] not in system_checks.PORTS:
            raise _not_started(f"{options['port']} is not a port.")
        return conformance.StackConfig(
            *images,
            port=options["port"],
            url=settings.STACK_URL,
            certificate=cast(Certificate, settings.STACK_CERTIFICATE),
            health_path=options["health_path"],
            health_interval=settings.STACK_HEALTH_INTERVAL_SECONDS,
            health_timeout=settings.STACK_HEALTH_TIMEOUT_SECONDS,
            proof_seconds=settings.STACK_PROOF_SECONDS,
            router_address=settings.STACK_ROUTER_ADDRESS,
        )

    def _check_server(self) -> None:
        """Write the results of the server's checks. Raise CommandError when one of them fails."""
        self._write(f"The Dokploy server at {settings.DOKPLOY_URL}:")
        messages = asyncio.run(dokploy_checks.examine(settings.DOKPLOY_URL, settings.DOKPLOY_API_KEY))
        for message in messages:
            if not message.is_serious():
                self._write(f"  {message.msg}")
        errors = [f"{message.msg} {message.hint or ''}" for message in messages if message.is_serious()]
        if errors:
            raise _not_started("\n".join(errors))

    def _confirm(self) -> None:
        """Ask the operator whether to start. Raise CommandError for any answer but yes."""
        if not sys.stdin.isatty():
            raise _not_started("There is no terminal to ask for a confirmation: add --yes.")
        answer = ""
        with contextlib.suppress(EOFError, KeyboardInterrupt):
            answer = input("This creates throwaway stacks on that server and removes them. Type yes to start: ")
        if answer.strip().lower() != "yes":
            raise _not_started("Nothing was done.")

    async def _run(self, session: conformance.Session, limit: float) -> bool:
        """Run the session for at most `limit` seconds, or until a signal arrives. Return whether it passed."""
        stop = asyncio.Event()

        def on_signal() -> None:
            self._write("Stopping: everything that was created is removed first.")
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP on purpose
                asyncio.get_running_loop().add_signal_handler(number, on_signal)
        try:
            return await conformance.run(session, stop, limit=limit)
        finally:
            await session.dokploy.aclose()

    def _write_summary(self, session: conformance.Session, seconds: float) -> None:
        for leftover in session.leftovers:
            self._write(f"     left  {leftover}")
        if not session.leftovers:
            self._write("           nothing is left")
        counts = f"{session.met} expectations met, {len(session.differences)} differ, {len(session.skipped)} skipped"
        self._write(f"\n{counts}, {len(session.leftovers) or 'nothing'} left in Dokploy, in {seconds:.0f} s.")
        for difference in session.differences:
            self._write(f"  differs  {difference}")
        for reason in session.skipped:
            self._write(f"  skipped  {reason}")

    def _write(self, line: str) -> None:
        with contextlib.suppress(OSError):  # the cleanup must go on even if the output was closed
            self.stdout.write(line)
            self.stdout.flush()


def _not_started(reason: str) -> CommandError:
    return CommandError(reason.strip(), returncode=2)
