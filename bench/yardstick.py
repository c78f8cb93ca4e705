"""The fixed baseline for deployments: the calls to Dokploy that each one requires, made by clients of known cost.

It does not depend on how many calls the portal makes, so a ratio to it gets better when the portal saves calls.
"""

import time
from pathlib import Path
from statistics import median

import httpx

from .load import Load, request
from .portals import Server

NEEDED_CALLS = 8  # seven changes (project, application, three settings, domain, deploy) and one read
QUERY = "/api/deployment.queueList"
ROUNDS = 5


def call_milliseconds(server: Server) -> float:
    """Return the milliseconds of one call to the simulator by a client with negligible cost."""
    asked = request(server.port + 1, "GET", QUERY, x_api_key=_key(server))
    with Load(server.port + 1, 1) as load:
        return median(load.times([asked] * 20, 200))


def httpx_cpu_milliseconds(server: Server) -> float:
    """Return the CPU milliseconds that a stock httpx client needs for the required calls, one after the other."""
    took = []
    url = f"http://127.0.0.1:{server.port + 1}"
    with httpx.Client(base_url=url, headers={"x-api-key": _key(server)}, trust_env=False) as client:
        for _ in range(ROUNDS):
            began = time.process_time()
            for _ in range(NEEDED_CALLS):
                client.get(QUERY).raise_for_status()
            took.append((time.process_time() - began) * 1000)
    return median(took)


def _key(server: Server) -> str:
    return Path(server.data, "simulator-key").read_text().strip()
