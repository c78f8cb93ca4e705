"""Renews the pictures in docs/images, with Chromium and a demo portal in a temporary data directory."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
PORT = int(os.environ.get("PORT", "3000"))
URL = f"http://localhost:{PORT}/"
SIZE = {"width": 820, "height": 1100}
MAX_BYTES = 150_000
STARTING_SECONDS = 60
PULL_SECONDS = 20  # long enough to take a picture in the middle of it


def main() -> None:
    """Take all pictures, and exit with an error if one is too large for the repository."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with demo(), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport=SIZE, color_scheme="light", reduced_motion="reduce")
        deploy(page, "oops", "broken")
        page.locator("article[data-done]").wait_for(timeout=60_000)
        page.reload()
        take(page, "failed")
        deploy(page, "shop", "web-page")
        page.get_by_text("Pull complete").first.wait_for(timeout=60_000)
        take(page, "deploying")
        browser.close()
    if large := [path.name for path in IMAGES.glob("*.png") if path.stat().st_size > MAX_BYTES]:
        sys.exit(f"Larger than {MAX_BYTES} bytes: {', '.join(large)}")


def deploy(page: Any, name: str, template: str) -> None:
    """Deploy a stack with the form on the first page, and wait for the deployment's page."""
    page.goto(URL)
    page.locator("input[name=name]").fill(name)
    page.locator(f"input[name=template][value={template}]").check(force=True)
    page.locator("form#deploy button").last.click()
    page.wait_for_url("**/deployments/dep_*")


def take(page: Any, name: str) -> None:
    """Take a picture of what the window shows."""
    page.screenshot(path=IMAGES / f"{name}.png")
    print(f"docs/images/{name}.png")


@contextmanager
def demo() -> Iterator[None]:
    """Run `manage.py serve` as a demo with an empty data directory, until the block ends."""
    with tempfile.TemporaryDirectory(prefix="deploy-portal-screenshots-") as data:
        unset = ("DATABASE_URL", "REDIS_URL", "DOKPLOY_URL", "DOKPLOY_API_KEY", "FAULT")
        env = {name: value for name, value in os.environ.items() if name not in unset and not name.startswith("STACK_")}
        env |= {"DATA_DIR": data, "PORT": str(PORT), "SIMULATOR_PULL_SECONDS": str(PULL_SECONDS)}
        command = [sys.executable, "manage.py", "serve", "--no-sample"]
        portal = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL)
        try:
            wait_for_answer(portal)
            yield
        finally:
            portal.send_signal(signal.SIGTERM)
            portal.wait(30)


def wait_for_answer(portal: "subprocess.Popen[bytes]") -> None:
    """Wait until the portal answers. Exit with an error if it ends, or takes longer than STARTING_SECONDS."""
    deadline = time.monotonic() + STARTING_SECONDS
    while time.monotonic() < deadline and portal.poll() is None:
        try:
            with urllib.request.urlopen(URL, timeout=2):
                return
        except urllib.error.URLError:
            time.sleep(0.2)
    sys.exit("The portal did not start; its error is above.")


if __name__ == "__main__":
    main()
