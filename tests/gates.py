"""Hold a deployment in any phase: the gate of a phase blocks its first call to Dokploy until a test opens it."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
from websockets.sync.client import connect

from .processes import Portal, until

# The gate of each phase: the first call of the phase, the Dokploy deployment ("job"), or the container.
GATES = {
    "creating_project": "project.all",
    "getting_environment": "environment.byProjectId",
    "creating_application": "application.create",
    "configuring_application": "application.saveDockerProvider",
    "creating_domain": "domain.create",
    "deploying": "job",
    "verifying_health": "container",
}
SECONDS = 20  # a generous limit for every wait


@contextmanager
def held(portal: Portal, *gates: str) -> Iterator[None]:
    """Close the gates, and open them when the block ends. The gates of a killed simulator are open already."""
    for gate in gates:
        portal.close_gate(gate)
    try:
        yield
    finally:
        with suppress(httpx.TransportError):
            for gate in gates:
                portal.open_gate(gate)


def walk(portal: Portal, receive: Callable[[str], Any]) -> None:
    """Open the gate of each phase only after the client has received that phase."""
    for phase, gate in GATES.items():
        receive(phase)
        portal.open_gate(gate)


def poller(portal: Portal, id: str) -> Callable[[str], Any]:
    """Return a function that polls the status until it shows a phase."""
    return lambda phase: until(lambda: portal.status(id)["phase"] == phase, SECONDS)


def long_poller(portal: Portal, id: str) -> Callable[[str], Any]:
    """Return a function that long-polls the events until one is of a phase."""
    last_seq = 0

    def receive(phase: str) -> None:
        nonlocal last_seq
        while True:
            answer = portal.events(id, after=last_seq, wait=SECONDS)
            assert answer["events"], f"no event arrived while waiting for {phase}"
            for event in answer["events"]:
                last_seq = event["seq"]
                if event["phase"] == phase:
                    return

    return receive


def streamer(portal: Portal, id: str) -> Callable[[str], Any]:
    """Return a function that reads the event stream until an event is of a phase."""
    stream = portal.stream(id, SECONDS)
    return lambda phase: next(event for event in stream if event["data"]["phase"] == phase)


def socket(portal: Portal, id: str) -> Any:
    """Open the WebSocket of a deployment's page, as the browser does."""
    return connect(f"{portal.url.replace('http', 'ws')}/ws/deployments/{id}", origin=portal.url)


def wait_for_frame(page: Any, text: str) -> str:
    """Receive frames from a page's socket until one matches a regular expression, and return it."""
    pattern, deadline = re.compile(text, re.DOTALL), time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        frame = page.recv(timeout=SECONDS)
        if pattern.search(frame):
            return str(frame)
    raise AssertionError(f"no frame matched {text}")
