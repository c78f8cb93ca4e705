"""The command `worker`: a process that only runs deployments. Its Channels consumer starts and owns the runner."""

import asyncio
import signal
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from deployments.consumers import run_channel_worker
from deployments.worker import watchdog
from deployments.worker.runner import Runner


class Command(BaseCommand):
    help = "Run deployments beside web processes, on PostgreSQL and Redis. SIGTERM and SIGINT drain the worker."

    def handle(self, *args: Any, **options: Any) -> None:
        if settings.ON_SQLITE:
            raise CommandError("On SQLite the web process runs the deployments: use manage.py serve.", returncode=2)
        asyncio.run(self.run_until_signal())

    async def run_until_signal(self) -> None:
        from deployportal.asgi import application

        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        watchdog.guard(loop)
        runner = Runner.current()
        channel_worker = asyncio.create_task(run_channel_worker(application))
        await stop.wait()
        channel_worker.cancel()
        await runner.drain()
        watchdog.end_soon()
