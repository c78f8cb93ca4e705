"""Support for the engine tests: the engine against a simulator process, without a database."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from deployments.engine import orchestrator
from deployments.engine.dokploy import Dokploy
from deployments.engine.errors import Failure, Interrupted
from deployments.engine.memory_store import MemoryStore
from deployments.engine.recipe import REMOVAL
from deployments.engine.reporter import Reporter
from deployments.engine.spec import Progress, Resources, StackSpec

from ...processes import IMAGE, Simulator

INSTALLATION = "inst"
SECRET = "variable-canary-4711"
PASSWORD = "password-canary-4712"
HANG_SECONDS = 60.0  # a deployment that takes longer counts as hanging
NAMES = (f"shop{number}" for number in itertools.count())

CREATE_CALLS = ("project.create", "application.create", "domain.create", "application.deploy")
SAVE_CALLS = ("application.saveDockerProvider", "application.saveEnvironment", "application.update")
DELETE_CALLS = ("application.cleanQueues", "domain.delete", "application.delete", "project.remove")
CHANGE_CALLS = {*CREATE_CALLS, *SAVE_CALLS, *DELETE_CALLS, "domain.update"}


class EngineHarness:
    """Runs the engine for one deployment, keeps its reports, and creates the reporters of later workers from them.

    Attributes:
        refused_report: the number of the report that raises Interrupted, as after the loss of the lease.
        on_report: called with each accepted report.
        report_count: the number of reports of the current worker.
    """

    def __init__(self, spec: StackSpec, earlier: "list[Progress] | None" = None) -> None:
        self.spec = spec
        self.reports: list[Progress] = list(earlier or [])
        self.times: list[float] = []
        self.refused_report: int | None = None
        self.on_report: Callable[[Progress], None] = lambda progress: None
        self.report_count = 0

    async def report(self, progress: Progress) -> None:
        self.report_count += 1
        if self.report_count == self.refused_report:
            raise Interrupted
        self.reports.append(progress)
        self.times.append(time.monotonic())
        self.on_report(progress)

    def reporter(self) -> Reporter:
        """Return the reporter of the next worker, with what the reports so far recorded."""
        self.report_count = 0
        self.refused_report = None
        return self.store().reporter(self.report)

    def store(self) -> MemoryStore:
        """Return what the reports so far recorded."""
        store = MemoryStore()
        for report in self.reports:
            store.apply(report)
        return store

    @property
    def phase(self) -> str | None:
        return self.reports[-1].phase if self.reports else None

    def messages(self, kind: str = "phase") -> list[str]:
        return [report.message for report in self.reports if report.kind == kind]

    async def deploy(self, dokploy: Dokploy, reporter: Reporter | None = None, **options: Any) -> Resources:
        reporter = reporter or self.reporter()
        async with asyncio.timeout(HANG_SECONDS):
            return await orchestrator.run(dokploy, self.spec, reporter, first_phase=self.phase, **options)

    async def deploy_and_fail(self, dokploy: Dokploy, **options: Any) -> Failure:
        with pytest.raises(Failure) as caught:
            await self.deploy(dokploy, **options)
        return caught.value

    async def undo(self, dokploy: Dokploy, reporter: Reporter | None = None, **options: Any) -> list[str]:
        reporter = reporter or self.reporter()
        async with asyncio.timeout(HANG_SECONDS):
            await reporter.begin("rolling_back", 95, "Rolling back")
            return await orchestrator.undo(dokploy, self.spec, reporter, **options)

    async def restore(self, dokploy: Dokploy, former: StackSpec, reporter: Reporter | None = None) -> list[str]:
        reporter = reporter or self.reporter()
        async with asyncio.timeout(HANG_SECONDS):
            await reporter.begin("rolling_back", 95, "Rolling back")
            return await orchestrator.restore(
                dokploy, self.spec, replace(former, deployment=f"{self.spec.deployment}.restore"), reporter
            )

    async def remove(self, dokploy: Dokploy, reporter: Reporter | None = None) -> Resources:
        reporter = reporter or self.reporter()
        async with asyncio.timeout(HANG_SECONDS):
            return await orchestrator.run(dokploy, self.spec, reporter, phases=REMOVAL, first_phase=self.phase)


def new_harness(simulator: Simulator, **fields: Any) -> EngineHarness:
    """Return a harness for a new stack, with these fields of its spec."""
    name = next(NAMES)
    host = f"{name}.apps.test"
    defaults: dict[str, Any] = {
        "installation": INSTALLATION,
        "stack": f"stk_{name}",
        "deployment": f"dep_{name}",
        "name": name,
        "image": IMAGE,
        "port": 8080,
        "host": host,
        "url": f"http://{host}",
        "env": (("GREETING", "good day"), ("TOKEN", SECRET)),
        "registry": "registry.test",
        "registry_username": "robot",
        "registry_password": PASSWORD,
        "memory_bytes": 512 * 1024 * 1024,
        "cpus": 0.5,
        "health_interval": 0.02,
        "health_timeout": 5.0,
        "proof_seconds": 0.0,
        "router_address": f"127.0.0.1:{simulator.router.base_url.port}",
        "secrets": (SECRET, PASSWORD),
    }
    return EngineHarness(StackSpec(**{**defaults, **fields}))


class StackObjects:
    """The objects of one stack in the simulator, found by its mark and its name."""

    def __init__(self, simulator: Simulator, spec: StackSpec) -> None:
        state = simulator.state()
        self.projects = [row for row in state["projects"] if row["name"] == spec.name]
        projects = {row["projectId"] for row in self.projects}
        environments = {row["environmentId"] for row in state["environments"] if row["projectId"] in projects}
        self.applications = [row for row in state["applications"] if row["environmentId"] in environments]
        ids = {row["applicationId"] for row in self.applications}
        self.domains = [row for row in state["domains"] if row["host"] == spec.host]
        self.routes = [row for row in state["routes"] if row["host"] == spec.host]
        self.dokploy_deployments = [row for row in state["deployments"] if row["title"].startswith(spec.mark + "/")]
        self.services = [row for row in state["services"] if row["name"].startswith(f"{spec.name}-")]
        self.queue = [row for row in state["queue"] if row["data"]["applicationId"] in ids]
        self.spec = spec

    def counts(self) -> dict[str, int]:
        return {
            name: len(getattr(self, name)) for name in ("projects", "applications", "domains", "routes", "services")
        }

    def assert_one_of_each(self) -> None:
        """Assert that there is exactly one object of each kind, with the mark and the settings of the spec."""
        spec = self.spec
        assert self.counts() == {"projects": 1, "applications": 1, "domains": 1, "routes": 1, "services": 1}
        application, domain, service = self.applications[0], self.domains[0], self.services[0]
        assert self.projects[0]["description"] == application["description"] == spec.mark
        assert (application["name"], application["dockerImage"]) == (spec.name, spec.image)
        assert (application["registryUrl"], application["password"]) == (spec.registry, spec.registry_password)
        assert (application["memoryLimit"], application["cpuLimit"]) == (str(spec.memory_bytes), "500000000")
        assert domain["applicationId"] == application["applicationId"]
        assert (domain["port"], domain["https"], domain["path"]) == (spec.port, False, "/")
        assert service["name"] == application["appName"]
        assert service["image"] == spec.image
        assert service["env"] == [f"{key}={value}" for key, value in spec.env]
        assert any(row["status"] == "done" for row in self.dokploy_deployments)
        assert self.queue == []

    def assert_none(self) -> None:
        assert self.counts() == {"projects": 0, "applications": 0, "domains": 0, "routes": 0, "services": 0}
        assert (self.dokploy_deployments, self.queue) == ([], [])


def count_calls(simulator: Simulator) -> Counter[str]:
    """Return how often each procedure of Dokploy was called so far."""
    return Counter(simulator.state()["calls"])


async def eventually(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Return the condition's value as soon as it is true. Fail after this many seconds."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, "the condition did not become true in time"
        await asyncio.sleep(0.005)
    return result


async def cancel_until_done(task: "asyncio.Task[Any]") -> None:
    """Cancel the task repeatedly until it ends, so that no cleanup delays it: as if its worker died during a call."""
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)
    assert task.cancelled()


def logged_lines(harness: EngineHarness) -> dict[str, list[str]]:
    """Return the reported log lines of each Dokploy deployment. Assert that none is missing and none is repeated."""
    lines: dict[str, list[str]] = {}
    for report in harness.reports:
        if report.kind == "log":
            reported = lines.setdefault(report.data["source"], [])
            assert report.data["first"] == len(reported) + 1
            reported += report.data["lines"]
    return lines


def longest_silence(harness: EngineHarness) -> float:
    """Return the longest time between two reports, in seconds."""
    return max(later - earlier for earlier, later in itertools.pairwise(harness.times))


def count_heartbeats(harness: EngineHarness) -> int:
    return sum(bool(report.data.get("alive")) for report in harness.reports)
