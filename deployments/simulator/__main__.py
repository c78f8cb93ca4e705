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
from .dokploy import PROCEDURES, Dokploy, state
from .engine import Engine
from .http import Server
from .keys import Keys
from .router import Router
from .store import Store
from .switches import Settings, Switchboard

DEFAULTS = Settings()


class CannotStart(Exception):
    """Why, in a sentence for the person at the terminal."""


def main() -> None:
    options = arguments().parse_args()
    try:
        asyncio.run(run(options))
    except CannotStart as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m deployments.simulator", description=__doc__)
    parser.add_argument("--api", type=address, default=("127.0.0.1", 3001), metavar="HOST:PORT")
    parser.add_argument("--router", type=address, default=("127.0.0.1", 3002), metavar="HOST:PORT")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="where the rows are kept")
    for name in ("pull", "start", "latency"):
        parser.add_argument(f"--{name}", type=float, default=getattr(DEFAULTS, name), metavar="SECONDS")
    parser.add_argument("--until-stdin-closes", action="store_true", help="end when the parent has gone")
    return parser


def address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


async def run(options: argparse.Namespace) -> None:
    key = os.environ.get("SIMULATOR_API_KEY", "")
    if not key:
        raise CannotStart("Set SIMULATOR_API_KEY to the API key that the simulator shall accept.")
    try:
        store = Store(options.data)
    except (OSError, sqlite3.Error) as error:
        raise CannotStart(f"The data directory {options.data} cannot be used: {error}.") from error
    settings = Settings(pull=options.pull, start=options.start, latency=options.latency)
    switches = Switchboard(os.environ.get("SIMULATOR_SWITCH_KEY", ""), PROCEDURES, settings)
    engine = Engine(store, settings, switches.gates)
    keys = Keys(key, settings)
    api = Api(Dokploy(store, engine, settings), keys, switches)
    servers = Server(api.answer), Server(Router(store, engine).answer)

    async def restart(seconds: float) -> None:
        await engine.stop()
        engine.start()
        api.go_down(seconds)

    switches.look = lambda: state(store, engine)
    switches.restart = restart
    switches.settings_turned = keys.owner.reset
    switches.add_key, switches.clear_keys = keys.add, keys.clear
    switches.remove_service = store.services.drop
    ends = end_of_run(options.until_stdin_closes)
    engine.wake()
    engine.start()
    try:
        ports = [
            await listen(server, *where) for server, where in zip(servers, (options.api, options.router), strict=True)
        ]
        print("ready", *ports, flush=True)
        await ends.wait()
    finally:
        for server in servers:
            await server.close()
        await engine.close()
        store.close()


async def listen(server: Server, host: str, port: int) -> int:
    try:
        return await server.listen(host, port)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CannotStart(f"The simulator cannot listen on {host}:{port}: {reason}.") from error


def end_of_run(until_stdin_closes: bool) -> asyncio.Event:
    """Set by SIGTERM, SIGINT or, if asked for, by the end of standard input."""
    loop, ends = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ends.set)

    def watch() -> None:
        # os.read and not sys.stdin: its lock would be held when the interpreter ends.
        while os.read(0, 4096):
            pass
        loop.call_soon_threadsafe(ends.set)

    if until_stdin_closes:
        threading.Thread(target=watch, daemon=True).start()
    return ends


if __name__ == "__main__":
    main()
