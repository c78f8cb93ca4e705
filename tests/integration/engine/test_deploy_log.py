"""The reported log of a Dokploy deployment, read from the WebSocket or by polling."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from deployments.engine import deploy, deploy_log, retry
from deployments.engine import reporter as reporter_module
from deployments.engine.dokploy import Dokploy, log_stream
from deployments.engine.errors import Interrupted
from deployments.engine.spec import Progress

from ...processes import IMAGE, KEY, Simulator
from ..log_server import Behaviour, LogServer, Peer, answers, closes, frame, resets, says_nothing, sends
from .harness import EngineHarness, StackObjects, count_calls, eventually, logged_lines, new_harness

pytestmark = pytest.mark.asyncio(loop_scope="module")
CANARY = "log-canary-4711"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def pool() -> AsyncIterator[Dokploy]:
    """Yield one client for all tests: loading the certificates of each client would take longer than a test."""
    client = Dokploy("http://127.0.0.1:9", KEY)
    yield client
    await client.aclose()


@pytest_asyncio.fixture(loop_scope="module")
async def proxy(simulator: Simulator) -> AsyncIterator[LogServer]:
    """Yield a log server in front of the simulator."""
    server = LogServer(simulator.port)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
def dokploy(proxy: LogServer, pool: Dokploy) -> Dokploy:
    pool._transport._http.base_url = httpx.URL(proxy.url)
    return pool


@pytest.fixture
def single_poll(dokploy: Dokploy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Delay the second poll of the status so long that only the WebSocket can deliver more lines."""
    monkeypatch.setattr(deploy, "POLL_SECONDS", 60.0)


def reported_lines(harness: EngineHarness) -> list[str]:
    return [line for report in harness.reports if report.kind == "log" for line in report.data["lines"]]


@contextlib.asynccontextmanager
async def deploying(harness: EngineHarness, dokploy: Dokploy, *secrets: str) -> AsyncIterator[asyncio.Task[Any]]:
    reporter = harness.reporter()
    reporter.secrets = secrets
    task = asyncio.ensure_future(harness.deploy(dokploy, reporter))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_the_next_worker_continues_the_log_without_gaps(simulator: Simulator, dokploy: Dokploy) -> None:
    harness = new_harness(simulator)
    simulator.close_gate("job")

    def stop(progress: Progress) -> None:
        if progress.kind == "log":
            raise Interrupted

    harness.on_report = stop
    with pytest.raises(Interrupted):
        await harness.deploy(dokploy)
    assert list(logged_lines(harness).values()) == [["Initializing deployment"]]
    harness.on_report = lambda progress: None
    simulator.open_gate("job")
    await harness.deploy(dokploy)
    row = StackObjects(simulator, harness.spec).dokploy_deployments[0]
    assert logged_lines(harness) == {row["deploymentId"]: simulator.log(row).splitlines()}
    assert len(simulator.log(row).splitlines()) > 10


async def test_the_log_is_reported_while_it_is_written(simulator: Simulator, dokploy: Dokploy) -> None:
    """Each gate opens after the lines before it were reported: late reports would cause a deadlock."""
    harness = new_harness(simulator)
    written = {"job": "Initializing deployment", "pull": f"Pulling {IMAGE}", "stall": "✅ Pulling image completed."}
    for gate in written:
        simulator.close_gate(gate)
    task = asyncio.ensure_future(harness.deploy(dokploy))
    for gate, line in written.items():
        await eventually(lambda line=line: line in itertools.chain(*logged_lines(harness).values()))
        simulator.open_gate(gate)
    await task
    row = StackObjects(simulator, harness.spec).dokploy_deployments[0]
    assert logged_lines(harness) == {row["deploymentId"]: simulator.log(row).splitlines()}


