"""Measure the portal's speed: `make bench`, `make bench ARGS="frames requests"`, `make bench ARGS=--short`.

Each figure stands beside a baseline that was measured in the same run. Only these ratios can be compared between
machines. The command fails only if a part crashes or measures nothing, never because a goal is not met.
"""

import argparse
import importlib
import os
import signal
import sys
import time
from types import FrameType

from rich.console import Console

from .figures import Figure, show
from .portals import Servers

PARTS = ("report", "growth", "start", "overhead", "hundred", "frames", "burst", "requests")
LIMIT_SECONDS, SHORT_LIMIT_SECONDS = 900, 180
WIDTH = 150  # columns of the table if the output is no terminal


def main() -> int:
    """Run the parts, print their figures, and return the exit status."""
    parser = argparse.ArgumentParser("python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="part", help=f"one or more of: {', '.join(PARTS)}")
    parser.add_argument("--short", action="store_true", help="measure every part at a small size, in under a minute")
    options = parser.parse_args()
    if unknown := set(options.names) - set(PARTS):
        parser.error(f"unknown part: {', '.join(sorted(unknown))}. The parts are {', '.join(PARTS)}.")
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGALRM, end)
    signal.alarm(SHORT_LIMIT_SECONDS if options.short else LIMIT_SECONDS)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    results: dict[str, list[Figure]] = {}
    failed = []
    try:
        with Servers() as servers:
            for name in options.names or PARTS:
                began = time.monotonic()
                try:
                    results[name] = measure(name, servers, short=options.short)
                except Exception:
                    console.print_exception()
                    results[name] = [Figure("could not be measured; see the error above", None)]
                if all(figure.value is None for figure in results[name]):
                    failed.append(name)
                console.print(f"{name}: {time.monotonic() - began:.0f} s", highlight=False)
    finally:
        show(console, results, goals=not options.short)
        load = f"Load of this machine in the last five minutes: {os.getloadavg()[1]:.1f}. Cores: {os.cpu_count()}."
        console.print(load, highlight=False)
    if failed:
        console.print(f"Not measured: {', '.join(failed)}.", highlight=False)
    return 1 if failed else 0


def measure(name: str, servers: Servers, *, short: bool) -> list[Figure]:
    """Run the part with this name and return its figures."""
    figures: list[Figure] = importlib.import_module(f"bench.{name}").measure(servers, short=short)
    return figures


def end(number: int, frame: FrameType | None) -> None:
    """Handle SIGTERM and SIGALRM. Raises SystemExit, so that every started process ends too."""
    raise SystemExit("The bench was stopped." if number == signal.SIGTERM else "The bench took too long.")


if __name__ == "__main__":
    sys.exit(main())
