"""Every client receives each phase while the phase is in progress.

A gate holds each phase until the client has received it, so an implementation that blocks never gets past the first.
"""

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from deployments.engine.recipe import TITLES

from ..gates import GATES, SECONDS, held, long_poller, poller, socket, streamer, wait_for_frame, walk
from ..processes import Portal

PROGRESS = {
    "initializing": 0,
    "creating_project": 10,
    "getting_environment": 20,
    "creating_application": 35,
    "configuring_application": 50,
    "creating_domain": 65,
    "deploying": 85,
    "verifying_health": 90,
    "completed": 100,
}
UNDO_GATES = {"domain.delete": "domain", "application.delete": "application", "project.remove": "project"}
OLD_SERVICE = json.loads((Path(__file__).parent / "fixtures" / "old_service.json").read_text())


@pytest.mark.parametrize("client", [poller, long_poller, streamer])
def test_a_client_receives_each_phase_while_it_is_in_progress(portal: Portal, client: Any) -> None:
    with held(portal, *GATES.values()):
        id = portal.deploy(f"gate-{client.__name__.replace('_', '-')}")
        walk(portal, client(portal, id))
    assert portal.finished(id)["phase"] == "completed"


def test_a_socket_receives_each_phase_while_it_is_in_progress(portal: Portal) -> None:
    with held(portal, *GATES.values()):
        id = portal.deploy("gate-socket")
        with socket(portal, id) as page:
            walk(portal, lambda phase: wait_for_frame(page, f"of 7, {TITLES[phase].lower()}"))
            frame = wait_for_frame(page, "data-done")
    assert "The stack is live" in frame


def test_all_clients_receive_the_same_state(portal: Portal) -> None:
    with held(portal, "job"):
        id = portal.deploy("same-story")
        stream = portal.stream(id, SECONDS)
        streamed = [next(stream)]
        with socket(portal, id) as page:
            portal.open_gate("job")
            streamed += list(stream)
            frame = wait_for_frame(page, "data-done")
    state = portal.status(id)
    events = portal.events(id)["events"]
    assert [event["seq"] for event in events] == list(range(1, state["version"] + 1))
    assert streamed[-1]["event"] == "complete"
    assert {**state, "logs": None} == {**streamed[-1]["data"], "logs": None}
    assert comparable(frame) == comparable(portal.http.get(f"/deployments/{id}/live").text)
    phases = [event["seq"] for event in events if event["kind"] == "phase"]
    ids = [int(event["id"]) for event in streamed]
    assert ids[1:] == [seq for seq in phases if seq > ids[0]]


def comparable(html: str) -> str:
    """Return the page without the usual duration, which is measured again every ten seconds."""
    return re.sub(r'<span class="dot">·</span>\s+usually about [^<]+', "", unescape(html))


def test_progress_never_falls_and_the_phases_come_in_order(portal: Portal) -> None:
    id = portal.deploy("never-falls")
    portal.finished(id)
    events = portal.events(id)["events"]
    progress = [event["progress"] for event in events]
    assert progress == sorted(progress)
    assert {event["phase"]: event["progress"] for event in events} == PROGRESS
    order = list(dict.fromkeys(event["phase"] for event in events))
    assert order == list(PROGRESS)


def test_a_long_pull_rising_attempts_and_the_undo_are_shown_while_they_happen(own_portal: Any) -> None:
    """Pull the image slowly, then let the health check fail until its time limit."""
    portal = own_portal(STACK_HEALTH_INTERVAL_SECONDS=0.2, STACK_HEALTH_TIMEOUT_SECONDS=1.5).start()
    with held(portal, "job", "container", *UNDO_GATES):
        id = portal.deploy("old-scenario")
        stream = portal.stream(id, SECONDS)
        with socket(portal, id) as page:
            next(event for event in stream if "Pulling the image" in event["data"]["message"])
            assert portal.status(id)["phase"] == "deploying"
            portal.open_gate("job")
            state = follow_attempts(stream)
            assert state["error"]["phase"] == "verifying_health"
            for gate, kind in UNDO_GATES.items():
                portal.wait_at(gate)  # the object still exists, and every client sees that it is being removed
                removing = [e for e in portal.events(id)["events"] if e["data"].get("state") == "removing"]
                assert removing[-1]["data"]["kind"] == kind
                assert portal.status(id)["status"] == "in_progress"
                wait_for_frame(page, rf"{kind}.*?removing")
                portal.open_gate(gate)
            last = [*stream][-1]
            frame = wait_for_frame(page, "data-done")
    assert last["event"] == "error"
    state = last["data"]
    assert (state["status"], state["phase"], state["progress"]) == ("failure", "rolling_back", 95)
    assert state["message"] == "Rollback completed"
    assert (state["error"]["phase"], state["error"]["code"]) == ("verifying_health", "NOTHING_LISTENS")
    assert "nothing left behind" in frame
    left = portal.dokploy()
    assert [left["projects"], left["applications"], left["domains"], left["services"]] == [[], [], [], []]


def follow_attempts(stream: Any) -> Any:
    """Read the stream until the rollback, and return its first state. The attempts before it must rise."""
    attempts: list[int] = []
    for event in stream:
        state = event["data"]
        if match := re.match(r"Attempt (\d+):", state["message"]):
            assert (state["phase"], state["status"], state["progress"]) == ("verifying_health", "in_progress", 90)
            attempts.append(int(match[1]))
        if state["phase"] == "rolling_back":
            break
    assert len(attempts) >= 3
    assert attempts == sorted(set(attempts))
    return state


@pytest.mark.parametrize("old", OLD_SERVICE, ids=["success", "failure"])
def test_clients_of_the_service_that_the_portal_replaced_still_work(portal: Portal, old: dict[str, Any]) -> None:
    """Replay what the scripts of the old service sent, and assert what they rely on."""
    portal.turn(**old["settings"])
    with held(portal, "project.all"):  # so that the stream starts with the first event
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        answer = portal.http.post("/api/deploy", content=old["body"], headers=form)
        stream = portal.stream(answer.json()["deploymentId"], SECONDS)
        received = [next(stream)]
    received += list(stream)
    assert answer.status_code == 202
    assert answer.json().items() >= old["started"].items()
    states = [event["data"] for event in received]
    phases = list(dict.fromkeys(state["phase"] for state in states))
    assert phases in (old["phases"], old["phases"][1:])
    assert any(state.items() >= old["triggered"].items() for state in states)
    assert {event["event"] for event in received[:-1]} == {"progress"}
    assert all(state["status"] == "in_progress" for state in states[:-1])
    assert received[-1]["event"] == old["last_event"]
    assert states[-1].items() >= old["last"].items()
    if "error" in old:
        assert states[-1]["error"].items() >= old["error"].items()
