"""The recipe and its undo against the real simulator: what is there afterwards, and what was said meanwhile."""

import asyncio
import functools
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from deployments.engine import containers, deploy, orchestrator
from deployments.engine import reporter as reporter_module
from deployments.engine.dokploy import Dokploy, transport
from deployments.engine.dokploy import client as client_module
from deployments.engine.errors import Failure, Interrupted
from deployments.engine.recipe import PHASES, REMOVAL
from deployments.engine.reporter import Reporter
from deployments.engine.resources import base
from deployments.engine.spec import Progress, Resources, StackSpec

from ..processes import IMAGE, KEY, Simulator

pytestmark = pytest.mark.asyncio(loop_scope="module")
INSTALLATION = "inst"
SECRET = "variable-canary-4711"
PASSWORD = "password-canary-4712"
NAMES = (f"shop{number}" for number in itertools.count())


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def dokploy(running: Simulator) -> AsyncIterator[Dokploy]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client_module, "QUEUE_PAUSE_SECONDS", 0.0)
        made = Dokploy(f"http://127.0.0.1:{running.port}", KEY)
    yield made
    await made.aclose()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "RECHECK_SECONDS", 0.01)
    monkeypatch.setattr(containers, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(deploy, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(deploy, "SETTLE_SECONDS", 5.0)
    monkeypatch.setattr(reporter_module, "LOG_SECONDS", 0.01)
    monkeypatch.setattr(transport, "SECOND_TRY_SECONDS", 0.01)
    monkeypatch.setattr(orchestrator, "FIRST_BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(orchestrator, "MAX_BACKOFF_SECONDS", 0.02)


class Run:
    """What a run's rows would hold: every report that was taken, and what the next worker learns from them.

    refuse: number of the report that is not taken (the lease is lost).
    """

    def __init__(self, spec: StackSpec, earlier: "list[Progress] | None" = None) -> None:
        self.spec = spec
        self.reports: list[Progress] = list(earlier or [])
        self.times: list[float] = []
        self.refuse: int | None = None
        self.watch: Callable[[Progress], None] = lambda progress: None
        self._asked = 0

    async def report(self, progress: Progress) -> None:
        self._asked += 1
        if self._asked == self.refuse:
            raise Interrupted
        self.reports.append(progress)
        self.times.append(time.monotonic())
        self.watch(progress)

    def reporter(self) -> Reporter:
        """Of the next worker."""
        self._asked = 0
        self.refuse = None
        known = [report.resources for report in self.reports if report.resources]
        intended: set[tuple[str, str]] = set()
        ids: dict[str, str] = {}
        logged: dict[str, int] = {}
        for report in self.reports:
            data = report.data
            if report.kind == "receipt" and data["state"] in ("intended", "made"):
                intended.add((data["kind"], data["mark"]))
                ids |= {data["id"]: data["kind"]} if "id" in data else {}
            if report.kind == "log":
                logged[data["source"]] = data["first"] - 1 + len(data["lines"])
        resources = known[-1] if known else Resources()
        return Reporter(self.report, resources=resources, pending=intended, recorded_ids=ids, logged=logged)

    @property
    def phase(self) -> str | None:
        return self.reports[-1].phase if self.reports else None

    def said(self, kind: str = "phase") -> list[str]:
        return [report.message for report in self.reports if report.kind == kind]

    async def deploy(self, dokploy: Dokploy, reporter: Reporter | None = None, **more: Any) -> Resources:
        reporter = reporter or self.reporter()
        async with asyncio.timeout(20):
            return await orchestrator.run(dokploy, self.spec, reporter, first_phase=self.phase, **more)

    async def undo(self, dokploy: Dokploy, reporter: Reporter | None = None, **more: Any) -> list[str]:
        reporter = reporter or self.reporter()
        async with asyncio.timeout(20):
            await reporter.begin("rolling_back", 95, "Rolling back")
            return await orchestrator.undo(dokploy, self.spec, reporter, **more)

    async def remove(self, dokploy: Dokploy, reporter: Reporter | None = None) -> Resources:
        reporter = reporter or self.reporter()
        async with asyncio.timeout(20):
            return await orchestrator.run(dokploy, self.spec, reporter, phases=REMOVAL, first_phase=self.phase)

    async def fails(self, dokploy: Dokploy, **more: Any) -> Failure:
        with pytest.raises(Failure) as caught:
            await self.deploy(dokploy, **more)
        return caught.value


def new_run(simulator: Simulator, **more: Any) -> Run:
    name = next(NAMES)
    host = f"{name}.apps.test"
    given: dict[str, Any] = {
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
        "router_address": f"127.0.0.1:{simulator.router.base_url.port}",
        "secrets": (SECRET, PASSWORD),
    }
    return Run(StackSpec(**{**given, **more}))


class Found:
    """What of one stack is at the simulator, by its mark and its name."""

    def __init__(self, simulator: Simulator, spec: StackSpec) -> None:
        state = simulator.state()
        self.projects = [row for row in state["projects"] if row["name"] == spec.name]
        projects = {row["projectId"] for row in self.projects}
        environments = {row["environmentId"] for row in state["environments"] if row["projectId"] in projects}
        self.applications = [row for row in state["applications"] if row["environmentId"] in environments]
        ids = {row["applicationId"] for row in self.applications}
        self.domains = [row for row in state["domains"] if row["host"] == spec.host]
        self.routes = [row for row in state["routes"] if row["host"] == spec.host]
        self.builds = [row for row in state["deployments"] if row["title"].startswith(spec.mark + "/")]
        self.services = [row for row in state["services"] if row["name"].startswith(f"{spec.name}-")]
        self.queue = [row for row in state["queue"] if row["data"]["applicationId"] in ids]
        self.spec = spec

    def counts(self) -> dict[str, int]:
        return {
            name: len(getattr(self, name)) for name in ("projects", "applications", "domains", "routes", "services")
        }

    def is_one_of_each(self) -> None:
        """Exactly one of everything, ours, and as it was asked for."""
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
        assert any(build["status"] == "done" for build in self.builds)
        assert self.queue == []

    def is_nothing(self) -> None:
        assert self.counts() == {"projects": 0, "applications": 0, "domains": 0, "routes": 0, "services": 0}
        assert (self.builds, self.queue) == ([], [])


def calls(simulator: Simulator) -> Counter[str]:
    return Counter(simulator.state()["calls"])


async def soon(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, "it did not come to that in time"
        await asyncio.sleep(0.005)
    return result


MAKES = ("project.create", "application.create", "domain.create", "application.deploy")
SAVES = ("application.saveDockerProvider", "application.saveEnvironment", "application.update")
REMOVES = ("application.cleanQueues", "domain.delete", "application.delete", "project.remove")
CHANGES = {*MAKES, *SAVES, *REMOVES, "domain.update"}

# -- as it should be ---------------------------------------------------------------------------------------------------


async def test_a_deployment_makes_one_of_each_with_our_mark_and_answers(simulator: Simulator, dokploy: Dokploy) -> None:
    run = new_run(simulator)
    before = calls(simulator)
    have = await run.deploy(dokploy)
    found = Found(simulator, run.spec)
    found.is_one_of_each()
    assert have == Resources(
        project_id=found.projects[0]["projectId"],
        environment_id=found.applications[0]["environmentId"],
        application_id=found.applications[0]["applicationId"],
        app_name=found.applications[0]["appName"],
        domain_id=found.domains[0]["domainId"],
        dokploy_deployment_id=found.builds[0]["deploymentId"],
        image_digest=have.image_digest,
    )
    assert f"Digest: {have.image_digest}\n" in simulator.log(found.builds[0])
    assert [build["title"] for build in found.builds] == [f"deployportal/inst/{run.spec.stack}/{run.spec.deployment}/1"]
    assert simulator.visit(run.spec.host).status_code == 200
    made = calls(simulator) - before
    assert {name: made[name] for name in CHANGES if made[name]} == dict.fromkeys((*MAKES, *SAVES), 1)
    assert not {"application.one", "application.search", "application.killBuild", "deployment.allByType"} & set(made)


async def test_phases_are_reported_in_the_order_of_the_wire(simulator: Simulator, dokploy: Dokploy) -> None:
    run = new_run(simulator)
    await run.deploy(dokploy)
    begun = [(report.phase, report.progress) for report in run.reports if report.data.get("step") == "begins"]
    assert begun == [
        ("creating_project", 10),
        ("getting_environment", 20),
        ("creating_application", 35),
        ("configuring_application", 50),
        ("creating_domain", 65),
        ("deploying", 85),
        ("verifying_health", 90),
    ]
    steps = [(report.phase, report.data["step"]) for report in run.reports if "step" in report.data]
    assert steps == [(phase, step) for phase, _ in begun for step in ("begins", "ends")]
    order = [report.phase for report in run.reports]
    assert [phase for phase, _ in itertools.groupby(order)] == [phase for phase, _ in begun]
    shown = [report.progress for report in run.reports if report.progress is not None]
    assert shown == sorted(shown)
    assert {report.status for report in run.reports} == {"in_progress"}


async def test_every_thing_made_is_announced_before_and_written_down_after(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    run = new_run(simulator)
    there: list[tuple[str, str, dict[str, int]]] = []

    def look(progress: Progress) -> None:
        if progress.kind == "receipt":
            there.append((progress.data["state"], progress.data["kind"], Found(simulator, run.spec).counts()))

    run.watch = look
    have = await run.deploy(dokploy)
    assert [(state, kind) for state, kind, _ in there] == [
        (state, kind) for kind in ("project", "application", "domain", "deploy") for state in ("intended", "made")
    ]
    for state, kind, counts in there:
        if kind != "deploy":
            assert counts[f"{kind}s"] == (state == "made")
    ids = {report.data["kind"]: report.data.get("id") for report in run.reports if report.kind == "receipt"}
    assert ids == {
        "project": have.project_id,
        "application": have.application_id,
        "domain": have.domain_id,
        "deploy": have.dokploy_deployment_id,
    }


async def test_a_phase_is_reported_the_moment_it_begins(simulator: Simulator, dokploy: Dokploy) -> None:
    """Each phase's call is held until the report of its beginning has arrived: late reports would be a deadlock."""
    gates = {
        "creating_project": "project.all",
        "getting_environment": "environment.byProjectId",
        "creating_application": "application.create",
        "configuring_application": "application.saveDockerProvider",
        "creating_domain": "domain.create",
        "deploying": "application.deploy",
        "verifying_health": "container",
    }
    assert list(gates) == [phase.name for phase in PHASES]
    for gate in gates.values():
        simulator.close_gate(gate)
    run = new_run(simulator)

    def open_gate(progress: Progress) -> None:
        if progress.data.get("step") == "begins":
            simulator.open_gate(gates[progress.phase])

    run.watch = open_gate
    await run.deploy(dokploy)
    Found(simulator, run.spec).is_one_of_each()


async def test_nothing_goes_on_while_a_report_is_not_taken(simulator: Simulator, dokploy: Dokploy) -> None:
    run = new_run(simulator)
    held, go_on = asyncio.Event(), asyncio.Event()

    class Slow(Run):
        async def report(self, progress: Progress) -> None:
            await super().report(progress)
            if progress.phase == "creating_project" and progress.data.get("step") == "ends":
                held.set()
                await go_on.wait()

    slow = Slow(run.spec)
    task = asyncio.ensure_future(slow.deploy(dokploy))
    await asyncio.wait_for(held.wait(), 5)
    before = calls(simulator)
    for _ in range(3):  # other calls go through meanwhile
        await dokploy.version()
    assert calls(simulator) - before == Counter({"settings.getDokployVersion": 3})
    assert slow.reports[-1].phase == "creating_project"
    go_on.set()
    await task


async def test_the_whole_recipe_a_second_time_changes_nothing(simulator: Simulator, dokploy: Dokploy) -> None:
    run = new_run(simulator)
    first = await run.deploy(dokploy)
    found = Found(simulator, run.spec)
    before = calls(simulator)
    again = Run(run.spec)
    assert await again.deploy(dokploy) == first
    made = calls(simulator) - before
    assert {name for name in made if name in CHANGES} == set(SAVES)
    again_found = Found(simulator, run.spec)
    again_found.applications[0]["applicationStatus"] = "done"  # Dokploy's saves say idle
    assert vars(again_found) == vars(found)
    assert "The project already exists" in again.said()


async def test_a_redeploy_is_a_deploy_of_its_own_on_the_same_objects(simulator: Simulator, dokploy: Dokploy) -> None:
    run = new_run(simulator)
    await run.deploy(dokploy)
    newer = Run(replace(run.spec, deployment="dep_newer", image="registry.test/shop/web:2"))
    await newer.deploy(dokploy)
    found = Found(simulator, newer.spec)
    found.is_one_of_each()
    assert len(found.builds) == 2


async def test_a_domain_that_was_changed_by_hand_is_set_right(simulator: Simulator, dokploy: Dokploy) -> None:
    run = new_run(simulator)
    have = await run.deploy(dokploy)
    simulator.do("domain.update", domainId=have.domain_id, host=run.spec.host, port=3000, https=True)
    await Run(run.spec).deploy(dokploy)
    Found(simulator, run.spec).is_one_of_each()


@pytest.mark.parametrize(
    ("certificate", "https", "type"),
    [("letsencrypt", True, "letsencrypt"), ("wildcard", True, "none"), ("none", False, "none")],
)
async def test_the_certificate_decides_how_the_domain_is_made(
    simulator: Simulator, dokploy: Dokploy, certificate: Any, https: bool, type: str
) -> None:
    run = new_run(simulator, certificate=certificate)
    await run.deploy(dokploy)
    domain = Found(simulator, run.spec).domains[0]
    assert (domain["https"], domain["certificateType"]) == (https, type)


async def test_no_secret_is_in_any_report_or_request_of_a_run(simulator: Simulator, dokploy: Dokploy) -> None:
    run = new_run(simulator)
    simulator.turn(pull_error=f"denied: {SECRET} {PASSWORD} {KEY}")
    exchanges: list[str] = []
    reporter = run.reporter()
    reporter.secrets = (KEY, *run.spec.secrets)
    with pytest.raises(Failure) as caught:
        await run.deploy(
            dokploy.for_deployment(lambda procedure: None, lambda seen: exchanges.append(f"{seen} {seen!r}")), reporter
        )
    await reporter.finish("failed", "failure", "Over", error=caught.value, leftovers=[f"a thing ({SECRET})"])
    told = f"{run.reports!r} {exchanges} {run.spec!r}"
    assert "denied: *** *** ***" in told
    assert "application.saveEnvironment" in told
    for secret in (SECRET, PASSWORD, KEY):
        assert secret not in told


# -- faults ------------------------------------------------------------------------------------------------------------

# What may happen to an answer, with the work done and without.
DONE = "error500_done error400_done html502_done empty200_done wrong_types reset_after hang_done".split()
NOT_DONE = "error500 empty200 reset_before unauthorized too_many hang".split()


@pytest.fixture
async def hasty(request: pytest.FixtureRequest, dokploy: Dokploy, monkeypatch: pytest.MonkeyPatch) -> Dokploy:
    """A client that does not wait long for an answer that never comes. One may be late on a busy machine."""
    if request.node.callspec.params.get("fault", "hang").startswith("hang"):
        monkeypatch.setattr(transport, "CALL_SECONDS", 1.0)
    return dokploy


@pytest.mark.parametrize("fault", [*DONE, *NOT_DONE])
async def test_a_bad_answer_to_every_creation_ends_with_exactly_one_of_each(
    simulator: Simulator, hasty: Dokploy, fault: str
) -> None:
    """Above all: a create that was done but answered 500 is found and not repeated."""
    run = new_run(simulator)
    for procedure in MAKES:
        simulator.fault(procedure, fault)
    before = calls(simulator)
    await run.deploy(hasty)
    assert simulator.state()["faults"] == [], "every fault was met"
    found = Found(simulator, run.spec)
    found.is_one_of_each()
    assert len(found.builds) == 1
    made = calls(simulator) - before
    again = 2 if fault in NOT_DONE else 1
    assert {name: made[name] for name in MAKES} == dict.fromkeys(MAKES, again), "what was done is not repeated"
    if fault in DONE:
        assert {report.phase for report in run.reports if "attempt" in report.data} <= {"deploying", "verifying_health"}


@pytest.mark.parametrize("fault", ["error500", "empty200"])
@pytest.mark.parametrize("procedure", SAVES)
async def test_a_bad_answer_to_a_save_ends_with_everything_saved(
    simulator: Simulator, dokploy: Dokploy, procedure: str, fault: str
) -> None:
    run = new_run(simulator)
    simulator.fault(procedure, fault)
    await run.deploy(dokploy)
    assert simulator.state()["faults"] == []
    Found(simulator, run.spec).is_one_of_each()


async def test_two_bad_answers_in_a_row_to_every_creation_end_with_exactly_one_of_each(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    run = new_run(simulator)
    for procedure in MAKES:
        simulator.fault(procedure, "reset_before")
        simulator.fault(procedure, "error500_done")
    await run.deploy(dokploy)
    Found(simulator, run.spec).is_one_of_each()


async def test_a_project_without_an_environment_is_removed_and_made_again(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    """Dokploy inserts the one, fails at the other, and answers that nothing was made."""
    run = new_run(simulator)
    simulator.turn(halves=1)
    before = calls(simulator)
    await run.deploy(dokploy)
    Found(simulator, run.spec).is_one_of_each()
    assert (calls(simulator) - before)["project.create"] == 2
    receipts = [report.data for report in run.reports if report.kind == "receipt" and report.data["kind"] == "project"]
    assert [data["state"] for data in receipts] == ["intended", "removing", "gone", "intended", "made"]
    assert receipts[1]["id"] == receipts[2]["id"] != receipts[4]["id"]


async def test_a_project_that_never_gets_an_environment_is_not_left_behind(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    run = new_run(simulator)
    simulator.turn(halves=3)
    with pytest.raises(Failure) as failed:
        await run.deploy(dokploy)
    assert failed.value.phase == "creating_project"
    assert simulator.state()["settings"]["halves"] == 0
    assert await run.undo(dokploy) == []
    assert not Found(simulator, run.spec).projects


@pytest.mark.parametrize("fault", ["garbage200", "wrong_types", "reset_before"])
async def test_bad_answers_to_questions_are_asked_again(simulator: Simulator, dokploy: Dokploy, fault: str) -> None:
    run = new_run(simulator)
    asked = ["project.all", "environment.byProjectId", "domain.byApplicationId", "deployment.all"]
    asked += ["deployment.queueList", "deployment.readLogs"]
    for procedure in asked:
        simulator.fault(procedure, fault, times=2)
    await run.deploy(dokploy)
    assert simulator.state()["faults"] == []
    found = Found(simulator, run.spec)
    found.is_one_of_each()
    assert len(found.builds) == 1


async def test_what_creates_that_were_done_late_left_is_removed_by_the_closing_look(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    """Looked for twice and not there, made again, and then the first request was carried out after all."""
    run = new_run(simulator)
    spec = run.spec

    def be_late(progress: Progress) -> None:
        if progress.phase != "deploying" or progress.data.get("step") != "begins":
            return
        application = Found(simulator, spec).applications[0]
        late = {"name": spec.name, "description": spec.mark}
        simulator.do("application.create", environmentId=application["environmentId"], **late)
        simulator.do("domain.create", applicationId=application["applicationId"], host=spec.host, port=80)
        simulator.do("project.create", **late)
        simulator.do("project.create", name=spec.name, description="by hand")

    run.watch = be_late
    have = await run.deploy(dokploy)
    found = Found(simulator, spec)
    assert [row["applicationId"] for row in found.applications] == [have.application_id]
    assert [row["domainId"] for row in found.domains] == [have.domain_id]
    assert [row["description"] for row in found.projects] == [spec.mark, "by hand"]
    assert found.projects[0]["projectId"] == have.project_id


@pytest.mark.parametrize(
    "phase", ["creating_project", "configuring_application", "creating_domain", "deploying", "verifying_health"]
)
async def test_a_restart_of_dokploy_in_any_phase_is_waited_for(
    simulator: Simulator, dokploy: Dokploy, phase: str
) -> None:
    """Longer than all attempts at an unclear outcome take together."""
    run = new_run(simulator)
    simulator.close_gate("container")

    def restart(progress: Progress) -> None:
        if progress.phase == phase and progress.data.get("step") == "begins":
            simulator.switches.post("restart", json={"seconds": 0.15})
        if progress.phase == "verifying_health" and progress.kind == "rung":
            simulator.open_gate("container")

    run.watch = restart
    await run.deploy(dokploy)
    Found(simulator, run.spec).is_one_of_each()


@pytest.mark.parametrize("phase", ["creating_project", "configuring_application", "deploying"])
async def test_a_database_that_is_down_is_waited_for(simulator: Simulator, dokploy: Dokploy, phase: str) -> None:
    run = new_run(simulator)

    def turn(progress: Progress) -> None:
        if progress.phase == phase and progress.data.get("step") == "begins":
            simulator.turn(database="down")
        if progress.message.startswith("Waiting for Dokploy"):
            simulator.turn(database="up")

    run.watch = turn
    await run.deploy(dokploy)
    assert "Waiting for Dokploy: Dokploy answers, but its database does not." in run.said()
    Found(simulator, run.spec).is_one_of_each()


async def test_dokploy_that_stays_unclear_ends_the_phase_after_its_attempts(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    run = new_run(simulator)
    simulator.fault("application.create", "error500", times=None)
    failure = await run.fails(dokploy)
    assert (failure.code, failure.phase, failure.retryable) == ("DOKPLOY_UNCLEAR", "creating_application", True)
    assert [report.data["attempt"] for report in run.reports if "attempt" in report.data] == [2, 3]
    simulator.switches.delete("faults")
    assert await run.undo(dokploy) == []
    Found(simulator, run.spec).is_nothing()


async def test_a_refused_key_ends_it_at_once(simulator: Simulator, running: Simulator) -> None:
    run = new_run(simulator)
    stranger = Dokploy(f"http://127.0.0.1:{running.port}", "a-wrong-key")
    failure = await run.fails(stranger)
    assert (failure.code, failure.phase, failure.retryable) == ("DOKPLOY_KEY_REFUSED", "creating_project", False)
    Found(simulator, run.spec).is_nothing()
    await stranger.aclose()


async def test_a_dokploy_with_known_vulnerabilities_is_given_nothing(simulator: Simulator, dokploy: Dokploy) -> None:
    run = new_run(simulator)
    simulator.turn(version="v0.29.12")
    try:
        failure = await run.fails(dokploy)
    finally:
        simulator.turn(version="v0.30.2")
    assert (failure.code, failure.phase, failure.retryable) == ("DOKPLOY_TOO_OLD", "creating_project", False)
    assert "not" not in failure.evidence
    assert run.reporter().pending == set()
    Found(simulator, run.spec).is_nothing()


@pytest.mark.parametrize(
    ("may", "phase"), [([], "creating_project"), (["project"], "deploying"), (["project", "service"], None)]
)
async def test_a_key_that_may_not_do_a_thing_is_named_and_leaves_what_it_can_remove(
    simulator: Simulator, may: list[str], phase: str | None
) -> None:
    simulator.switches.post("keys", json={"key": "a-members-key", "member": may}).raise_for_status()
    member = Dokploy(f"http://127.0.0.1:{simulator.port}", "a-members-key")
    try:
        run = new_run(simulator)
        if phase == "deploying":
            simulator.turn(pull_error="manifest unknown")  # what it made it may not delete: that is named
            failure = await run.fails(member)
            left = await run.undo(member)
            assert [line.partition(" (")[0] for line in left] == ["the application", "the project"]
            assert "does not have permission for application.delete" in left[0]
        elif phase:
            failure = await run.fails(member)
            assert (failure.code, failure.phase) == ("DOKPLOY_NOT_ALLOWED", phase)
            Found(simulator, run.spec).is_nothing()
        else:
            await run.deploy(member)
            assert await run.undo(member) == []
            Found(simulator, run.spec).is_nothing()
    finally:
        simulator.switches.delete("keys")
        await member.aclose()


@pytest.mark.parametrize("lost", ["all", "environment", "application"])
@pytest.mark.parametrize("way", ["undo", "remove", "redeploy"])
async def test_what_the_key_may_not_see_any_more_is_neither_taken_to_be_gone_nor_made_again(
    simulator: Simulator, dokploy: Dokploy, lost: str, way: str
) -> None:
    """A member's key loses what it made where it makes two things at a time: lists leave that out without a word."""
    key = {"key": "a-members-key", "member": ["project", "service"]}
    simulator.switches.post("keys", json=key).raise_for_status()
    member = Dokploy(f"http://127.0.0.1:{simulator.port}", "a-members-key")
    try:
        run = new_run(simulator)
        simulator.close_gate("application.create")
        deploying = asyncio.ensure_future(run.deploy(member))
        assert await asyncio.to_thread(simulator.wait_at, "application.create") == 1
        simulator.close_gate("project.create")  # what comes in before the application is made ends after that
        other = asyncio.ensure_future(member.create_project("other", ""))
        assert await asyncio.to_thread(simulator.wait_at, "project.create") == 1
        simulator.open_gate("application.create")
        have = await deploying
        simulator.open_gate("project.create")
        await other
        if lost != "application":
            reach = [] if lost == "all" else [have.project_id]
            simulator.switches.post("keys", json={**key, "reach": reach}).raise_for_status()
        before, later = calls(simulator), Run(replace(run.spec, deployment="dep_later"))
        reporter = Reporter(later.report, recorded_ids=run.reporter().recorded_ids, pending=run.reporter().pending)
        if way == "undo":
            left = await later.undo(member, reporter)
            assert [line.partition(" (")[0] for line in left] == ["the domain", "the application", "the project"]
            assert "does not have permission for" in left[0]
        else:
            with pytest.raises(Failure) as caught:
                await (later.remove if way == "remove" else later.deploy)(member, reporter)
            assert caught.value.code == "DOKPLOY_NOT_ALLOWED"
        assert not CHANGES & set(calls(simulator) - before)
        receipts = [report.data["state"] for report in later.reports if report.kind == "receipt"]
        assert not {"removing", "gone"} & set(receipts)
        Found(simulator, run.spec).is_one_of_each()
        assert await Run(run.spec, run.reports).undo(dokploy) == [], "the owner's key may see it"
        Found(simulator, run.spec).is_nothing()
    finally:
        simulator.switches.delete("keys")
        await member.aclose()


# -- an outage ---------------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def nobody() -> AsyncIterator[Dokploy]:
    """A client of a port at which nobody listens."""
    made = Dokploy("http://127.0.0.1:9", KEY)
    yield made
    await made.aclose()


async def test_an_unreachable_dokploy_is_waited_for_said_and_given_up_on_in_time(
    simulator: Simulator, nobody: Dokploy
) -> None:
    run = new_run(simulator)
    began = time.monotonic()
    failure = await run.fails(nobody, patience=0.3)
    assert 0.2 < time.monotonic() - began < 20
    assert (failure.code, failure.phase, failure.retryable) == ("DOKPLOY_UNAVAILABLE", "creating_project", True)
    assert "Waiting for Dokploy: Dokploy cannot be reached." in run.said()


async def test_signs_of_life_go_on_while_dokploy_is_away(
    simulator: Simulator, nobody: Dokploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orchestrator, "HEARTBEAT_SECONDS", 0.05)
    run = new_run(simulator)
    await run.fails(nobody, patience=0.6)
    run.times.append(time.monotonic())
    assert alive(run) >= 3
    assert gaps(run) < 5  # what is promised; here it is a fraction of that


def was_said(run: Run, beginning: str, since: int) -> bool:
    return any(said.startswith(beginning) for said in run.said()[since:])


def is_past(moment: float) -> bool:
    return time.monotonic() > moment


@pytest.mark.parametrize("flapping", [1000, 0])
async def test_many_short_outages_are_not_one_long_one_unless_they_never_end(
    simulator: Simulator, dokploy: Dokploy, monkeypatch: pytest.MonkeyPatch, flapping: int
) -> None:
    monkeypatch.setattr(orchestrator, "CALL_SECONDS", 0.01)
    monkeypatch.setattr(orchestrator, "RECOVERED_SECONDS", 0.02)
    monkeypatch.setattr(orchestrator, "FLAPPING_FACTOR", flapping)
    run = new_run(simulator)
    simulator.close_gate("job")
    task = asyncio.ensure_future(run.deploy(dokploy, patience=0.2))
    await soon(lambda: "Pulling the image and starting the container" in run.said())
    for _ in range(25):
        heard = len(run.said())
        simulator.fault("deployment.all", "error500", times=2)  # of one alone a run need not speak
        await soon(lambda heard=heard: was_said(run, "Waiting for Dokploy", heard) or task.done())
        later = time.monotonic() + 0.1
        await soon(functools.partial(is_past, later))
        if task.done():
            break
    simulator.open_gate("job")
    await asyncio.wait({task})
    failure = task.exception()
    if flapping:
        assert failure is None
    else:
        assert isinstance(failure, Failure)
        assert (failure.code, failure.phase) == ("DOKPLOY_UNAVAILABLE", "deploying")


async def test_a_stall_of_the_whole_process_during_a_pause_fails_no_run(simulator: Simulator, dokploy: Dokploy) -> None:
    run = new_run(simulator)
    simulator.fault("project.all", "error500", times=3)

    def stall(progress: Progress) -> None:
        if progress.message.startswith("Waiting for Dokploy"):
            asyncio.get_running_loop().call_later(0.005, time.sleep, 1.5)

    run.watch = stall
    await run.deploy(dokploy)
    Found(simulator, run.spec).is_one_of_each()


# -- interruption ------------------------------------------------------------------------------------------------------


async def test_an_interruption_at_every_report_and_another_worker_end_with_exactly_one_of_each(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    for number in itertools.count(1):
        run = new_run(simulator)
        reporter = run.reporter()
        run.refuse = number
        try:
            await run.deploy(dokploy, reporter)
        except Interrupted:
            assert len(run.reports) == number - 1, "nothing is written after an interruption"
        else:
            break
        await run.deploy(dokploy)
        found = Found(simulator, run.spec)
        found.is_one_of_each()
        assert len(found.builds) == 1, f"interrupted at report {number}"
        assert run.reports[-1].phase == "verifying_health"
        assert run.reports[-1].data == {"step": "ends"}
        simulator.clear()
    assert number > 25


async def test_an_interruption_before_every_change_and_another_worker_end_with_exactly_one_of_each(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    for number in itertools.count(1):
        run = new_run(simulator)
        asked = itertools.count(1)

        def guard(procedure: str, asked: Iterator[int] = asked, number: int = number) -> None:
            if next(asked) == number:
                raise Interrupted

        before = calls(simulator)
        try:
            await run.deploy(dokploy.for_deployment(guard, lambda exchange: None))
        except Interrupted:
            sent = calls(simulator) - before
            assert sum(sent[name] for name in CHANGES) == number - 1, "what was forbidden was not sent"
        else:
            break
        await run.deploy(dokploy)
        found = Found(simulator, run.spec)
        found.is_one_of_each()
        assert len(found.builds) == 1
    assert number == len(MAKES) + len(SAVES) + 1


async def test_a_worker_that_dies_while_a_call_is_under_way_and_another_end_with_exactly_one_of_each(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    for procedure in (*MAKES, *SAVES):
        run = new_run(simulator)
        simulator.close_gate(f"{procedure}:answer")  # done, and not answered
        task = asyncio.ensure_future(run.deploy(dokploy))
        assert await asyncio.to_thread(simulator.wait_at, f"{procedure}:answer") == 1
        await die(task)
        simulator.open_gate(f"{procedure}:answer")
        await run.deploy(dokploy)
        found = Found(simulator, run.spec)
        found.is_one_of_each()
        assert len(found.builds) == 1


@pytest.mark.parametrize(
    ("procedure", "look", "looks"),
    [
        ("project.create", "project.all", 1),
        ("application.create", "environment.byProjectId", 1),
        ("domain.create", "domain.byApplicationId", 1),
        ("application.deploy", "deployment.all", 2),
    ],
)
async def test_a_request_of_a_dead_worker_that_is_still_on_its_way_is_waited_for_and_not_repeated(
    simulator: Simulator, dokploy: Dokploy, monkeypatch: pytest.MonkeyPatch, procedure: str, look: str, looks: int
) -> None:
    run = new_run(simulator)
    simulator.close_gate(procedure)  # sent, and not done yet
    task = asyncio.ensure_future(run.deploy(dokploy))
    assert await asyncio.to_thread(simulator.wait_at, procedure) == 1
    await die(task)
    before = calls(simulator)
    monkeypatch.setattr(base, "RECHECK_SECONDS", 0.3)
    task = asyncio.ensure_future(run.deploy(dokploy))
    await soon(lambda: (calls(simulator) - before)[look] >= looks)  # it looked, and found nothing
    simulator.open_gate(procedure)
    await task
    assert (calls(simulator) - before)[procedure] == 0
    found = Found(simulator, run.spec)
    found.is_one_of_each()
    assert len(found.builds) == 1


async def die(task: "asyncio.Task[Any]") -> None:
    """As a worker does whose call goes on without it: it waits for nothing."""
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)
    assert task.cancelled()


@pytest.mark.parametrize("then", ["deploy", "remove"])
async def test_what_lands_after_the_undo_of_a_stack_that_is_still_there_is_used_or_removed_by_its_next_run(
    simulator: Simulator, hasty: Dokploy, then: str
) -> None:
    """The project could not be removed, so that the stack is there; and then the create of its application is done."""
    run = new_run(simulator)
    simulator.close_gate("application.create")
    simulator.fault("project.remove", "error500", times=None)
    assert (await run.fails(hasty)).code == "DOKPLOY_UNCLEAR"
    assert [line.partition(" (")[0] for line in await run.undo(hasty)] == ["the project"]
    assert Found(simulator, run.spec).applications == []
    simulator.open_gate("application.create")
    await soon(lambda: len(Found(simulator, run.spec).applications) == 3)  # each of the phase's attempts sent one
    simulator.switches.delete("faults")
    next_run = Run(replace(run.spec, deployment="dep_next"))  # the application's receipt says that it is gone
    if then == "deploy":
        await next_run.deploy(hasty)
        Found(simulator, run.spec).is_one_of_each()
    else:
        await next_run.remove(hasty)
        Found(simulator, run.spec).is_nothing()


async def test_an_undo_of_a_run_that_is_cancelled_in_the_middle_of_a_call_sees_what_the_call_makes(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    run = new_run(simulator)
    simulator.close_gate("project.create")  # sent, and not done yet
    task = asyncio.ensure_future(run.deploy(dokploy))
    assert await asyncio.to_thread(simulator.wait_at, "project.create") == 1
    task.cancel()

    async def undo() -> list[str]:
        await asyncio.wait({task})
        return await run.undo(dokploy)

    undoing = asyncio.ensure_future(undo())
    await asyncio.wait({undoing}, timeout=1)  # long enough for an undo that does not wait for the call
    simulator.open_gate("project.create")
    assert await undoing == []
    found = Found(simulator, run.spec)
    assert (found.projects, found.applications) == ([], [])


async def test_a_run_that_is_cancelled_sends_nothing_more(simulator: Simulator, dokploy: Dokploy) -> None:
    run = new_run(simulator)
    simulator.close_gate("application.saveDockerProvider:answer")
    task = asyncio.ensure_future(run.deploy(dokploy))
    assert await asyncio.to_thread(simulator.wait_at, "application.saveDockerProvider:answer") == 1
    before = calls(simulator)
    task.cancel()
    simulator.open_gate("application.saveDockerProvider:answer")
    await asyncio.wait({task})
    for _ in range(3):
        await dokploy.version()
    assert set(calls(simulator) - before) == {"settings.getDokployVersion"}


async def test_a_run_goes_on_with_the_phase_it_was_in(simulator: Simulator, dokploy: Dokploy) -> None:
    run = new_run(simulator)
    reporter = run.reporter()

    def stop(progress: Progress) -> None:
        if progress.phase == "creating_domain":
            raise Interrupted

    run.watch = stop
    with pytest.raises(Interrupted):
        await run.deploy(dokploy, reporter)
    run.watch = lambda progress: None
    taken = len(run.reports)
    await run.deploy(dokploy)
    assert run.reports[taken].phase == "creating_domain"


async def test_an_unknown_phase_begins_at_the_first_which_is_harmless(simulator: Simulator, dokploy: Dokploy) -> None:
    run = new_run(simulator)
    await run.deploy(dokploy)
    again = Run(run.spec)
    await orchestrator.run(dokploy, run.spec, again.reporter(), first_phase="of_a_newer_version")
    assert again.reports[0].phase == "creating_project"
    Found(simulator, run.spec).is_one_of_each()


# -- undo --------------------------------------------------------------------------------------------------------------


async def test_undo_leaves_nothing(simulator: Simulator, dokploy: Dokploy) -> None:
    run = new_run(simulator)
    await run.deploy(dokploy)
    Found(simulator, run.spec).is_one_of_each()
    assert await run.undo(dokploy) == []
    Found(simulator, run.spec).is_nothing()
    assert simulator.visit(run.spec.host).status_code == 404
    gone = [(r.data["state"], r.data["kind"], bool(r.data.get("id"))) for r in run.reports if r.kind == "receipt"][8:]
    assert gone == [
        *(("removing", "domain", True), ("gone", "domain", True), ("gone", "domain", False)),
        *(("removing", "application", True), ("gone", "application", True), ("gone", "application", False)),
        ("gone", "deploy", False),
        *(("removing", "project", True), ("gone", "project", True), ("gone", "project", False)),
    ]


async def test_undo_of_nothing_is_harmless(simulator: Simulator, dokploy: Dokploy) -> None:
    run = new_run(simulator)
    before = calls(simulator)
    assert await run.undo(dokploy) == []
    assert set(calls(simulator) - before) == {"project.all"}


async def test_undo_that_is_interrupted_at_every_report_and_run_again_leaves_nothing(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    for number in itertools.count(1):
        run = new_run(simulator)
        await run.deploy(dokploy)
        reporter = run.reporter()
        run.refuse = number
        try:
            await run.undo(dokploy, reporter)
        except Interrupted:
            assert await run.undo(dokploy) == []
            Found(simulator, run.spec).is_nothing()
        else:
            break
    assert number > 10


async def test_a_removal_that_is_interrupted_at_every_report_and_run_again_leaves_nothing(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    for number in itertools.count(1):
        run = new_run(simulator)
        await run.deploy(dokploy)
        removal = Run(run.spec)
        reporter = removal.reporter()
        removal.refuse = number
        try:
            await removal.remove(dokploy, reporter)
        except Interrupted:
            await removal.remove(dokploy)
        Found(simulator, run.spec).is_nothing()
        if removal.refuse == number and removal._asked < number:
            break
    assert number > 12
    assert [r.phase for r in removal.reports if r.data.get("step") == "ends"] == [phase.name for phase in REMOVAL]


async def test_a_removal_waits_for_a_deploy_of_somebody_elses(simulator: Simulator, dokploy: Dokploy) -> None:
    run = new_run(simulator)
    have = await run.deploy(dokploy)
    simulator.close_gate("pull")
    simulator.do("application.deploy", applicationId=have.application_id, title="by hand")
    await soon(lambda: simulator.state()["deployments"][-1]["status"] == "running")
    removal = Run(run.spec)
    removing = asyncio.ensure_future(removal.remove(dokploy))
    await soon(lambda: "Waiting for Dokploy to finish the running deployment" in removal.said())
    assert Found(simulator, run.spec).counts()["applications"] == 1
    simulator.open_gate("pull")
    await removing
    Found(simulator, run.spec).is_nothing()


@pytest.mark.parametrize("phase", ["creating_project", "creating_application", "creating_domain", "deploying"])
async def test_undo_after_a_failure_in_any_phase_leaves_nothing(
    simulator: Simulator, dokploy: Dokploy, phase: str
) -> None:
    run = new_run(simulator)

    def stop(progress: Progress) -> None:
        if progress.phase == phase and progress.data.get("step") == "ends":
            raise Failure("TEST", "Here it ends.")

    run.watch = stop
    await run.fails(dokploy)
    assert await run.undo(dokploy) == []
    Found(simulator, run.spec).is_nothing()


@pytest.mark.parametrize("fault", ["error500_done", "hang_done", "empty200", "reset_before", "too_many"])
async def test_a_bad_answer_to_every_removal_leaves_nothing(simulator: Simulator, hasty: Dokploy, fault: str) -> None:
    run = new_run(simulator)
    await run.deploy(hasty)
    for procedure in REMOVES:
        simulator.fault(procedure, fault)
    assert await run.undo(hasty) == []
    assert simulator.state()["faults"] == []
    Found(simulator, run.spec).is_nothing()


async def test_what_somebody_removes_at_the_same_moment_counts_as_removed_but_for_the_container_that_runs_on(
    simulator: Simulator, dokploy: Dokploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "STOP_SECONDS", 0.2)
    run = new_run(simulator)
    have = await run.deploy(dokploy)
    simulator.close_gate("application.delete")
    undoing = asyncio.ensure_future(run.undo(dokploy))
    assert await asyncio.to_thread(simulator.wait_at, "application.delete") == 1
    simulator.do("project.remove", projectId=have.project_id)
    simulator.open_gate("application.delete")
    (left,) = await undoing
    assert f"docker service rm {have.app_name}" in left
    found = Found(simulator, run.spec)
    assert (found.projects, found.applications, found.domains) == ([], [], [])
    simulator.switches.delete(f"services/{have.app_name}").raise_for_status()
    assert await run.undo(dokploy) == []


async def test_what_cannot_be_removed_is_named_and_the_rest_goes(simulator: Simulator, dokploy: Dokploy) -> None:
    run = new_run(simulator)
    await run.deploy(dokploy)
    simulator.fault("application.delete", "error500", times=None)
    left = await run.undo(dokploy)
    assert [line.partition(" (")[0] for line in left] == ["the application", "the project"]
    assert "did not create" not in str(left), "the application in it is ours"
    found = Found(simulator, run.spec)
    assert (len(found.projects), len(found.applications), found.domains, found.routes) == (1, 1, [], [])
    states = [(r.data["state"], r.data["kind"]) for r in run.reports if r.kind == "receipt"]
    assert ("left", "application") in states
    assert ("left", "project") in states
    simulator.switches.delete("faults")
    assert await run.undo(dokploy) == []
    Found(simulator, run.spec).is_nothing()


async def test_no_application_is_removed_while_the_engine_could_not_end_its_container(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    """Dokploy would remove the row and leave the container."""
    run = new_run(simulator)
    await run.deploy(dokploy)
    simulator.turn(engine="down")
    before = calls(simulator)
    left = await run.undo(dokploy, patience=0.05)
    assert left[0] == "the application (Dokploy's container engine does not answer.)"
    assert not {"application.delete", "project.remove"} & set(calls(simulator) - before)
    simulator.turn(engine="up")
    assert await run.undo(dokploy) == []
    Found(simulator, run.spec).is_nothing()


@pytest.mark.parametrize("way", ["undo", "remove"])
async def test_a_container_that_outlives_its_application_is_named_until_somebody_has_ended_it(
    simulator: Simulator, dokploy: Dokploy, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(containers, "STOP_SECONDS", 0.2)
    run = new_run(simulator)
    have = await run.deploy(dokploy)

    def engine_returns(progress: Progress) -> None:
        if progress.message == "Waiting for Dokploy: Dokploy's container engine does not answer.":
            simulator.turn(engine="up")

    async def take_away() -> str:
        if way == "undo":
            return "; ".join(await taking.undo(dokploy))
        try:
            await taking.remove(dokploy)
        except Failure as failure:
            return failure.message
        return ""

    taking = run if way == "undo" else Run(run.spec, [r for r in run.reports if r.kind == "receipt"])
    taking.watch = engine_returns
    simulator.close_gate("application.delete")
    task = asyncio.ensure_future(take_away())
    assert await asyncio.to_thread(simulator.wait_at, "application.delete") == 1
    simulator.turn(engine="down")
    simulator.open_gate("application.delete")
    for left in (await task, await take_away()):
        assert f"Run “docker service rm {have.app_name}” on Dokploy's host" in left
    found = Found(simulator, run.spec)
    assert (len(found.services), found.applications, found.domains) == (1, [], [])
    assert ("gone", "application") not in [(r.data.get("state"), r.data.get("kind")) for r in taking.reports]
    simulator.switches.delete(f"services/{have.app_name}").raise_for_status()
    assert await take_away() == ""
    Found(simulator, run.spec).is_nothing()


async def test_no_application_is_made_beside_the_container_of_one_that_was_removed_by_hand(
    simulator: Simulator, dokploy: Dokploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "STOP_SECONDS", 0.2)
    run = new_run(simulator)
    have = await run.deploy(dokploy)
    simulator.do("domain.delete", domainId=have.domain_id)
    simulator.do("project.remove", projectId=have.project_id)  # Dokploy removes nothing but rows
    again = Run(replace(run.spec, deployment="dep_again"))
    ran = Resources(app_name=have.app_name)
    failure = await again.fails(dokploy, reporter=Reporter(again.report, resources=ran))
    assert (failure.code, failure.phase) == ("CONTAINER_LEFT_AT_DOKPLOY", "creating_application")
    assert len(Found(simulator, run.spec).services) == 1
    simulator.switches.delete(f"services/{have.app_name}").raise_for_status()
    await again.deploy(dokploy)
    Found(simulator, run.spec).is_one_of_each()


async def test_what_has_ended_for_good_and_lies_about_keeps_no_application_from_being_gone(
    simulator: Simulator, dokploy: Dokploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "QUIET_SECONDS", 0.05)
    run = new_run(simulator)
    await run.deploy(dokploy)
    simulator.turn(container_status="Exited (0) 3 seconds ago")
    simulator.close_gate("application.delete")
    undoing = asyncio.ensure_future(run.undo(dokploy))
    assert await asyncio.to_thread(simulator.wait_at, "application.delete") == 1
    simulator.turn(engine="down")
    simulator.open_gate("application.delete")
    await soon(lambda: "Waiting for Dokploy: Dokploy's container engine does not answer." in run.said())
    simulator.turn(engine="up")
    assert await undoing == []
    assert len(Found(simulator, run.spec).services) == 1, "it lies about"


async def test_a_surplus_that_never_ran_is_removed_beside_what_runs_and_needs_no_engine(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    run = new_run(simulator)
    have = await run.deploy(dokploy)
    late = {"name": run.spec.name, "appName": run.spec.name, "description": run.spec.mark, "sourceType": "docker"}
    simulator.do("application.create", environmentId=have.environment_id, **late)
    assert await run.undo(dokploy) == []
    Found(simulator, run.spec).is_nothing()
    never = new_run(simulator)
    simulator.turn(engine="down")
    simulator.fault("application.saveDockerProvider", "redirect")
    assert (await never.fails(dokploy)).phase == "configuring_application"
    assert await never.undo(dokploy, patience=0.05) == []
    Found(simulator, never.spec).is_nothing()


async def test_a_container_is_looked_for_also_where_dokploy_stumbles_right_after_its_application_went(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    """By who takes an application away of which no run knows: an orphan's."""
    run = new_run(simulator)
    have = await run.deploy(dokploy)
    orphan = Run(run.spec)

    async def remove() -> None:
        await orchestrator.run(dokploy, run.spec, Reporter(orphan.report), phases=REMOVAL)

    simulator.close_gate("application.delete")
    removing = asyncio.ensure_future(remove())
    assert await asyncio.to_thread(simulator.wait_at, "application.delete") == 1
    simulator.turn(engine="down")  # Dokploy answers well, and leaves the container
    simulator.fault("docker.getContainersByAppNameMatch", "error500", times=2)
    simulator.open_gate("application.delete")
    await soon(lambda: simulator.state()["faults"] == [])
    assert ("gone", "application") not in [(r.data.get("state"), r.data.get("kind")) for r in orphan.reports]
    simulator.turn(engine="up")
    await soon(lambda: "Waiting for the container to stop" in orphan.said())
    simulator.switches.delete(f"services/{have.app_name}").raise_for_status()
    await removing
    Found(simulator, run.spec).is_nothing()


async def test_undo_with_dokploy_away_names_everything_and_ends_in_time(simulator: Simulator, nobody: Dokploy) -> None:
    run = new_run(simulator)
    began = time.monotonic()
    left = await run.undo(nobody, patience=0.1)
    assert time.monotonic() - began < 15
    assert [line.partition(" (")[0] for line in left] == ["the domain", "the application", "the project"]


async def test_undo_waits_for_a_running_deploy_and_drops_a_waiting_one(simulator: Simulator, dokploy: Dokploy) -> None:
    """Deleting under a running deploy would leave its container."""
    run = new_run(simulator)
    simulator.close_gate("job")
    task = asyncio.ensure_future(run.deploy(dokploy))
    await soon(lambda: "Pulling the image and starting the container" in run.said())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    application = Found(simulator, run.spec).applications[0]["applicationId"]
    simulator.do("application.deploy", applicationId=application, title=run.spec.deploy_title(9))
    undoing = asyncio.ensure_future(run.undo(dokploy))
    await soon(lambda: "Waiting for Dokploy to finish the running deployment" in run.said())
    found = Found(simulator, run.spec)
    assert (len(found.applications), len(found.queue)) == (1, 1), "the waiting one is gone, the running one is not"
    simulator.open_gate("job")
    assert await undoing == []
    Found(simulator, run.spec).is_nothing()


async def test_undo_does_not_delete_under_a_deploy_that_still_waits(simulator: Simulator, dokploy: Dokploy) -> None:
    """What was to drop it was answered well and not done."""
    run = new_run(simulator)
    other = simulator.application(simulator.project("busy")[1])
    simulator.close_gate("job")
    simulator.do("application.deploy", applicationId=other["applicationId"], title="theirs")
    task = asyncio.ensure_future(run.deploy(dokploy))
    await soon(lambda: "Waiting in Dokploy's queue, 1 ahead" in run.said())
    task.cancel()
    await asyncio.wait({task})
    simulator.fault("application.cleanQueues", "empty200")
    undoing = asyncio.ensure_future(run.undo(dokploy))
    await soon(lambda: "Waiting for Dokploy to finish the running deployment" in run.said())
    assert len(Found(simulator, run.spec).applications) == 1
    simulator.open_gate("job")
    assert await undoing == []
    Found(simulator, run.spec).is_nothing()


async def test_a_deploy_that_never_ends_keeps_the_application_and_says_so(
    simulator: Simulator, dokploy: Dokploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy, "SETTLE_SECONDS", 0.1)
    run = new_run(simulator)
    simulator.close_gate("job")
    task = asyncio.ensure_future(run.deploy(dokploy))
    await soon(lambda: "Pulling the image and starting the container" in run.said())
    task.cancel()
    await asyncio.wait({task})
    left = await run.undo(dokploy)
    assert left[0].startswith("the application (Dokploy still reports a running deployment")
    assert len(Found(simulator, run.spec).applications) == 1
    simulator.open_gate("job")
    await soon(lambda: not Found(simulator, run.spec).queue)
    assert await run.undo(dokploy) == []
    Found(simulator, run.spec).is_nothing()


# -- what is not ours --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "description",
    [None, "", "deployportal", "deployportal/inst", "deployportal/another/stk", "deployportal/inst/stk_x"],
)
async def test_a_project_of_the_same_name_that_is_not_ours_is_refused_and_never_touched(
    simulator: Simulator, dokploy: Dokploy, description: str | None
) -> None:
    run = new_run(simulator)
    project = simulator.do("project.create", name=run.spec.name, description=description)
    simulator.application(project["environment"]["environmentId"], description=description)
    before, had = calls(simulator), vars(Found(simulator, run.spec))
    failure = await run.fails(dokploy)
    ours = description == "deployportal/inst/stk_x"
    assert failure.code == ("LEFTOVER_AT_DOKPLOY" if ours else "NAME_IN_USE_AT_DOKPLOY")
    assert (failure.phase, failure.retryable) == ("creating_project", ours)
    assert not [report for report in run.reports if report.kind == "receipt"]
    assert await run.undo(dokploy) == []
    assert not CHANGES & set(calls(simulator) - before)
    assert vars(Found(simulator, run.spec)) == had


async def test_undo_spares_what_somebody_put_into_our_project(simulator: Simulator, dokploy: Dokploy) -> None:
    run = new_run(simulator)
    have = await run.deploy(dokploy)
    theirs = simulator.application(str(have.environment_id), description="ours too")
    left = await run.undo(dokploy)
    said = "It contains a service that this portal did not create, perhaps a copy. Remove it in Dokploy."
    assert left == [f"the project ({said})"]
    found = Found(simulator, run.spec)
    assert [row["applicationId"] for row in found.applications] == [theirs["applicationId"]]
    assert (found.domains, found.services) == ([], [])


ALL = ("domain", "application", "project")
LEFT = {"project": ("project",), "application": ALL}  # by whose description somebody changes


@pytest.mark.parametrize("kind", LEFT)
@pytest.mark.parametrize("way", ["remove", "undo"])
async def test_what_has_lost_our_mark_is_neither_removed_nor_taken_to_be_gone(
    simulator: Simulator, dokploy: Dokploy, kind: str, way: str
) -> None:
    run = new_run(simulator)
    have = await run.deploy(dokploy)
    made = [report for report in run.reports if report.kind == "receipt"]
    id = {f"{kind}Id": getattr(have, f"{kind}_id")}
    simulator.do(f"{kind}.update", **id, description="mine now")
    removal = Run(run.spec, made)
    if way == "remove":
        with pytest.raises(Failure) as caught:
            await removal.remove(dokploy)
        assert caught.value.code == "MARK_CHANGED_AT_DOKPLOY"
        said = caught.value.message
    else:
        left = await removal.undo(dokploy)
        assert [line.partition(" (")[0] for line in left] == [f"the {one}" for one in LEFT[kind]]
        said = left[0]
    assert f"The description of the {kind} “{run.spec.name}” was changed in Dokploy" in said
    assert f"Put “{run.spec.mark}” into the description again, or remove the {kind} in Dokploy." in said
    found = Found(simulator, run.spec)
    there = {one: len(getattr(found, f"{one}s")) for one in ALL}
    assert there == {one: int(one in LEFT[kind]) for one in ALL}
    assert len(found.services) == there["application"], "an application that is there goes on running"
    gone = {report.data["kind"] for report in removal.reports if report.data.get("state") == "gone"}
    assert gone & set(ALL) == set(ALL) - set(LEFT[kind])
    simulator.do(f"{kind}.update", **id, description=run.spec.mark)
    await Run(run.spec, made).remove(dokploy)
    Found(simulator, run.spec).is_nothing()


@pytest.mark.parametrize("kind", LEFT)
async def test_a_redeploy_of_what_has_lost_our_mark_makes_no_second_one_and_changes_nothing(
    simulator: Simulator, dokploy: Dokploy, kind: str
) -> None:
    run = new_run(simulator)
    have = await run.deploy(dokploy)
    description = {"description": "mine now", "name": f"{run.spec.name}-renamed"}
    simulator.do(f"{kind}.update", **{f"{kind}Id": getattr(have, f"{kind}_id")}, **description)
    again = Run(replace(run.spec, deployment="dep_again"))
    before = calls(simulator)
    failure = await again.fails(dokploy, reporter=Reporter(again.report, recorded_ids=run.reporter().recorded_ids))
    assert (failure.code, failure.phase) == ("MARK_CHANGED_AT_DOKPLOY", f"creating_{kind}")
    assert not CHANGES & set(calls(simulator) - before)


async def test_a_retry_that_goes_on_in_the_middle_does_not_touch_what_has_lost_our_mark(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    run = new_run(simulator)
    have = await run.deploy(dokploy)
    simulator.do("application.update", applicationId=have.application_id, description="mine now")
    before, retry = calls(simulator), Run(replace(run.spec, deployment="dep_retry"))
    reporter = Reporter(retry.report, resources=have, recorded_ids=run.reporter().recorded_ids)
    await reporter.begin("configuring_application", 50, "Configuring the application")
    assert (await retry.fails(dokploy, reporter=reporter)).code == "MARK_CHANGED_AT_DOKPLOY"
    assert not CHANGES & set(calls(simulator) - before)


async def test_a_project_that_was_renamed_is_ours_by_its_id(simulator: Simulator, dokploy: Dokploy) -> None:
    run = new_run(simulator)
    have = await run.deploy(dokploy)
    simulator.do("project.update", projectId=have.project_id, name="renamed")
    before, again = calls(simulator), Run(replace(run.spec, deployment="dep_again"))
    found = await again.deploy(dokploy, reporter=Reporter(again.report, recorded_ids=run.reporter().recorded_ids))
    assert (found.project_id, found.application_id) == (have.project_id, have.application_id)
    assert not {"project.create", "application.create"} & set(calls(simulator) - before)


async def test_an_application_that_we_know_is_not_made_again_where_it_stands_in_another_project(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    run = new_run(simulator)
    have = await run.deploy(dokploy)
    later = simulator.do("project.create", name=run.spec.name, description=run.spec.mark)["project"]["projectId"]
    before, again = calls(simulator), Run(replace(run.spec, deployment="dep_again"))
    known = {later: "project", str(have.application_id): "application", str(have.domain_id): "domain"}
    found = await again.deploy(dokploy, reporter=Reporter(again.report, recorded_ids=known))
    assert (found.project_id, found.application_id) == (later, have.application_id), "what we know comes first"
    assert not {"project.create", "application.create", *REMOVES} & set(calls(simulator) - before)


async def test_what_somebody_has_made_beside_ours_is_neither_used_nor_removed(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    """A copy, which carries our mark, and another path of the address."""
    run = new_run(simulator)
    have = await run.deploy(dokploy)
    copy = {"name": f"{run.spec.name} (copy)", "description": run.spec.mark}
    copied = simulator.do("application.create", environmentId=have.environment_id, **copy)["applicationId"]
    simulator.do("project.create", **copy)
    path = {"host": run.spec.host, "path": "/api", "port": 3001, "domainType": "application"}
    simulator.do("domain.create", applicationId=have.application_id, **path)
    again = Run(replace(run.spec, deployment="dep_again"))
    found = await again.deploy(dokploy, reporter=Reporter(again.report, recorded_ids=run.reporter().recorded_ids))
    assert (found.project_id, found.application_id) == (have.project_id, have.application_id)
    there = simulator.state()
    assert copied in {row["applicationId"] for row in there["applications"]}
    assert [row["path"] for row in there["domains"] if row["host"] == run.spec.host] == ["/", "/api"]
    removal = Run(run.spec)
    with pytest.raises(Failure) as caught:
        await removal.remove(dokploy, Reporter(removal.report, recorded_ids=run.reporter().recorded_ids))
    failure = caught.value
    assert (failure.code, failure.phase) == ("DOKPLOY_REFUSED", "removing_project")
    there = simulator.state()
    assert [row["applicationId"] for row in there["applications"] if row["description"] == run.spec.mark] == [copied]
    assert len([row for row in there["projects"] if row["description"] == run.spec.mark]) == 2


async def test_a_host_of_a_foreign_application_is_refused(simulator: Simulator, dokploy: Dokploy) -> None:
    run = new_run(simulator)
    theirs = simulator.application(simulator.project(f"foreign-{run.spec.name}")[1])["applicationId"]
    simulator.do("domain.create", applicationId=theirs, host=run.spec.host.upper(), port=80, domainType="application")
    failure = await run.fails(dokploy)
    assert (failure.code, failure.phase) == ("HOST_IN_USE_AT_DOKPLOY", "creating_domain")
    assert not failure.retryable
    assert await run.undo(dokploy) == []
    Found(simulator, replace(run.spec, host="other.test")).is_nothing()
    assert len(simulator.ask("domain.byApplicationId", applicationId=theirs)) == 1


async def test_the_hosts_of_foreign_applications_are_found_out_once_for_all_who_ask(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    environment = simulator.project("foreign")[1]
    foreign = [simulator.application(environment)["applicationId"] for _ in range(10)]
    runs = [new_run(simulator) for _ in range(8)]
    taken = {"host": runs[0].spec.host.upper(), "port": 80, "domainType": "application"}
    simulator.do("domain.create", applicationId=foreign[-1], **taken)
    before = calls(simulator)
    simulator.close_gate("domain.byApplicationId")
    tasks = [asyncio.ensure_future(run.deploy(dokploy)) for run in runs]
    await soon(lambda: all(run.phase == "creating_domain" for run in runs))
    simulator.open_gate("domain.byApplicationId")
    await asyncio.wait(tasks)
    refused, *others = [task.exception() for task in tasks]
    assert isinstance(refused, Failure)
    assert refused.code == "HOST_IN_USE_AT_DOKPLOY"
    assert others == [None] * 7
    assert (calls(simulator) - before)["domain.byApplicationId"] < 4 * len(foreign) + 4 * len(runs)


async def test_two_installations_with_one_dokploy_never_claim_each_others_objects(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    run = new_run(simulator)
    await run.deploy(dokploy)
    twin = Run(replace(run.spec, installation="copy"))
    assert (await twin.fails(dokploy)).code == "NAME_IN_USE_AT_DOKPLOY"
    assert await twin.undo(dokploy) == []
    Found(simulator, run.spec).is_one_of_each()


async def test_somebody_elses_deploy_of_our_application_is_not_taken_for_ours(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    run = new_run(simulator)
    simulator.close_gate("job")

    def deploy_too(progress: Progress) -> None:
        if progress.phase == "deploying" and progress.data.get("step") == "begins":
            application = Found(simulator, run.spec).applications[0]
            simulator.do("application.deploy", applicationId=application["applicationId"], title="by hand")

    run.watch = deploy_too
    task = asyncio.ensure_future(run.deploy(dokploy))
    await soon(lambda: "Waiting in Dokploy's queue, 1 ahead" in run.said())
    assert "by hand" not in str(run.reports), "the titles of others are theirs"
    simulator.open_gate("job")
    have = await task
    rows = simulator.ask("deployment.all", applicationId=have.application_id)
    assert [(row["title"], row["status"]) for row in rows] == [(run.spec.deploy_title(1), "done"), ("by hand", "done")]
    assert have.dokploy_deployment_id == rows[0]["deploymentId"]


# -- following the deploy ----------------------------------------------------------------------------------------------


async def test_a_deploy_that_waits_and_is_lost_by_a_restart_is_sent_again(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    run = new_run(simulator)
    other = simulator.application(simulator.project("busy")[1])
    simulator.close_gate("job")
    simulator.do("application.deploy", applicationId=other["applicationId"], title="theirs")
    task = asyncio.ensure_future(run.deploy(dokploy))
    await soon(lambda: "Waiting in Dokploy's queue, 1 ahead" in run.said())
    simulator.switches.post("restart", json={}).raise_for_status()
    simulator.open_gate("job")
    await task
    assert "Dokploy was restarted and lost the deployment. Sending it again" in run.said("note")
    builds = [(build["title"], build["status"]) for build in Found(simulator, run.spec).builds]
    assert builds == [(run.spec.deploy_title(2), "done")]
    Found(simulator, run.spec).is_one_of_each()


async def test_a_deploy_that_runs_and_is_lost_by_a_restart_is_sent_again(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    run = new_run(simulator)
    simulator.close_gate("job")
    task = asyncio.ensure_future(run.deploy(dokploy))
    await soon(lambda: "Pulling the image and starting the container" in run.said())
    simulator.switches.post("restart", json={}).raise_for_status()
    simulator.open_gate("job")
    await task
    builds = [(build["title"], build["status"]) for build in Found(simulator, run.spec).builds]
    assert builds == [(run.spec.deploy_title(1), "cancelled"), (run.spec.deploy_title(2), "done")]
    Found(simulator, run.spec).is_one_of_each()


async def test_a_deploy_that_is_lost_again_and_again_is_given_up_on(simulator: Simulator, dokploy: Dokploy) -> None:
    run = new_run(simulator)
    simulator.fault("application.deploy", "empty200", times=None)  # accepted, and never there
    failure = await run.fails(dokploy)
    assert (failure.code, failure.phase) == ("DEPLOY_LOST", "deploying")
    assert [r.data["mark"] for r in run.reports if r.data.get("kind") == "deploy"] == [
        run.spec.deploy_title(attempt) for attempt in (1, 2, 3)
    ]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Error response from daemon: manifest for shop/web:1 not found: manifest unknown", "IMAGE_NOT_FOUND"),
        (
            "Error response from daemon: pull access denied for shop/web, repository does not exist or may require "
            "'docker login': denied: requested access to the resource is denied",
            "IMAGE_NOT_FOUND",
        ),
        ("Error response from daemon: unauthorized: authentication required", "REGISTRY_LOGIN_FAILED"),
        ("toomanyrequests: You have reached your unauthenticated pull rate limit.", "REGISTRY_LIMIT"),
        ("no matching manifest for linux/arm64/v8 in the manifest list entries", "IMAGE_WRONG_PLATFORM"),
        ("failed to register layer: write /usr/lib/x: no space left on device", "SERVER_DISK_FULL"),
        ('Get "https://registry.test/v2/": dial tcp: lookup registry.test: no such host', "REGISTRY_UNREACHABLE"),
        ('Get "https://registry.test/v2/": x509: certificate has expired', "REGISTRY_UNREACHABLE"),
        ("something that nobody has seen before", "IMAGE_PULL_FAILED"),
    ],
)
async def test_a_pull_that_fails_is_named_after_dockers_words(
    simulator: Simulator, dokploy: Dokploy, text: str, code: str
) -> None:
    run = new_run(simulator)
    simulator.turn(pull_error=text)
    failure = await run.fails(dokploy)
    assert (failure.code, failure.phase) == (code, "deploying")
    assert failure.evidence == (text if code != "IMAGE_PULL_FAILED" else "❌ Pulling image failed")
    row = Found(simulator, run.spec).builds[0]
    assert logged(run) == {row["deploymentId"]: simulator.log(row).splitlines()}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("(HTTP code 500) server error - rpc error: code = InvalidArgument", "ENGINE_REFUSED"),
        ("connect ENOENT /var/run/docker.sock", "ENGINE_UNAVAILABLE"),
    ],
)
async def test_an_engine_that_refuses_is_named(simulator: Simulator, dokploy: Dokploy, text: str, code: str) -> None:
    run = new_run(simulator)
    simulator.turn(engine_error=text)
    failure = await run.fails(dokploy)
    assert (failure.code, failure.evidence) == (code, text)


def logged(run: Run) -> dict[str, list[str]]:
    """The reported lines of each deploy, checked to be without gap and double."""
    lines: dict[str, list[str]] = {}
    for report in run.reports:
        if report.kind == "log":
            so_far = lines.setdefault(report.data["source"], [])
            assert report.data["first"] == len(so_far) + 1
            so_far += report.data["lines"]
    return lines


async def test_the_log_is_reported_line_for_line_also_by_the_next_worker(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    run = new_run(simulator)
    simulator.close_gate("job")

    def stop(progress: Progress) -> None:
        if progress.kind == "log":
            raise Interrupted

    run.watch = stop
    with pytest.raises(Interrupted):
        await run.deploy(dokploy)
    assert list(logged(run).values()) == [["Initializing deployment"]]
    run.watch = lambda progress: None
    simulator.open_gate("job")
    await run.deploy(dokploy)
    row = Found(simulator, run.spec).builds[0]
    assert logged(run) == {row["deploymentId"]: simulator.log(row).splitlines()}
    assert len(simulator.log(row).splitlines()) > 10


async def test_the_log_is_reported_while_it_is_written(simulator: Simulator, dokploy: Dokploy) -> None:
    """Each gate opens once what was written before it has been reported: late reports would be a deadlock."""
    run = new_run(simulator)
    written = {"job": "Initializing deployment", "pull": f"Pulling {IMAGE}", "stall": "✅ Pulling image completed."}
    for gate in written:
        simulator.close_gate(gate)
    task = asyncio.ensure_future(run.deploy(dokploy))
    for gate, line in written.items():
        await soon(lambda line=line: line in itertools.chain(*logged(run).values()))
        simulator.open_gate(gate)
    await task
    row = Found(simulator, run.spec).builds[0]
    assert logged(run) == {row["deploymentId"]: simulator.log(row).splitlines()}


async def journal_of(*secrets: str) -> tuple[Run, Reporter]:
    run = Run(StackSpec("inst", "stk", "dep", "shop", IMAGE, 80, "shop.test", "http://shop.test"))
    reporter = run.reporter()
    reporter.secrets = secrets
    await reporter.begin("deploying", 85, "Deploying")
    return run, reporter


async def test_a_log_is_reported_without_what_does_not_print_and_without_secrets() -> None:
    run, reporter = await journal_of("tok", "token-1", "token-1-longer", "first line\nsecond line")
    colours = "\x1b[31mred\x1b[0m\ttab\x07\n\x1b]0;title\x07plain"
    await reporter.log(
        "build", f"{colours}\nTOKEN=token-1-longer token-1 tok\na first line\nsecond line", complete=True
    )
    assert run.reports[-1].data["lines"] == ["red\ttab", "plain", "TOKEN=*** *** tok", "a ***", "***"]
    assert "second line" not in str(run.reports)


async def test_a_secret_that_control_characters_tear_apart_is_masked_all_the_same() -> None:
    run, reporter = await journal_of("canary-4711")
    await reporter.log("build", "can\x1b[1mary-47\x0011", complete=True)
    assert run.reports[-1].data["lines"] == ["***"]


async def test_half_a_character_is_left_out_of_a_log_and_of_an_errors_evidence() -> None:
    """JSON's escapes can hold one, a database and a page cannot."""
    run, reporter = await journal_of()
    half = "a half\ud83d smile"
    await reporter.log("build", half, complete=True)
    await reporter.begin("rolling_back", 95, half, error=Failure("CODE", half, evidence=half))
    assert [report.message for report in run.reports[-2:]] == ["a half smile"] * 2
    error = run.reports[-1].error
    assert error is not None
    assert (error["message"], error["evidence"]) == ("a half smile", "a half smile")
    assert run.reports[-2].data["lines"] == ["a half smile"]


async def test_a_line_that_is_still_being_written_waits_for_its_end() -> None:
    lines: list[str] = []

    async def report(progress: Progress) -> None:
        lines.extend(progress.data["lines"])

    reporter = Reporter(report)
    await reporter.log("build", "whole\nhal", complete=False)
    await reporter.log("build", "whole\nhalf a line\nthe en", complete=False)
    await reporter.log("build", "whole\nhalf a line\nthe end", complete=True)
    assert lines == ["whole", "half a line", "the end"]


async def test_a_log_without_end_is_cut_once_and_its_long_lines_too() -> None:
    run, reporter = await journal_of()
    lines = [f"{number} " + "x" * 1000 for number in range(3000)]
    await reporter.log("build", "\n".join(lines[:1500]), complete=True)
    await reporter.log("build", "\n".join(lines[:2500]), complete=True)
    await reporter.log("build", "\n".join(lines), complete=True)
    told = [line for report in run.reports if report.kind == "log" for line in report.data["lines"]]
    assert told == [line[:500] for line in lines[:2000]] + ["… the rest of the log is at Dokploy"]


async def test_after_a_refused_report_nothing_is_reported_any_more() -> None:
    run, reporter = await journal_of()
    run.refuse = 2
    with pytest.raises(Interrupted):
        await reporter.status("refused")
    for report in (reporter.status("later"), reporter.heartbeat(), reporter.note("later"), reporter.removed("project")):
        with pytest.raises(Interrupted):
            await report
    assert run.said() == ["Deploying"]


# -- health ------------------------------------------------------------------------------------------------------------


def attempts(run: Run) -> list[int]:
    return [report.data["attempt"] for report in run.reports if report.kind == "rung"]


async def test_a_stack_that_starts_late_is_waited_for_with_rising_attempts(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    run = new_run(simulator)
    simulator.close_gate("container")

    def start(progress: Progress) -> None:
        if progress.kind == "rung" and progress.data["attempt"] == 4:
            simulator.open_gate("container")

    run.watch = start
    await run.deploy(dokploy)
    assert attempts(run) == list(range(1, len(attempts(run)) + 1))
    assert len(attempts(run)) >= 5
    assert "Attempt 2: the router answers 502, the container is starting" in run.said()
    assert f"Attempt {attempts(run)[-1]}: the stack answers 200" in run.said()


async def test_a_stack_that_never_answers_ends_within_its_limit(simulator: Simulator, dokploy: Dokploy) -> None:
    run = new_run(simulator, health_interval=0.15, health_timeout=2.0)
    simulator.turn(container_status="Restarting (1) 2 seconds ago")
    failure = await run.fails(dokploy)
    assert (failure.code, failure.phase, failure.retryable) == ("HEALTH_NO_ANSWER", "verifying_health", True)
    assert "Restarting (1) 2 seconds ago" in failure.evidence
    assert attempts(run) == list(range(1, len(attempts(run)) + 1))
    assert 3 <= len(attempts(run)) <= 17
    assert f"The last of {len(attempts(run))} attempts: the router answers 502" in failure.message
    checking = [at for at, report in zip(run.times, run.reports, strict=True) if report.phase == "verifying_health"]
    assert checking[-1] - checking[0] < 10


async def test_done_does_not_count_as_an_answer(simulator: Simulator, dokploy: Dokploy) -> None:
    run = new_run(simulator, health_timeout=0.1)
    simulator.turn(container_status="Exited (1) 1 second ago")
    await run.fails(dokploy)
    assert Found(simulator, run.spec).builds[0]["status"] == "done"
    assert "ends" not in [r.data.get("step") for r in run.reports if r.phase == "verifying_health"]


@pytest.mark.parametrize("fault", ["error500", "unauthorized"])
async def test_a_verdict_on_health_does_not_depend_on_what_dokploy_says_meanwhile(
    simulator: Simulator, dokploy: Dokploy, fault: str
) -> None:
    run = new_run(simulator, health_timeout=0.2)
    simulator.turn(container_status="Exited (1) 1 second ago")

    def spoil(progress: Progress) -> None:
        if progress.phase == "verifying_health" and progress.data.get("step") == "begins":
            simulator.fault("*", fault, times=None)

    run.watch = spoil
    failure = await run.fails(dokploy)
    assert failure.code == "HEALTH_NO_ANSWER"
    assert attempts(run) == list(range(1, len(attempts(run)) + 1))


async def test_a_stack_that_answers_is_live_though_the_closing_look_cannot_be_had(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    run = new_run(simulator)

    def spoil(progress: Progress) -> None:
        if progress.phase == "verifying_health" and progress.data.get("step") == "ends":
            simulator.fault("*", "error500", times=None)

    run.watch = spoil
    have = await run.deploy(dokploy, patience=0.1)
    simulator.switches.delete("faults")
    assert have.domain_id is not None
    Found(simulator, run.spec).is_one_of_each()


# -- signs of life -----------------------------------------------------------------------------------------------------


def gaps(run: Run) -> float:
    """The longest silence between two reports."""
    return max(later - earlier for earlier, later in itertools.pairwise(run.times))


def alive(run: Run) -> int:
    return sum(bool(report.data.get("alive")) for report in run.reports)


@pytest.mark.parametrize("gate", ["project.create", "domain.create:answer", "job"])
async def test_signs_of_life_are_reported_while_a_call_hangs_or_a_pull_lasts(
    simulator: Simulator, dokploy: Dokploy, monkeypatch: pytest.MonkeyPatch, gate: str
) -> None:
    monkeypatch.setattr(orchestrator, "HEARTBEAT_SECONDS", 0.05)
    run = new_run(simulator)
    simulator.close_gate(gate)
    task = asyncio.ensure_future(run.deploy(dokploy))
    await soon(lambda: alive(run) >= 5)
    simulator.open_gate(gate)
    await task
    assert gaps(run) < 5  # what is promised; here it is a fraction of that
    kept = [(report.phase, report.message) for report in run.reports if report.kind == "phase"]
    for (_, before), (_, now), report in zip(
        kept, kept[1:], [r for r in run.reports if r.kind == "phase"][1:], strict=False
    ):
        if report.data.get("alive"):
            assert now == before, "a sign of life says what was said last"


async def test_a_sign_of_life_that_is_refused_ends_the_run_as_soon_as_the_call_in_hand_has_ended(
    simulator: Simulator, dokploy: Dokploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orchestrator, "HEARTBEAT_SECONDS", 0.05)
    run = new_run(simulator)
    simulator.close_gate("application.create")

    def stop(progress: Progress) -> None:
        if progress.data.get("alive"):
            simulator.open_gate("application.create")
            raise Interrupted

    run.watch = stop
    with pytest.raises(Interrupted):
        await run.deploy(dokploy)
    taken = len(run.reports)
    run.watch = lambda progress: None
    await dokploy.version()
    assert len(run.reports) == taken
    await run.deploy(dokploy)
    Found(simulator, run.spec).is_one_of_each()


async def test_a_phase_that_outlasts_its_limit_fails(
    simulator: Simulator, dokploy: Dokploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(simulator)
    simulator.close_gate("job")
    phases = [replace(phase, timeout=0.2) if phase.name == "deploying" else phase for phase in PHASES]
    failure = await run.fails(dokploy, phases=phases)
    assert (failure.code, failure.phase) == ("TIMEOUT", "deploying")


async def test_a_deploy_that_outlasts_its_limit_fails_with_what_dokploy_says_of_it(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    running, waiting = (new_run(simulator, deploy_timeout=0.5) for _ in range(2))
    simulator.close_gate("pull")
    failure = await running.fails(dokploy)
    assert (failure.code, failure.phase) == ("TIMEOUT", "deploying")
    assert failure.message == "The deployment did not end within 0.5 s. Dokploy still reports it as “running”."
    failure = await waiting.fails(dokploy)
    assert failure.message == "The deployment did not end within 0.5 s. It is still waiting in Dokploy's queue."


async def test_a_deploy_that_is_done_at_its_limit_went_well_though_its_log_cannot_be_read(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    run = new_run(simulator, deploy_timeout=1.0)
    simulator.fault("deployment.readLogs", "error500", times=None)
    await run.deploy(dokploy)
    simulator.switches.delete("faults")
    Found(simulator, run.spec).is_one_of_each()


async def test_answers_that_fail_do_not_prolong_the_limit_of_a_deploy(simulator: Simulator, dokploy: Dokploy) -> None:
    run = new_run(simulator, deploy_timeout=1.0)
    simulator.fault("deployment.all", "reset_before", times=None)
    failure = await run.fails(dokploy, patience=20)
    assert failure.message == "The deployment did not end within 1 s. Dokploy does not report its state."


# -- bringing the former version back ----------------------------------------------------------------------------------


async def fail_redeploy(simulator: Simulator, dokploy: Dokploy, spec: StackSpec, number: int) -> Run:
    newer = Run(
        replace(
            spec, deployment=f"dep_{number}", image=f"{IMAGE}.{number}", env=(("GREETING", "new"),), health_timeout=0.1
        )
    )

    def spoil(progress: Progress) -> None:
        if progress.phase == "verifying_health":
            simulator.turn(container_status="Exited (1) 1 second ago")

    newer.watch = spoil
    assert (await newer.fails(dokploy)).code == "HEALTH_NO_ANSWER"
    assert Found(simulator, spec).services[0]["image"] == f"{IMAGE}.{number}"
    simulator.turn(container_status=None)
    newer.watch = lambda progress: None
    return newer


async def restore(dokploy: Dokploy, former: StackSpec, run: Run, reporter: Reporter | None = None) -> list[str]:
    reporter = reporter or run.reporter()
    async with asyncio.timeout(20):
        await reporter.begin("rolling_back", 95, "Rolling back")
        return await orchestrator.restore(
            dokploy, replace(former, deployment=f"{run.spec.deployment}.restore"), reporter
        )


async def test_every_failed_redeploy_brings_the_former_version_back_and_deletes_nothing(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    run = new_run(simulator)
    await run.deploy(dokploy)
    for number in (2, 3):
        newer = await fail_redeploy(simulator, dokploy, run.spec, number)
        before, taken = calls(simulator), len(newer.reports)
        assert await restore(dokploy, run.spec, newer) == []
        assert not set(REMOVES) & set(calls(simulator) - before)
        found = Found(simulator, run.spec)
        found.is_one_of_each()
        assert len(found.builds) == 1 + 2 * (number - 1)
        assert {report.phase for report in newer.reports[taken:]} == {"rolling_back"}


async def test_a_redeploy_is_live_once_the_new_container_answers_and_not_before(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    run = new_run(simulator)
    await run.deploy(dokploy)
    newer = Run(replace(run.spec, deployment="dep_newer", image=f"{IMAGE}.2"))
    simulator.close_gate("container")

    def open_gate(progress: Progress) -> None:
        if progress.message == "Attempt 1: the stack answers 200, from the former version":
            simulator.open_gate("container")

    newer.watch = open_gate
    await newer.deploy(dokploy)
    assert "Attempt 1: the stack answers 200, from the former version" in newer.said()
    assert f"{IMAGE}.2" in simulator.visit(run.spec.host).text
    Found(simulator, newer.spec).is_one_of_each()


async def test_a_new_version_that_does_not_start_has_failed_though_the_one_before_answers(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    run = new_run(simulator)
    await run.deploy(dokploy)
    newer = Run(replace(run.spec, deployment="dep_newer", image=f"{IMAGE}.2", health_timeout=0.1))
    simulator.close_gate("container")
    failure = await newer.fails(dokploy)
    assert (failure.code, failure.phase, failure.retryable) == ("NOT_REPLACED", "verifying_health", True)
    simulator.open_gate("container")
    assert await restore(dokploy, run.spec, newer) == []
    found = Found(simulator, run.spec)
    found.is_one_of_each()
    assert found.services[0]["image"] == IMAGE


async def test_the_closing_look_leaves_the_domain_that_somebody_has_put_in_the_place_of_ours(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    run = new_run(simulator)
    simulator.close_gate("job")
    deploying = asyncio.ensure_future(run.deploy(dokploy))
    assert await asyncio.to_thread(simulator.wait_at, "job") == 1
    (ours,) = Found(simulator, run.spec).domains
    simulator.do("domain.delete", domainId=ours["domainId"])
    theirs = {name: ours[name] for name in ("host", "path", "port", "applicationId", "domainType")}
    simulator.do("domain.create", **theirs)
    simulator.open_gate("job")
    await deploying
    Found(simulator, run.spec).is_one_of_each()


async def test_a_restore_removes_the_surplus_that_a_failed_redeploy_made(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    run = new_run(simulator)
    have = await run.deploy(dokploy)
    simulator.turn(pull_error="manifest unknown")
    newer = Run(replace(run.spec, deployment="dep_newer"))
    assert (await newer.fails(dokploy)).code == "IMAGE_NOT_FOUND"
    late = {"host": run.spec.host, "port": run.spec.port, "domainType": "application"}
    simulator.do("domain.create", applicationId=have.application_id, **late)
    simulator.turn(pull_error=None)
    assert await restore(dokploy, run.spec, newer) == []
    found = Found(simulator, run.spec)
    found.is_one_of_each()
    assert found.domains[0]["domainId"] == have.domain_id


@pytest.mark.parametrize("fault", ["error500", "html502"])
async def test_a_redeploy_that_answers_is_not_undone_because_dokploy_cannot_say_of_which_version(
    simulator: Simulator, dokploy: Dokploy, fault: str
) -> None:
    run = new_run(simulator)
    await run.deploy(dokploy)
    newer = Run(replace(run.spec, deployment="dep_newer", image=f"{IMAGE}.2", health_timeout=0.3))

    def spoil(progress: Progress) -> None:
        if progress.phase == "verifying_health" and progress.data.get("step") == "begins":
            simulator.fault("docker.getContainersByAppNameMatch", fault, times=None)

    newer.watch = spoil
    await newer.deploy(dokploy)
    assert "Attempt 1: the stack answers 200, perhaps from the former version" in newer.said()
    Found(simulator, newer.spec).is_one_of_each()


async def test_a_redeploy_waits_until_dokploy_says_which_containers_it_replaces(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    run = new_run(simulator)
    await run.deploy(dokploy)
    newer = Run(replace(run.spec, deployment="dep_newer", image=f"{IMAGE}.2"))
    simulator.fault("docker.getContainersByAppNameMatch", "error500", times=2)
    simulator.close_gate("container")

    def open_gate(progress: Progress) -> None:
        if progress.message == "Attempt 1: the stack answers 200, from the former version":
            simulator.open_gate("container")

    newer.watch = open_gate
    await newer.deploy(dokploy)
    assert "Attempt 1: the stack answers 200, from the former version" in newer.said()
    Found(simulator, newer.spec).is_one_of_each()


async def test_an_engine_that_does_not_say_what_runs_is_not_taken_to_have_replaced_it(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    run = new_run(simulator)
    await run.deploy(dokploy)
    newer = Run(replace(run.spec, deployment="dep_newer", image=f"{IMAGE}.2"))
    simulator.close_gate("container")

    def turn(progress: Progress) -> None:
        if progress.phase == "verifying_health" and progress.data.get("step") == "begins":
            simulator.turn(engine="down")
        elif progress.message == "Attempt 1: the stack answers 200, perhaps from the former version":
            simulator.turn(engine="up")
        elif progress.message == "Attempt 2: the stack answers 200, from the former version":
            simulator.open_gate("container")

    newer.watch = turn
    await newer.deploy(dokploy)
    assert f"{IMAGE}.2" in simulator.visit(run.spec.host).text
    Found(simulator, newer.spec).is_one_of_each()


async def test_a_redeploy_replaces_what_somebody_elses_deploy_in_front_of_it_has_started(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    run = new_run(simulator)
    have = await run.deploy(dokploy)
    first = {row["name"] for row in simulator.ask("docker.getContainersByAppNameMatch", appName=have.app_name)}
    simulator.close_gate("job")
    simulator.close_gate("pull")  # which a redeploy does not pass
    simulator.do("application.redeploy", applicationId=have.application_id, title="by hand")
    newer = Run(replace(run.spec, deployment="dep_newer"))

    def open_gates(progress: Progress) -> None:
        if progress.message == "Waiting in Dokploy's queue, 1 ahead":
            simulator.open_gate("job")
        elif progress.resources and progress.resources.replaces and not first & set(progress.resources.replaces):
            simulator.open_gate("pull")

    newer.watch = open_gates
    resources = await newer.deploy(dokploy)
    assert len(resources.replaces) == 1
    assert not first & set(resources.replaces)
    Found(simulator, newer.spec).is_one_of_each()


async def test_the_containers_of_an_application_whose_name_begins_alike_are_not_ours(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    run = new_run(simulator)
    have = await run.deploy(dokploy)
    theirs = simulator.application(simulator.project(f"alike-{run.spec.name}")[1], appName=have.app_name)
    simulator.deploy(theirs)
    assert theirs["appName"].startswith(f"{have.app_name}-")
    await soon(lambda: len(simulator.ask("docker.getContainersByAppNameMatch", appName=have.app_name)) == 2)
    newer = Run(replace(run.spec, deployment="dep_newer", health_timeout=1.0))
    await newer.deploy(dokploy)
    assert len(await dokploy.containers(have.app_name or "")) == 1


async def test_a_restore_that_was_interrupted_waits_for_the_container_of_its_own_deploy(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    run = new_run(simulator)
    await run.deploy(dokploy)
    newer = Run(replace(run.spec, deployment="dep_2", image=f"{IMAGE}.2"))
    await newer.deploy(dokploy)
    simulator.close_gate("container")

    def interrupt(progress: Progress) -> None:
        if progress.message == "Restoring the former version: checking health":
            newer.refuse = newer._asked + 1

    def open_gate(progress: Progress) -> None:
        if progress.message == "Attempt 1: the stack answers 200, from the former version":
            simulator.open_gate("container")

    newer.watch = interrupt
    with pytest.raises(Interrupted):
        await restore(dokploy, run.spec, newer)
    newer.watch = open_gate
    assert await restore(dokploy, run.spec, newer) == []
    assert "Attempt 1: the stack answers 200, from the former version" in newer.said()
    assert f"{IMAGE}.2" not in simulator.visit(run.spec.host).text
    Found(simulator, run.spec).is_one_of_each()


async def test_a_restore_that_is_interrupted_at_every_report_and_run_again_sends_one_deploy(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    run = new_run(simulator)
    await run.deploy(dokploy)
    for number in itertools.count(1):
        newer = Run(replace(run.spec, deployment=f"dep_{number}", image=f"{IMAGE}.{number}"))
        await newer.deploy(dokploy)
        reporter = newer.reporter()
        newer.refuse = number
        try:
            await restore(dokploy, run.spec, newer, reporter)
        except Interrupted:
            assert await restore(dokploy, run.spec, newer) == []
            found = Found(simulator, run.spec)
            found.is_one_of_each()
            assert sum(f"/{newer.spec.deployment}.restore/" in build["title"] for build in found.builds) == 1
        else:
            break
    assert number > 8


async def test_a_redeploy_that_failed_before_it_touched_anything_has_nothing_to_bring_back(
    simulator: Simulator, dokploy: Dokploy, nobody: Dokploy
) -> None:
    run = new_run(simulator)
    await run.deploy(dokploy)
    newer = Run(replace(run.spec, deployment="dep_2"))
    assert (await newer.fails(nobody, patience=0.05)).phase == "creating_project"
    before = calls(simulator)
    assert await restore(dokploy, run.spec, newer) == []
    assert not calls(simulator) - before


async def test_a_former_version_that_cannot_be_brought_back_is_named(simulator: Simulator, dokploy: Dokploy) -> None:
    run = new_run(simulator)
    await run.deploy(dokploy)
    simulator.turn(pull_error="manifest unknown")
    newer = Run(replace(run.spec, deployment="dep_2"))
    assert (await newer.fails(dokploy)).code == "IMAGE_NOT_FOUND"
    left = await restore(dokploy, run.spec, newer)
    assert len(left) == 1
    assert left[0].startswith("the former version (The registry does not have this image")
