"""Node's raw push (bench/push.js): a server that writes a prepared frame to each of its WebSockets."""

import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import httpx

SCRIPT = Path(__file__).with_name("push.js")


def find_node() -> str | None:
    """Return the path of Node: the system's, else the one inside playwright's wheel, else None."""
    if found := shutil.which("node"):
        return found
    spec = find_spec("playwright")
    inside = Path(spec.origin).parent / "driver" / "node" if spec and spec.origin else None
    return str(inside) if inside and inside.exists() else None


class Push:
    """The Node process. It ends when its standard input is closed, so it never outlives the bench."""

    def __init__(self, node: str) -> None:
        self.process = subprocess.Popen([node, str(SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self._version = 0

    def change(self, size: int) -> int:
        """Let Node push a text of this many bytes to all sockets after it has answered; return the text's version."""
        self._version += 1
        url = f"http://127.0.0.1:{self.port}/{self._version}/{size}"
        httpx.post(url, trust_env=False).raise_for_status()
        return self._version

    def pushed_at(self) -> int:
        """Return when the last push began, in nanoseconds since 1970."""
        answer = httpx.get(f"http://127.0.0.1:{self.port}/", trust_env=False).raise_for_status()
        return round(float(answer.text) * 1e6)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(10)
        finally:
            self.process.kill()
            self.process.stdout.close()
