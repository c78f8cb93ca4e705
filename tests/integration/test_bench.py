"""The bench's own arithmetic: pauses, limits, ratios, frames, and the search for Node."""

import asyncio
import shutil
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from bench import hundred, node, pauses
from bench.figures import Figure
from bench.hundred import Together
from bench.watchers import Watcher, Watchers

# Executed below under the name of an engine module, because only the pauses of the engine are recorded.
ENGINE = """
async def follow(delay, in_a_task):
    pause = asyncio.sleep(delay)
    await (asyncio.create_task(pause) if in_a_task else pause)
"""


@pytest.fixture
def follow(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(asyncio, "sleep", asyncio.sleep)  # restores the original after the test
    pauses.record()
    pauses.take()
    namespace: dict[str, Any] = {"__name__": "deployments.engine.sample", "asyncio": asyncio}
    exec(ENGINE, namespace)
    return namespace["follow"]


@pytest.mark.parametrize("in_a_task", [False, True])
async def test_a_pause_is_recorded_even_if_a_task_sleeps(follow: Any, in_a_task: bool) -> None:
    await follow(0.02, in_a_task)
    assert pauses.take() == {"follow": pytest.approx(0.02, abs=0.005)}
    assert pauses.take() == {}


async def test_a_negative_pause_takes_no_time(follow: Any) -> None:
    await follow(-5, True)
    assert pauses.take() == {"follow": 0}


async def test_a_cancelled_pause_counts_for_as_long_as_it_lasted(follow: Any) -> None:
    task = asyncio.create_task(follow(30, True))
    await asyncio.wait({task}, timeout=0.02)
    task.cancel()
    await asyncio.wait({task})
    assert 0 < pauses.take()["follow"] < 5


async def test_pauses_of_other_modules_are_not_recorded(follow: Any) -> None:
    await asyncio.sleep(0.001)
    assert pauses.take() == {}


def test_a_limit_is_not_shown_as_a_time() -> None:
    alone = [Together(asked=1, succeeded=1, seconds=6.0, cpu=0.4, calls=24)]
    many = [Together(asked=100, succeeded=75, seconds=None, cpu=30.0, calls=1800)]
    first, _, each, _, calls = hundred.figures(alone, many, 0.25, 12.0)
    assert first.value is None
    assert "75" in first.against
    assert each.value == pytest.approx(400)  # milliseconds: 30 s of CPU for the 75 that succeeded
    assert calls.value == 24


def test_nothing_is_measured_if_no_deployment_succeeds() -> None:
    nothing = [Together(asked=1, succeeded=0, seconds=None, cpu=1.0, calls=0)]
    assert [figure.value for figure in hundred.figures(nothing, nothing, 0.25, 12.0)] == [None]


def test_the_baseline_of_many_is_the_time_of_one_plus_their_cpu() -> None:
    alone = [Together(asked=1, succeeded=1, seconds=6.0, cpu=0.25, calls=24)]
    many = [Together(asked=100, succeeded=100, seconds=31.0, cpu=25.0, calls=2400)]
    first = hundred.figures(alone, many, 0.25, 12.0)[0]
    assert (first.value, first.baseline, first.ratio, first.met) == (31.0, 31.0, "1.00", True)


@pytest.mark.parametrize(
    ("value", "baseline", "ratio"), [(3.0, 2.0, "1.50"), (1.0, 40.0, "1/40"), (None, 2.0, ""), (3.0, None, "")]
)
def test_the_ratio_to_the_baseline_is_shown_as_text(value: float | None, baseline: float | None, ratio: str) -> None:
    assert Figure("a figure", value, baseline=baseline).ratio == ratio


@pytest.mark.parametrize("size", [20, 200, 70_000])
def test_a_frame_that_arrives_in_pieces_is_read_completely(size: int) -> None:
    text = b'<article data-version="7">'.ljust(size, b"x")[:size] if size > 26 else b'data-version="7"'.ljust(size)
    length = len(text)
    if length < 126:
        head = struct.pack("!BB", 0x81, length)
    elif length < 65536:
        head = struct.pack("!BBH", 0x81, 126, length)
    else:
        head = struct.pack("!BBQ", 0x81, 127, length)
    watcher = Watcher(socket.socket())
    try:
        whole = b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + head + text
        for number, start in enumerate(range(0, len(whole), 37)):
            watcher.receive(whole[start : start + 37], number)
        assert (watcher.version, watcher.size, watcher.frames) == (7, length, 1)
        assert watcher.at == (len(whole) - 1) // 37
    finally:
        watcher.connection.close()


@pytest.mark.skipif(node.find_node() is None, reason="There is no Node on this machine.")
def test_nodes_push_reaches_every_socket_and_ends() -> None:
    found = node.find_node()
    assert found is not None
    push, watchers = node.Push(found), Watchers()
    try:
        crowd = watchers.open(push.port, "/", 3, first_frame=False)
        arrived = watchers.arrivals(crowd, push.change(3000), 10)
        began = push.pushed_at()
        assert [watcher.size for watcher in crowd] == [3000] * 3
        assert all(0 <= at - began < 5e9 for at in arrived)
    finally:
        watchers.close_all()
        push.close()
    assert push.process.returncode == 0


def test_playwrights_node_is_found_without_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    found = node.find_node()
    assert found is None or (Path(found).name == "node" and "playwright" in found)
