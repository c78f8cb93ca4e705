"""`make bench`, or `make bench ARGS="frames post"`: how fast the portal is, each figure beside a baseline."""

import argparse
import importlib
import os
import signal
import sys
import time
from types import FrameType

from rich.console import Console

from .figures import Figure, show

PARTS = ("report", "frames", "burst", "post", "overhead", "hundred", "start")
LIMIT_SECONDS = 240
WIDTH = 150  # where there is no terminal


def main() -> int:
    parser = argparse.ArgumentParser("python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"one or more of: {', '.join(PARTS)}")
    names = parser.parse_args().names or PARTS
    if unknown := set(names) - set(PARTS):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGALRM, end)
    signal.alarm(LIMIT_SECONDS)
    console, results, failed = Console(width=None if sys.stdout.isatty() else WIDTH), {}, False
    try:
        for name in names:
            began = time.monotonic()
            try:
                with console.status(f"{name} …"):
                    results[name] = measure(name)
            except Exception:
                console.print_exception()
                results[name] = [Figure("could not be measured; see above", None, met=False)]
                failed = True
            console.print(f"{name}: {time.monotonic() - began:.0f} s", highlight=False)
    finally:
        show(console, results)
        load = f"Load of this machine in the last five minutes {os.getloadavg()[1]:.1f}, cores {os.cpu_count()}"
        console.print(load, highlight=False)
    return int(failed)


def measure(name: str) -> list[Figure]:
    figures: list[Figure] = importlib.import_module(f"bench.{name}").measure()
    return figures


def end(number: int, frame: FrameType | None) -> None:
    """However it ends, the processes that were started end with it."""
    raise SystemExit("The bench was stopped." if number == signal.SIGTERM else "The bench took too long.")


if __name__ == "__main__":
    sys.exit(main())
