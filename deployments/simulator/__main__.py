"""Start the simulator: `python -m deployments.simulator --api HOST:PORT --router HOST:PORT --data DIR`."""

import argparse
import asyncio
import os
import signal
import sqlite3
import sys
import threading
from pathlib import Path

from .api import Api
from .control import ControlApi
from .http_server import Server
from .router import Router
from .server import DokployServer
from .settings import Settings
from .store import Store

DEFAULTS = Settings()


class CannotStart(Exception):
    """The reason why the simulator cannot start, as a message for the user."""


def main() -> None:
    options = parser().parse_args()
    try:
        asyncio.run(serve(options))
    except CannotStart as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m deployments.simulator", description=__doc__)
    parser.add_argument("--api", type=address, default=("127.0.0.1", 3001), metavar="HOST:PORT")
    parser.add_argument("--router", type=address, default=("127.0.0.1", 3002), metavar="HOST:PORT")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="the directory of the simulator's database"
    )
    for name in ("pull", "start", "latency", "monitor"):
        parser.add_argument(f"--{name}", type=float, default=getattr(DEFAULTS, name), metavar="SECONDS")
    parser.add_argument(
        "--until-stdin-closes",
        action="store_true",
        help="end when standard input closes, for example because the parent process ended",
    )
    return parser


def address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


async def serve(options: argparse.Namespace) -> None:
    """Serve the API and the router until the process receives a signal to end. Raises CannotStart."""
    dokploy = create_server(options)
    control_api = ControlApi(os.environ.get("SIMULATOR_SWITCH_KEY", ""), dokploy)
    api = Server(Api(dokploy, control_api).answer)
    router = Server(Router(dokploy.store, dokploy.engine).answer)
    end = end_event(options.until_stdin_closes)
    dokploy.start()
    try:
        ports = [await listen(api, *options.api), await listen(router, *options.router)]
        print("ready", *ports, flush=True)
        await end.wait()
    finally:
        await api.close()
        await router.close()
        await dokploy.close()


def create_server(options: argparse.Namespace) -> DokployServer:
    key = os.environ.get("SIMULATOR_API_KEY", "")
    if not key:
        raise CannotStart("Set SIMULATOR_API_KEY to the API key that the simulator accepts.")
    try:
        store = Store(options.data)
    except (OSError, sqlite3.Error) as error:
        raise CannotStart(f"The data directory {options.data} cannot be used: {error}.") from error
    settings = Settings(pull=options.pull, start=options.start, latency=options.latency, monitor=options.monitor)
    return DokployServer(store, settings, key)


async def listen(server: Server, host: str, port: int) -> int:
    try:
        return await server.listen(host, port)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CannotStart(f"The simulator cannot listen on {host}:{port}: {reason}.") from error


def end_event(until_stdin_closes: bool) -> asyncio.Event:
    """Return an event that is set by SIGTERM, by SIGINT and, if requested, by the end of standard input."""
    loop, end = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end.set)

    def watch() -> None:
        # os.read instead of sys.stdin, which would hold its lock when the interpreter ends.
        while os.read(0, 4096):
            pass
        loop.call_soon_threadsafe(end.set)

    if until_stdin_closes:
        threading.Thread(target=watch, daemon=True).start()
    return end


if __name__ == "__main__":
    main()
