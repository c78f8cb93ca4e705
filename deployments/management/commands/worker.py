import asyncio
import signal
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from deployments.consumers import answer_the_bell
from deployments.runner import Runner, end_soon


class Command(BaseCommand):
    help = "Runs deployments, scaled out: beside web processes, on PostgreSQL and Redis. SIGTERM drains it."

    def handle(self, *args: Any, **options: Any) -> None:
        if settings.ON_SQLITE:
            raise CommandError("On SQLite the web process runs the deployments: use manage.py serve.", returncode=2)
        asyncio.run(self.work())

    async def work(self) -> None:
        from deployportal.asgi import application

        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        runner = Runner.of_this_process()
        bell = asyncio.create_task(answer_the_bell(application))
        await stop.wait()
        bell.cancel()
        await runner.drain()
        end_soon()
