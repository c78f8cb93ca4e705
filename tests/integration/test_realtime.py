"""Every client receives each phase while it runs.

Each phase is held at a gate that opens only after the client has received the phase: an implementation that blocks
never gets past the first one.
"""

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from ..gates import GATES, SECONDS, held, long_poller, poller, socket, streamer, walk
from ..processes import Portal


@pytest.mark.parametrize("client", [poller, long_poller, streamer])
def test_a_client_receives_each_phase_while_it_runs(portal: Portal, client: Any) -> None:
    with held(portal, *GATES.values()):
        id = portal.deploy(f"gate-{client.__name__.replace('_', '-')}")
        walk(portal, client(portal, id))
    assert portal.finished(id)["phase"] == "completed"


def test_a_socket_receives_each_phase_while_it_runs(portal: Portal) -> None:
    titles = {
        "creating_project": "creating the project",
        "getting_environment": "finding its environment",
        "creating_application": "creating the application",
        "configuring_application": "configuring the application",
        "creating_domain": "creating the domain",
        "deploying": "deploying",
        "verifying_health": "checking that it answers",
    }
    with held(portal, *GATES.values()):
        id = portal.deploy("gate-socket")
        with socket(portal, id) as page:

            def received(phase: str) -> None:
                said = f"of 7, {titles[phase]}"
                while said not in page.recv(timeout=SECONDS):
                    pass

            walk(portal, received)
            frame = page.recv(timeout=SECONDS)
            while "data-done" not in frame:
                frame = page.recv(timeout=SECONDS)
    assert "It is live" in frame


def test_all_clients_tell_the_same_story(portal: Portal) -> None:
    with held(portal, "job"):
        id = portal.deploy("same-story")
        stream = portal.stream(id, SECONDS)
        streamed = [next(stream)]
        with socket(portal, id) as page:
            portal.open_gate("job")
            streamed += list(stream)
            frame = page.recv(timeout=SECONDS)
            while "data-done" not in frame:
                frame = page.recv(timeout=SECONDS)
    state = portal.status(id)
    events = portal.events(id)["events"]
    assert [event["seq"] for event in events] == list(range(1, state["version"] + 1))
    assert streamed[-1]["event"] == "complete"
    assert {**state, "logs": None} == {**streamed[-1]["data"], "logs": None}
    assert as_said(frame) == as_said(portal.http.get(f"/deployments/{id}/live").text)
    phases = [event["seq"] for event in events if event["kind"] == "phase"]
    ids = [int(event["id"]) for event in streamed]
    assert ids[1:] == [seq for seq in phases if seq > ids[0]]


def as_said(html: str) -> str:
    """Without how long it usually takes: that is looked up anew every ten seconds."""
    return re.sub(r'<span class="dot">·</span>usually about [^<]+', "", unescape(html))


def test_progress_never_falls_and_what_is_shown_is_what_runs(portal: Portal) -> None:
    id = portal.deploy("never-falls")
    portal.finished(id)
    events = portal.events(id)["events"]
    progress = [event["progress"] for event in events]
    assert progress == sorted(progress)
    wire = {
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
    assert {event["phase"]: event["progress"] for event in events} == wire
    order = list(dict.fromkeys(event["phase"] for event in events))
    assert order == list(wire)


def test_the_old_scenario_shows_rising_attempts_and_then_the_undo_while_it_happens(own_portal: Any) -> None:
    """A long pull, then a health check that fails until its limit."""
    portal = own_portal(STACK_HEALTH_INTERVAL_SECONDS=0.2, STACK_HEALTH_TIMEOUT_SECONDS=1.5).start()
    gates = ["job", "container", "domain.delete", "application.delete", "project.remove"]
    with held(portal, *gates):
        id = portal.deploy("old-scenario")
        stream = portal.stream(id, SECONDS)
        with socket(portal, id) as page:
            next(event for event in stream if "Pulling the image" in event["data"]["message"])
            assert portal.status(id)["phase"] == "deploying"
            portal.open_gate("job")
            attempts: list[int] = []
            for event in stream:
                state = event["data"]
                if found := re.match(r"Attempt (\d+):", state["message"]):
                    assert (state["phase"], state["status"], state["progress"]) == (
                        "verifying_health",
                        "in_progress",
                        90,
                    )
                    attempts.append(int(found[1]))
                if state["phase"] == "rolling_back":
                    break
            assert len(attempts) >= 3
            assert attempts == sorted(set(attempts))
            assert state["error"]["phase"] == "verifying_health"
            for gate, kind in [
                ("domain.delete", "domain"),
                ("application.delete", "application"),
                ("project.remove", "project"),
            ]:
                portal.wait_at(gate)  # the object is still there, and everybody sees that it is being removed
                removing = [e for e in portal.events(id)["events"] if e["data"].get("state") == "removing"]
                assert removing[-1]["data"]["kind"] == kind
                assert portal.status(id)["status"] == "in_progress"
                frame = page.recv(timeout=SECONDS)
                while not re.search(rf"{kind}.*?removing", frame, re.DOTALL):
                    frame = page.recv(timeout=SECONDS)
                portal.open_gate(gate)
            last = [*stream][-1]
            while "data-done" not in frame:
                frame = page.recv(timeout=SECONDS)
    assert last["event"] == "error"
    state = last["data"]
    assert (state["status"], state["phase"], state["progress"]) == ("failure", "rolling_back", 95)
    assert state["message"] == "Rollback completed"
    assert (state["error"]["phase"], state["error"]["code"]) == ("verifying_health", "HEALTH_NO_ANSWER")
    assert "nothing left behind" in frame
    left = portal.dokploy()
    assert [left["projects"], left["applications"], left["domains"], left["services"]] == [[], [], [], []]


STORIES = json.loads((Path(__file__).parent / "fixtures" / "old_service.json").read_text())


@pytest.mark.parametrize("story", STORIES, ids=["success", "failure"])
def test_what_the_old_service_promised_still_holds(portal: Portal, story: dict[str, Any]) -> None:
    """The old service's two tests, as a transcript: what its scripts sent, and what they count on."""
    portal.turn(**story["settings"])
    with held(portal, "project.all"):  # so that the stream is there from the beginning
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        answer = portal.http.post("/api/deploy", content=story["body"], headers=form)
        stream = portal.stream(answer.json()["deploymentId"], SECONDS)
        seen = [next(stream)]
    seen += list(stream)
    assert answer.status_code == 202
    assert answer.json().items() >= story["started"].items()
    states = [event["data"] for event in seen]
    phases = list(dict.fromkeys(state["phase"] for state in states))
    assert phases in (story["phases"], story["phases"][1:])
    assert any(state.items() >= story["triggered"].items() for state in states)
    assert {event["event"] for event in seen[:-1]} == {"progress"}
    assert all(state["status"] == "in_progress" for state in states[:-1])
    assert seen[-1]["event"] == story["last_event"]
    assert states[-1].items() >= story["last"].items()
    if "error" in story:
        assert states[-1]["error"].items() >= story["error"].items()
