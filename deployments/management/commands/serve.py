"""The command `serve`: web, Channels consumer and runner in one process, on Daphne's event loop.

The demo also starts the simulator, in a process of its own.
"""

import asyncio
import contextlib
import fcntl
import os
import secrets
import signal
import socket
import subprocess
import sys
from typing import Any, TextIO

from asgiref.sync import sync_to_async
from daphne.server import Server  # before any other import of Twisted: it installs the reactor
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser
from rich.console import Console
from twisted.internet import defer, reactor

from deployments import consumers, identity, terminal
from deployments.models import Deployment, DeploymentRequest, Template
from deployments.realtime import pubsub
from deployments.worker import watchdog
from deployments.worker.runner import Runner

STARTING_SECONDS = 20
SAMPLE = "hello"
ALREADY_RUNNING = "A portal is already running with the data directory {}. Stop it first."


class Command(BaseCommand):
    help = "Run the portal on one machine: as a demo with a simulator, or with the Dokploy server at DOKPLOY_URL."
    requires_system_checks = "__all__"

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--bind", default="127.0.0.1", metavar="ADDRESS", help="the address to listen on (ignored in the demo)"
        )
        parser.add_argument("--no-sample", action="store_true", help="do not deploy a sample stack on the first start")

    def handle(self, *args: Any, **options: Any) -> None:
        bind = "127.0.0.1" if settings.DEMO else options["bind"]
        lock = self.lock()
        for port, listener in self.ports():
            self.require_free(bind if listener == "portal" else "127.0.0.1", port, listener)
        call_command("setup")
        simulator = self.start_simulator() if settings.DEMO else None
        if settings.ON_SQLITE:
            Deployment.release_all()  # this process holds the lock, so the earlier process has ended
        self.console = Console()
        self.print_welcome(bind)
        try:
            self.serve(bind, sample=settings.DEMO and not options["no_sample"])
        finally:
            if simulator is not None:
                self.stop_simulator(simulator)
            lock.close()
        watchdog.end_soon()

    # -- one process per data directory, and its ports -----------------------------------------------------------------

    def lock(self) -> TextIO:
        """Lock the data directory for this process. The lock ends with the process, also after a crash."""
        handle = open(settings.DATA_DIR / "serve.lock", "a+")  # noqa: SIM115 - open until the process ends
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandError(ALREADY_RUNNING.format(settings.DATA_DIR), returncode=2) from None
        handle.truncate(0)
        handle.write(str(settings.PORT))  # manage.py deploy reads it: the port is part of a demo stack's URL
        handle.flush()
        return handle

    def ports(self) -> list[tuple[int, str]]:
        """Return the ports that must be free, each with the name of what will listen on it."""
        ports = [(settings.PORT, "portal")]
        if settings.DEMO:
            ports += [(settings.SIMULATOR_PORT, "simulator"), (settings.ROUTER_PORT, "router of the simulator")]
        return ports

    def require_free(self, bind: str, port: int, listener: str) -> None:
        """Raise CommandError when another process uses the port."""
        family = socket.AF_INET6 if ":" in bind else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as test_socket:
            test_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                test_socket.bind((bind, port))
            except OSError:
                text = (
                    f"Port {port}, for the {listener}, is used by another process. Stop that process, or use other "
                    f"ports: PORT={settings.PORT + 1000} make run"
                )
                raise CommandError(text, returncode=2) from None

    # -- the simulator -------------------------------------------------------------------------------------------------

    def start_simulator(self) -> subprocess.Popen[str]:
        """Start the simulator, in a session of its own, so that Ctrl-C reaches only the portal.

        The simulator ends when its standard input closes, and therefore also when the portal crashes.
        """
        command = [
            *(sys.executable, "-m", "deployments.simulator", "--until-stdin-closes"),
            *("--api", f"127.0.0.1:{settings.SIMULATOR_PORT}"),
            *("--router", f"127.0.0.1:{settings.ROUTER_PORT}"),
            *("--data", str(settings.DATA_DIR / "simulator")),
            *("--pull", str(settings.SIMULATOR_PULL_SECONDS)),
            *("--start", str(settings.SIMULATOR_START_SECONDS)),
            *("--latency", str(settings.SIMULATOR_LATENCY_SECONDS)),
            *("--monitor", str(settings.SIMULATOR_MONITOR_SECONDS)),
        ]
        env = {**os.environ, "SIMULATOR_API_KEY": settings.DOKPLOY_API_KEY}
        env.pop("DJANGO_SETTINGS_MODULE", None)
        simulator = subprocess.Popen(  # noqa: S603
            command,
            cwd=settings.BASE_DIR,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert simulator.stdout is not None
        if not simulator.stdout.readline().startswith("ready"):
            simulator.wait(STARTING_SECONDS)
            raise CommandError("The simulator did not start. Its error is above.", returncode=2)
        return simulator

    def stop_simulator(self, simulator: subprocess.Popen[str]) -> None:
        assert simulator.stdin is not None
        with contextlib.suppress(OSError):
            simulator.stdin.close()
        try:
            simulator.wait(10)
        except subprocess.TimeoutExpired:
            simulator.kill()
            simulator.wait()

    # -- the terminal --------------------------------------------------------------------------------------------------

    def print_welcome(self, bind: str) -> None:
        def write(line: str) -> None:
            self.console.print(line, soft_wrap=True, highlight=False)

        write(f"\n[bold]Deploy Portal[/]  http://{'localhost' if settings.DEMO else bind}:{settings.PORT}/")
        if settings.DEMO:
            password = self.demo_operator()
            write(
                f"Operator       http://localhost:{settings.PORT}/admin/  user operator, password [bold]{password}[/]"
            )
            api, router = settings.SIMULATOR_PORT, settings.ROUTER_PORT
            write(f"This is a demo: it deploys to a simulator on this machine (API on {api}, router on {router}).")
        elif not get_user_model().objects.filter(is_superuser=True).exists():
            write("There is no operator yet. Create one: .venv/bin/python manage.py createsuperuser")
        write("Stop with Ctrl-C.\n")

    def demo_operator(self) -> str:
        """Create the demo's operator if necessary, and return the password, which is stored in the data directory."""
        path = settings.DATA_DIR / "operator-password"
        operator, created = get_user_model().objects.get_or_create(
            username="operator", defaults={"is_staff": True, "is_superuser": True}
        )
        if created or not path.exists():
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as handle:
                handle.write(secrets.token_urlsafe(12))
            operator.set_password(path.read_text())
            operator.save()
        return path.read_text()

    # -- the event loop ------------------------------------------------------------------------------------------------

    def serve(self, bind: str, *, sample: bool) -> None:
        from deployportal.asgi import application

        loop = reactor._asyncioEventloop
        tasks: set[asyncio.Task[None]] = set()

        def begin() -> None:
            watchdog.guard(loop)
            pubsub.bind_loop()
            tasks.add(loop.create_task(consumers.run_channel_worker(application)))
            Runner.current().notify()  # claim unfinished deployments of an earlier process at once
            if sample:
                tasks.add(loop.create_task(self.deploy_sample()))

        def drain() -> defer.Deferred[Any]:
            self.console.print("\nStopping. Unfinished deployments continue at the next start.")
            for task in tasks:
                task.cancel()
            runner = Runner._current
            return defer.Deferred.fromFuture(loop.create_task(runner.drain())) if runner else defer.succeed(None)

        server = Server(
            application,
            endpoints=[f"tcp:port={settings.PORT}:interface={bind.replace(':', chr(92) + ':')}"],
            ping_interval=5,
            ping_timeout=10,
            websocket_max_message_size=64 * 1024,
            websocket_max_frame_size=64 * 1024,
            server_name="deploy-portal",
        )
        loop.call_soon(begin)  # not reactor.callWhenRunning: Twisted runs its callbacks before the loop runs
        reactor.addSystemEventTrigger("before", "shutdown", drain)  # type: ignore[arg-type]
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        server.run()

    async def deploy_sample(self) -> None:
        deployment = await sync_to_async(self.request_sample)()
        if deployment is not None:
            await terminal.follow(deployment, self.console)
            self.console.print(f"\nNow deploy your own: http://localhost:{settings.PORT}/\n")

    def request_sample(self) -> Deployment | None:
        """Request a deployment of the sample stack, on the first start only."""
        template = Template.objects.filter(slug="web-page").first() or Template.objects.first()
        if Deployment.objects.exists() or template is None:
            return None
        values = {key: field.initial for key, field in template.form_fields().items()}
        return DeploymentRequest(identity.demo_user(), template, values, Deployment.Via.COMMAND).deploy(SAMPLE)
