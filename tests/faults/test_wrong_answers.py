"""Dokploy answers wrongly, once to a read and once to a change.

The deployment ends in bounded time, succeeds or leaves nothing, and neither memory nor the API key leaks.
"""

import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..processes import until
from .assertions import Figures, OneMachinePortal, assert_objects, assert_same_everywhere

QUESTION, CHANGE = "environment.byProjectId", "application.create"
# With “_done” Dokploy executes the call and then gives this answer.
WRONG = (
    "error500 error500_done error400 error400_done unauthorized unauthorized_done too_many html502 html502_done "
    "empty200 empty200_done garbage200 garbage200_done wrong_types reset_before reset_after "
    "hang slow_bytes huge redirect"
).split()
SECONDS = 60
MEGABYTES = 100


@pytest.fixture(scope="module")
def portal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneMachinePortal]:
    portal = OneMachinePortal(tmp_path_factory.mktemp("wrong") / "portal").start()
    yield portal
    portal.close()


@pytest.fixture
def elsewhere() -> Iterator[socket.socket]:
    """Listen at the target of the redirect, to which the portal must not connect."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


def peak(portal: OneMachinePortal) -> int:
    """Return the portal's peak memory in megabytes."""
    assert portal.process is not None
    status = Path(f"/proc/{portal.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) // 1024


@pytest.mark.parametrize("what", WRONG)
def test_after_a_wrong_answer_a_deployment_succeeds_or_leaves_nothing(
    portal: OneMachinePortal, elsewhere: socket.socket, what: str, figures: Figures
) -> None:
    name, before, began = what.replace("_", "-"), peak(portal), time.monotonic()
    address = f"http://127.0.0.1:{elsewhere.getsockname()[1]}/"
    for procedure in (QUESTION, CHANGE):
        more = {"text": address} if what == "redirect" else {"seconds": 1} if what == "slow_bytes" else {}
        portal.fault(procedure, what, **more)
    portal.request(name)
    deployment = portal.wait_until_ended(name, SECONDS)
    portal.switches.delete("faults")
    assert time.monotonic() - began < SECONDS
    works = deployment["status"] == "success"
    assert deployment["phase"] == ("completed" if works else "rolling_back"), deployment["message"]
    assert works or deployment["message"] == "Rollback completed"
    assert_same_everywhere(portal, deployment, figures)
    assert_objects(portal, [name], int(works), figures)
    figures.ended += 1
    assert peak(portal) - before < MEGABYTES
    with pytest.raises(BlockingIOError):
        elsewhere.accept()
    if works:
        portal.request_removal(name)
        until(lambda: portal.newest_deployment(name)["kind"] == "remove")
        assert portal.wait_until_ended(name)["phase"] == "completed"
