"""The arrows of the house: who may know whom. Checked in the source, and in a fresh interpreter."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache

import pytest

from ..processes import ROOT

APP = ROOT / "deployments"
# An arrow may only point left, from a line to one above it.
FLOORS = (
    "engine.errors engine.validation engine.versions realtime.pubsub encryption worker.watchdog",
    "engine.spec engine.failures engine.dokploy",
    "engine.probe",
    "engine.reporter",
    "engine.containers engine.deploy_log",
    "engine.resources",
    "engine.deploy engine.health",
    "engine.recipe",
    "engine.orchestrator",
    "engine.conformance models",
    "worker.failpoints worker.sweeper",
    "worker.claimed_deployment",
    "worker.outcome",
    "forms admin worker.runner realtime.deployment_texts realtime.durations identity name_availability system_checks",
    "realtime.deployment_page realtime.watcher dokploy_checks apps",
    "realtime.stack_list",
    "realtime.topics",
    "realtime.hub",
    "terminal consumers views sse",
    "api",
    "urls",
    "management simulator",
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names.split()}


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of the app by its name without `deployments.`, migrations apart."""
    found = {}
    for path in sorted(APP.rglob("*.py")):
        parts = path.relative_to(APP).with_suffix("").parts
        if parts[0] != "migrations":
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse(path.read_text(), str(path))
    return found


def _runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes except those under `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield child
            yield from _runtime_nodes(child)


def imports(name: str) -> set[str]:
    """Return what a module imports, inside functions too, by full names."""
    is_package = (APP / name.replace(".", "/")).is_dir() if name else True
    package = ["deployments", *name.split(".")] if name else ["deployments"]
    package = package if is_package else package[:-1]
    found = set()
    for node in _runtime_nodes(modules()[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{source}.{alias.name}" for alias in node.names}
    return found


def ours(name: str) -> set[str]:
    """Return the modules of the app that a module imports."""
    known = modules()
    found = set()
    for target in imports(name):
        if target.startswith("deployments."):
            short = target.removeprefix("deployments.")
            while short not in known and short:
                short = short.rpartition(".")[0]
            found.add(short)
    return found - {"", name}


def room(name: str) -> str:
    """Return the part of the picture that a module belongs to."""
    package, _, rest = name.partition(".")
    return f"{package}.{rest.partition('.')[0]}" if package in ("engine", "realtime", "worker") and rest else package


def inside(package: str) -> list[str]:
    return [name for name in modules() if name == package or name.startswith(f"{package}.")]


def fresh(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout


# -- arrows ------------------------------------------------------------------------------------------------------------


def test_every_arrow_points_left() -> None:
    wrong = [
        f"{name} imports {target}"
        for name in modules()
        for target in ours(name)
        if room(name) in FLOOR and room(target) in FLOOR and room(name) != room(target)
        if FLOOR[room(target)] >= FLOOR[room(name)]
    ]
    assert wrong == []


def test_the_picture_knows_the_rooms_that_matter() -> None:
    """A room that is renamed must be renamed here too, or nothing would be checked."""
    rooms = {room(name) for name in modules()}
    assert set(FLOOR) <= rooms
    packages = {"", "engine", "realtime", "worker"}
    assert rooms - packages - set(FLOOR) == set()


def test_no_module_imports_itself_by_a_detour() -> None:
    graphlib.TopologicalSorter({name: ours(name) for name in modules()}).prepare()


def test_nothing_but_who_starts_it_knows_the_simulator() -> None:
    knowing = {room(name) for name in modules() if any(room(target) == "simulator" for target in ours(name))}
    assert knowing <= {"simulator", "management"}


@pytest.mark.parametrize("name", ["realtime.pubsub", "encryption"])
def test_the_channel_layers_module_and_the_vault_import_nothing_of_ours(name: str) -> None:
    assert ours(name) == set()


def test_the_simulator_imports_nothing_of_ours() -> None:
    for name in inside("simulator"):
        assert {target for target in ours(name) if room(target) != "simulator"} == set(), name


def test_the_engine_imports_nothing_of_ours_and_no_framework() -> None:
    foreign = {target.partition(".")[0] for name in inside("engine") for target in imports(name)}
    assert foreign - sys.stdlib_module_names == {"deployments", "httpx", "websockets"}
    for name in inside("engine"):
        assert all(room(target).startswith("engine") for target in ours(name)), name


def test_the_project_is_known_to_nobody_in_the_app() -> None:
    knowing = [name for name in modules() if any(t.partition(".")[0] == "deployportal" for t in imports(name))]
    assert [name for name in knowing if room(name) != "management"] == []


# -- a fresh interpreter -----------------------------------------------------------------------------------------------


def test_the_whole_engine_runs_without_django_and_channels() -> None:
    names = [f"deployments.{name}" for name in inside("engine")]
    assert len(names) > 10
    code = (
        f"import sys, importlib; [importlib.import_module(name) for name in {names!r}];"
        "print(sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    loaded = ast.literal_eval(fresh(code))
    assert "httpx" in loaded
    assert not {"django", "channels", "daphne", "asgiref", "deployportal", "twisted"} & set(loaded)


def test_the_simulator_loads_nothing_of_ours() -> None:
    names = [f"deployments.{name}" for name in inside("simulator") if not name.endswith("__main__")]
    code = (
        f"import sys, importlib; [importlib.import_module(name) for name in {names!r}];"
        "print([name for name in sys.modules if name.startswith(('deployments.', 'django', 'deployportal'))"
        " and not name.startswith('deployments.simulator')])"
    )
    assert fresh(code) == "[]\n"


# -- the test itself ---------------------------------------------------------------------------------------------------


def test_the_arrows_are_seen_at_all() -> None:
    assert {"engine.dokploy", "engine.containers", "engine.reporter"} <= ours("engine.resources.application")
    assert {"engine.deploy", "engine.health", "engine.resources.project"} <= ours("engine.recipe")
    assert "models" in {room(target) for target in ours("worker.runner")}
    assert "realtime.pubsub" in {room(target) for target in ours("models.deployment")}