@pytest.mark.usefixtures("single_poll")
async def test_lines_are_reported_while_the_pull_takes_long(
    simulator: Simulator, proxy: LogServer, dokploy: Dokploy
) -> None:
    """The gate opens after the lines were reported: lines reported only at the end would cause a deadlock."""
    harness = new_harness(simulator)
    before = count_calls(simulator)
    simulator.close_gate("job")
    simulator.close_gate("pull")
    async with deploying(harness, dokploy):
        await eventually(lambda: reported_lines(harness) == ["Initializing deployment"])
        simulator.open_gate("job")
        await eventually(lambda: len(reported_lines(harness)) == 3)
        assert reported_lines(harness)[1] == f"Pulling {IMAGE}"
        simulator.open_gate("pull")
        await eventually(lambda: "✅ Pulling image completed." in reported_lines(harness))
    assert (count_calls(simulator) - before)["deployment.readLogs"] == 0
    assert len(proxy.request_heads) == 1
    await eventually(lambda: proxy.ended_count == 1)


async def test_lines_are_reported_once_while_the_poll_of_the_status_hangs(
    simulator: Simulator, proxy: LogServer, dokploy: Dokploy
) -> None:
    harness = new_harness(simulator)
    simulator.close_gate("job")
    simulator.close_gate("pull")
    async with deploying(harness, dokploy) as task:
        await eventually(lambda: reported_lines(harness) == ["Initializing deployment"])
        simulator.close_gate("deployment.all")
        await eventually(lambda: simulator.state()["gates"]["deployment.all"])
        simulator.open_gate("job")
        await eventually(lambda: len(reported_lines(harness)) == 3)
        simulator.open_gate("pull")
        await eventually(lambda: not simulator.state()["queue"])
        before = count_calls(simulator)
        simulator.open_gate("deployment.all")
        await task
    row = StackObjects(simulator, harness.spec).dokploy_deployments[0]
    assert logged_lines(harness) == {row["deploymentId"]: simulator.log(row).splitlines()}
    assert (count_calls(simulator) - before)["deployment.readLogs"] == 2, "one request at the end, and one of this test"
    assert len(proxy.request_heads) == 1
    await eventually(lambda: proxy.ended_count == 1)


async def test_the_next_worker_follows_the_log_from_the_last_reported_line(
    simulator: Simulator, proxy: LogServer, dokploy: Dokploy
) -> None:
    harness = new_harness(simulator)
    simulator.close_gate("pull")

    def stop(progress: Progress) -> None:
        if progress.kind == "log" and progress.data["lines"][-1] != "Initializing deployment":
            raise Interrupted

    harness.on_report = stop
    with pytest.raises(Interrupted):
        await harness.deploy(dokploy)
    taken = len(harness.reports)
    await eventually(lambda: proxy.ended_count == 1)
    assert len(harness.reports) == taken
    harness.on_report = lambda progress: None
    simulator.open_gate("pull")
    await harness.deploy(dokploy)
    row = StackObjects(simulator, harness.spec).dokploy_deployments[0]
    assert logged_lines(harness) == {row["deploymentId"]: simulator.log(row).splitlines()}
    StackObjects(simulator, harness.spec).assert_one_of_each()


@pytest.mark.usefixtures("single_poll")
async def test_a_secret_split_by_frames_and_control_characters_is_masked(
    simulator: Simulator, proxy: LogServer, dokploy: Dokploy
) -> None:
    send_rest = asyncio.Event()

    async def behave(peer: Peer) -> None:
        await peer.upgrade()
        await peer.send(frame(f"whole {CANARY}\nTOKEN={CANARY[:6]}"))
        await send_rest.wait()
        await peer.send(frame(f"{CANARY[6:9]}\x1b["), frame(f"31m{CANARY[9:]}"), frame("\x1b[0m!\nend\n"))
        await peer.wait_until_closed()

    proxy.on_listen = behave
    harness = new_harness(simulator)
    simulator.close_gate("job")
    async with deploying(harness, dokploy, CANARY):
        await eventually(lambda: reported_lines(harness) == ["whole ***"])
        send_rest.set()
        await eventually(lambda: reported_lines(harness) == ["whole ***", "TOKEN=***!", "end"])
    assert CANARY[:6] not in str(harness.reports)


