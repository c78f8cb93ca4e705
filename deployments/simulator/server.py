"""The simulated Dokploy server: its database, queue, container engine, keys, settings and faults together."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from .api_keys import ApiKeys
from .container_engine import ContainerEngine
from .deploy_queue import DeployQueue
from .faults import Faults
from .gates import Gates
from .initial_data import create_initial_rows
from .settings import Settings
from .store import Row, Store, pick


class DokployServer:
    def __init__(self, store: Store, settings: Settings, owner_key: str) -> None:
        create_initial_rows(store)
        self.store = store
        self.settings = settings
        self.keys = ApiKeys(owner_key, settings)
        self.gates = Gates()
        self.faults = Faults()
        # The role of the key whose call is executed.
        self.role = "owner"
        # How often each procedure was called.
        self.calls: Counter[str] = Counter()
        self.engine = ContainerEngine(store, settings, self.gates)
        self.queue = DeployQueue(store, self.engine, settings, self.gates)
        # The tasks that send a log to a client; a restart cancels them.
        self.log_followers: set[asyncio.Task[None]] = set()
        self._down_until = 0.0

    def start(self) -> None:
        self.engine.restore()
        self.queue.start()

    async def close(self) -> None:
        await self.queue.stop()
        await self.engine.close()
        self.store.close()

    async def restart(self, seconds: float) -> None:
        """Restart Dokploy and reset all connections for this many seconds. Containers continue to run."""
        await self.queue.stop()
        self.queue.start()
        self._down_until = time.monotonic() + seconds
        for follower in self.log_followers:
            follower.cancel()

    @property
    def is_down(self) -> bool:
        return time.monotonic() < self._down_until

    def find_deployment_by_log(self, path: str) -> str | None:
        """Return the id of the newest deployment that logs to this file, or None. Two in one second share a file."""
        ids = [row["deploymentId"] for row in self.store.deployments.where(logPath=path)]
        return ids[-1] if ids else None

    async def follow_log(self, deployment_id: str) -> AsyncIterator[str]:
        """Yield a log from its start and then whatever is appended, without end, like `tail -f`."""
        sent = 0
        while True:
            written = self.queue.log_written
            text = self.store.logs.get(deployment_id, {"text": ""})["text"][sent:]
            if text:
                yield text
            sent += len(text)
            await written.wait()

    def state(self) -> dict[str, Any]:
        """Return all rows, services, routes and queued jobs, for tests."""
        tables = ("projects", "environments", "applications", "domains", "deployments", "routes")
        return {
            **{name: list(getattr(self.store, name).values()) for name in tables},
            "services": [self._describe_service(service) for service in self.store.services.values()],
            "queue": self.queue.list_jobs(),
        }

    def _describe_service(self, service: Row) -> Row:
        is_up = self.engine.serving_task(service["name"]) is not None
        return {**pick(service, "name", "image", "env", "replicas"), "up": is_up}
