"""Dokploy answers wrongly, once to a question and once to a change: the run ends in bounded time, works or leaves
nothing, and neither memory nor the key goes astray."""

import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..processes import until
from .assertions import Figures, Watched, is_as_it_should_be, is_told_alike

QUESTION, CHANGE = "environment.byProjectId", "application.create"
# “_done”: the work is done all the same.
WRONG = (
    "error500 error500_done error400 error400_done unauthorized unauthorized_done too_many html502 html502_done "
    "empty200 empty200_done garbage200 garbage200_done wrong_types reset_before reset_after "
    "hang slow_bytes huge redirect"
).split()
SECONDS = 60
MEGABYTES = 100


@pytest.fixture(scope="module")
def portal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    portal = Watched(tmp_path_factory.mktemp("wrong") / "portal").start()
    yield portal
    portal.close()


@pytest.fixture
def elsewhere() -> Iterator[socket.socket]:
    """Where a redirect leads; nobody may come."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


def peak(portal: Watched) -> int:
    """The most memory that the portal has held, in megabytes."""
    assert portal.process is not None
    status = Path(f"/proc/{portal.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) // 1024


@pytest.mark.parametrize("what", WRONG)
def test_a_run_that_is_answered_wrongly_works_or_leaves_nothing(
    portal: Watched, elsewhere: socket.socket, what: str, figures: Figures
) -> None:
    name, before, began = what.replace("_", "-"), peak(portal), time.monotonic()
    address = f"http://127.0.0.1:{elsewhere.getsockname()[1]}/"
    for procedure in (QUESTION, CHANGE):
        more = {"text": address} if what == "redirect" else {"seconds": 1} if what == "slow_bytes" else {}
        portal.fault(procedure, what, **more)
    portal.ask(name)
    run = portal.ended(name, SECONDS)
    portal.switches.delete("faults")
    assert time.monotonic() - began < SECONDS
    works = run["status"] == "success"
    assert run["phase"] == ("completed" if works else "rolling_back"), run["message"]
    assert works or run["message"] == "Rollback completed"
    is_told_alike(portal, run, figures)
    is_as_it_should_be(portal, [name], int(works), figures)
    figures.ended += 1
    assert peak(portal) - before < MEGABYTES
    with pytest.raises(BlockingIOError):
        elsewhere.accept()
    if works:
        portal.ask_removal(name)
        until(lambda: portal.run_of(name)["kind"] == "remove")
        assert portal.ended(name)["phase"] == "completed"