async def test_at_most_four_events_with_log_lines_are_reported_in_a_second(
    simulator: Simulator, dokploy: Dokploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporter_module, "LOG_SECONDS", 0.25)
    harness = new_harness(simulator)
    simulator.turn(pull=1.5)
    await harness.deploy(dokploy)
    row = StackObjects(simulator, harness.spec).dokploy_deployments[0]
    assert logged_lines(harness) == {row["deploymentId"]: simulator.log(row).splitlines()}
    at = [when for when, report in zip(harness.times, harness.reports, strict=True) if report.kind == "log"]
    assert 4 <= len(at) <= 1 + 4 * (at[-1] - at[0])
    assert all(fifth - first >= 1 for first, fifth in zip(at, at[4:], strict=False))
    assert len(at) < len(reported_lines(harness)), "many lines in one event"


@pytest.mark.usefixtures("single_poll")
async def test_following_stops_when_enough_lines_were_reported(
    simulator: Simulator, proxy: LogServer, dokploy: Dokploy
) -> None:
    enough = [f"line {number}" for number in range(reporter_module.LINES_PER_DEPLOYMENT)]
    more = asyncio.Event()

    async def behave(peer: Peer) -> None:
        await peer.upgrade()
        await peer.send(*[frame(f"{line}\n") for line in enough])
        await more.wait()
        await peer.send(frame("one more\n"))
        await peer.wait_until_closed()

    proxy.on_listen = behave
    harness = new_harness(simulator)
    simulator.close_gate("job")
    async with deploying(harness, dokploy):
        await eventually(lambda: reported_lines(harness) == [*enough, "… the rest of the log is at Dokploy"])
        more.set()
        await eventually(lambda: proxy.ended_count == 1)


# -- without the WebSocket ---------------------------------------------------------------------------------------------


async def breaks_within_a_line(peer: Peer) -> None:
    await peer.upgrade()
    await peer.send(frame("Initializing depl"))
    peer.reset()


REFUSALS: dict[str, Behaviour] = {
    "not found": answers(404, "404: This page could not be found."),
    "a redirect": answers(302, "", "Location: /elsewhere"),
    "a close": closes(),
    "a reset": resets,
    "silence": says_nothing,
    "an upgrade and silence": sends(),
    "an error of tail": sends(frame("tail error: tail: cannot open it\n")),
    "half a line and a reset": breaks_within_a_line,
}


@pytest.mark.parametrize("behave", REFUSALS.values(), ids=REFUSALS)
async def test_without_the_websocket_the_log_is_polled(
    simulator: Simulator, proxy: LogServer, dokploy: Dokploy, monkeypatch: pytest.MonkeyPatch, behave: Behaviour
) -> None:
    monkeypatch.setattr(log_stream, "CLOSE_SECONDS", 0.3)
    proxy.on_listen = behave
    harness = new_harness(simulator)
    simulator.close_gate("pull")
    async with deploying(harness, dokploy) as task:
        await eventually(lambda: len(reported_lines(harness)) == 3)
        assert not task.done()
        simulator.open_gate("pull")
        await task
    row = StackObjects(simulator, harness.spec).dokploy_deployments[0]
    assert logged_lines(harness) == {row["deploymentId"]: simulator.log(row).splitlines()}
    assert len(proxy.request_heads) == 1, "the WebSocket is tried once"
    await eventually(lambda: proxy.ended_count == 1)


async def test_no_line_is_missing_or_repeated_after_the_websocket_breaks(
    simulator: Simulator, proxy: LogServer, dokploy: Dokploy
) -> None:
    harness = new_harness(simulator)
    simulator.close_gate("pull")
    simulator.close_gate("stall")
    async with deploying(harness, dokploy) as task:
        await eventually(lambda: len(reported_lines(harness)) == 3)
        proxy.reset_all()
        await eventually(lambda: proxy.ended_count == 1)
        simulator.open_gate("pull")
        await eventually(lambda: "✅ Pulling image completed." in reported_lines(harness))
        assert not task.done()
        simulator.open_gate("stall")
        await task
    row = StackObjects(simulator, harness.spec).dokploy_deployments[0]
    assert logged_lines(harness) == {row["deploymentId"]: simulator.log(row).splitlines()}
    assert len(proxy.request_heads) == 1


