"""Named points at which fault tests kill the process. They do nothing unless FAULT is set in a fault test.

FAULT=[stack/]phase:name:position[#n]  kill the process there, when the point is passed the nth time. A marker file in
                                       DATA_DIR makes each point kill only once. Separate several points by spaces.
FAULT=record:FILE                      append every point that is passed to FILE, one per line.
"""

import os
import signal
from collections import Counter
from hashlib import sha256
from pathlib import Path

from django.conf import settings

RECORD = "record:"
BEFORE_CALL, ANSWERED = "before-call", "answered"  # around each call that changes something at Dokploy
BEFORE_COMMIT, AFTER_COMMIT = "before-commit", "after-commit"  # around each report
_passed: Counter[tuple[str, str]] = Counter()


def is_fault_test() -> bool:
    """Return whether this portal can be killed without harm to a user.

    True when Dokploy and all clients are on this machine, and the stacks' hosts cannot be public (RFC 6761).
    """
    own_dokploy = settings.DOKPLOY_URL.startswith("http://127.0.0.1:")
    own_clients = set(settings.ALLOWED_HOSTS) <= set(settings.LOOPBACK_HOSTS)
    return own_dokploy and own_clients and settings.STACK_DOMAIN_SUFFIX.rpartition(".")[2] in ("test", "localhost")


def hit(stack: str, deployment: str, phase: str, name: str, position: str) -> None:
    """Pass the failpoint `phase:name:position`. Kill the process or record the point if FAULT asks for it."""
    wanted = settings.FAULT
    if not (wanted and is_fault_test()):
        return
    point = f"{phase}:{name}:{position}"
    _passed[deployment, point] += 1
    if _passed[deployment, point] > 1:
        point += f"#{_passed[deployment, point]}"
    if wanted.startswith(RECORD):
        with open(wanted.removeprefix(RECORD), "a") as file:
            file.write(f"{stack}/{point}\n")
        return
    for fault in {point, f"{stack}/{point}"}.intersection(wanted.split()):
        _die(fault)


def _die(fault: str) -> None:
    try:
        marker = os.open(marker_file(fault), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:  # this point has killed before
        return
    os.fsync(marker)
    os.kill(os.getpid(), signal.SIGKILL)


def marker_file(fault: str) -> Path:
    """Return the path of the file that records that this point has killed."""
    return settings.DATA_DIR / f"fault-{sha256(fault.encode()).hexdigest()[:16]}"
