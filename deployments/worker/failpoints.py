"""Dying at named points, once at each: how the fault tests kill a portal, or its workers. Does nothing unless FAULT is
set in a rehearsal.

FAULT=[stack/]phase:what:where[#n]  dies there as by kill -9, at the nth passing. A file in DATA_DIR remembers it: the
                                    next start passes. Several, with spaces between: whichever is reached.
FAULT=record:FILE                   writes down every point that is passed, a line each.
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
    """Whether nobody's work can depend on this portal: Dokploy and all who come in are on this machine, and stacks get
    names that no DNS leads to (RFC 6761)."""
    at_home = settings.DOKPLOY_URL.startswith("http://127.0.0.1:")
    among_us = set(settings.ALLOWED_HOSTS) <= set(settings.LOOPBACK_HOSTS)
    return at_home and among_us and settings.STACK_DOMAIN_SUFFIX.rpartition(".")[2] in ("test", "localhost")


def hit(stack: str, run: str, phase: str, what: str, where: str) -> None:
    """This point is passed now, in this run for this stack; may not return."""
    wanted = settings.FAULT
    if not (wanted and is_fault_test()):
        return
    point = f"{phase}:{what}:{where}"
    _passed[run, point] += 1
    if _passed[run, point] > 1:
        point += f"#{_passed[run, point]}"
    if wanted.startswith(RECORD):
        with open(wanted.removeprefix(RECORD), "a") as file:
            file.write(f"{stack}/{point}\n")
        return
    for fault in {point, f"{stack}/{point}"}.intersection(wanted.split()):
        _die(fault)


def _die(fault: str) -> None:
    try:
        marker = os.open(marker_file(fault), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:  # it has, already
        return
    os.fsync(marker)
    os.kill(os.getpid(), signal.SIGKILL)


def marker_file(fault: str) -> Path:
    """The file that says that this fault has happened."""
    return settings.DATA_DIR / f"fault-{sha256(fault.encode()).hexdigest()[:16]}"