# -- a log that cannot be read -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("huge", "Dokploy's response is too large."),
        ("redirect", "DOKPLOY_URL leads to a redirect. Set it to the final address."),
    ],
)
@pytest.mark.parametrize("by_socket", [True, False])
async def test_a_log_that_cannot_be_read_does_not_fail_the_deployment(
    simulator: Simulator, proxy: LogServer, dokploy: Dokploy, fault: str, why: str, by_socket: bool
) -> None:
    if not by_socket:
        proxy.on_listen = closes()
    harness = new_harness(simulator)
    before = count_calls(simulator)
    simulator.close_gate("pull")
    simulator.fault("deployment.readLogs", fault, times=None)
    async with deploying(harness, dokploy) as task:
        if by_socket:
            await eventually(lambda: len(reported_lines(harness)) == 3)
        else:
            await eventually(lambda: (count_calls(simulator) - before)["deployment.readLogs"] == 1)
            polls = count_calls(simulator)
            await eventually(lambda: (count_calls(simulator) - polls)["deployment.all"] >= 5)
        simulator.open_gate("pull")
        await task
    assert (count_calls(simulator) - before)["deployment.readLogs"] <= 2, (
        "one request while it runs, and one at the end"
    )
    assert harness.messages("note") == [f"The log cannot be read: {why}"]
    StackObjects(simulator, harness.spec).assert_one_of_each()
    row = StackObjects(simulator, harness.spec).dokploy_deployments[0]
    simulator.switches.delete("faults")
    assert reported_lines(harness) == simulator.log(row).splitlines()[: len(reported_lines(harness))]


@pytest.mark.parametrize("by_socket", [True, False])
async def test_a_permanent_error_of_the_log_does_not_fail_the_deployment(
    simulator: Simulator, proxy: LogServer, dokploy: Dokploy, monkeypatch: pytest.MonkeyPatch, by_socket: bool
) -> None:
    monkeypatch.setattr(deploy_log, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(retry, "POLL_SECONDS", 0.01)
    if not by_socket:
        proxy.on_listen = closes()
    harness = new_harness(simulator)
    simulator.close_gate("pull")
    simulator.fault("deployment.readLogs", "error500", times=None)
    before = count_calls(simulator)
    async with deploying(harness, dokploy) as task:
        await eventually(lambda: (count_calls(simulator) - before)["deployment.all"] >= 5)
        simulator.open_gate("pull")
        await task
    assert harness.messages("note") == ["The log cannot be read: Dokploy answered 500 to deployment.readLogs."]
    assert any("Waiting for Dokploy" in line for line in harness.messages()), "an outage is waited for"
    StackObjects(simulator, harness.spec).assert_one_of_each()
    simulator.switches.delete("faults")


async def test_the_received_text_explains_a_failure_when_the_log_cannot_be_read(
    simulator: Simulator, dokploy: Dokploy
) -> None:
    harness = new_harness(simulator)
    simulator.turn(pull_error="manifest unknown")
    simulator.fault("deployment.readLogs", "redirect", times=None)
    simulator.close_gate("job")
    failing = asyncio.ensure_future(harness.deploy_and_fail(dokploy))
    await eventually(lambda: reported_lines(harness))
    simulator.close_gate("deployment.all")
    await eventually(lambda: simulator.state()["gates"]["deployment.all"])
    simulator.open_gate("job")
    await eventually(lambda: "manifest unknown" in reported_lines(harness))
    simulator.open_gate("deployment.all")
    failure = await failing
    assert (failure.code, failure.evidence) == ("IMAGE_NOT_FOUND", "manifest unknown")
