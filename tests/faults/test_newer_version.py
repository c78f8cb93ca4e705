"""A newer version starts during a deployment: it does not know the current phase, and its template has another image.

The deployment completes with the spec that it began with.
"""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..gates import held, socket
from ..processes import IMAGE, ROOT, until
from .assertions import (
    Figures,
    OneMachinePortal,
    ScaledOutPortal,
    assert_objects,
    assert_one_of_each,
    assert_same_everywhere,
)

OLD, NEW = "deploying", "rolling_out"  # the two versions' names of one phase
NEWER_IMAGE = f"{IMAGE}.newer"


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    """Create a checkout of the newer version."""
    tree = tmp_path / "newer"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".*", "__pycache__", "var", "tests"))
    recipe = tree / "deployments" / "engine" / "recipe.py"
    text = recipe.read_text()
    assert f'"{OLD}"' in text
    recipe.write_text(text.replace(f'"{OLD}"', f'"{NEW}"'))
    return tree


@pytest.fixture
def portal(tmp_path: Path) -> Iterator[OneMachinePortal]:
    portal = OneMachinePortal(tmp_path / "portal", STACK_IMAGE=IMAGE).start()
    yield portal
    portal.close()


def images(there: Any, name: str) -> set[str]:
    """Return the images that Dokploy has configured and that it runs for this stack."""
    application = next(row for row in there["applications"] if row["name"] == name)
    service = next(row for row in there["services"] if row["name"] == application["appName"])
    return {application["dockerImage"], service["image"]}


def is_live(portal: OneMachinePortal, name: str, image: str, figures: Figures) -> dict[str, Any]:
    deployment = portal.wait_until_ended(name)
    assert deployment["phase"] == "completed", deployment["message"]
    assert_same_everywhere(portal, deployment, figures)
    assert_objects(portal, [name], 1, figures)
    assert images(portal.dokploy(), name) == {image}
    figures.ended += 1
    return deployment


def test_a_newer_version_on_one_machine_completes_a_deployment_of_the_older(
    portal: OneMachinePortal, newer: Path, figures: Figures
) -> None:
    with held(portal, "job"):
        portal.request("midway")
        portal.wait_at("job")
        assert portal.stop(signal.SIGTERM) == 0
    until(portal.ports_are_free, 10)
    assert portal.newest_deployment("midway")["phase"] == OLD
    portal.root, portal.env["STACK_IMAGE"] = newer, NEWER_IMAGE
    portal.start()
    deployment = is_live(portal, "midway", IMAGE, figures)
    phases = portal.rows("SELECT DISTINCT phase FROM deployments_event WHERE deployment_id = ?", deployment["id"])
    assert {row["phase"] for row in phases} >= {OLD, NEW}
    portal.request("after")
    is_live(portal, "after", NEWER_IMAGE, figures)


def test_a_newer_worker_completes_a_deployment_of_the_older_and_older_pages_show_it(
    scaled_out: ScaledOutPortal, newer: Path, figures: Figures
) -> None:
    older = scaled_out.work()
    with held(scaled_out, "job"):
        id = scaled_out.deploy("midway")
        scaled_out.wait_at("job")
        older.terminate()
        assert older.wait(15) == 0
        assert scaled_out.status(id)["phase"] == OLD
        scaled_out.root, scaled_out.env["STACK_IMAGE"] = newer, NEWER_IMAGE
        scaled_out.setup()
        scaled_out.work()
        until(lambda: scaled_out.status(id)["phase"] == NEW, 20)
        stream = scaled_out.stream(id)
        assert next(stream)["data"]["phase"] == NEW
        assert scaled_out.http.get(f"/deployments/{id}").status_code == 200
        with socket(scaled_out, id) as page:
            scaled_out.open_gate("job")
            while "data-done" not in (frame := page.recv(timeout=20)):
                pass
    assert "The stack is live" in frame
    assert [*stream][-1]["data"]["phase"] == "completed"
    assert scaled_out.status(id)["phase"] == "completed"
    assert_one_of_each(scaled_out, id, figures)
    there = scaled_out.dokploy()
    assert there["calls"]["application.deploy"] == 1
    assert images(there, "midway") == {IMAGE}
    assert scaled_out.finished(scaled_out.deploy("after"))["phase"] == "completed"
    assert images(scaled_out.dokploy(), "after") == {NEWER_IMAGE}
    figures.ended += 1
