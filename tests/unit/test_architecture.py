"""Which part of the app may import which. Checked in the source and in a new interpreter."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache

import pytest

from ..processes import ROOT

APP = ROOT / "deployments"
# A part may import only parts of the lines above its own.
LAYERS = (
    "engine.errors engine.validation engine.versions engine.tasks realtime.pubsub encryption worker.watchdog",
    "engine.spec engine.failures engine.dokploy",
    "engine.probe engine.records",
    "engine.reporter",
    "engine.retry engine.memory_store",
    "engine.containers engine.deploy_log",
    "engine.resources",
    "engine.deploy engine.health",
    "engine.recipe",
    "engine.orchestrator",
    "engine.conformance models",
    "background",
    "worker.failpoints worker.sweeper",
    "worker.claimed_deployment",
    "worker.outcome",
    "worker.execution",
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
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names.split()}


@cache
def modules() -> dict[str, ast.Module]:
    """Return every module of the app except migrations, by its name without `deployments.`."""
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
    """Return the full names that a module imports, modules_of functions too."""
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


def imported_modules(name: str) -> set[str]:
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


def part(name: str) -> str:
    """Return the part of the app that a module belongs to."""
    package, _, rest = name.partition(".")
    return f"{package}.{rest.partition('.')[0]}" if package in ("engine", "realtime", "worker") and rest else package


def modules_of(package: str) -> list[str]:
    return [name for name in modules() if name == package or name.startswith(f"{package}.")]


def output_of(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout


# -- imports -----------------------------------------------------------------------------------------------------------


def test_a_part_imports_only_parts_of_lower_layers() -> None:
    wrong = [
        f"{name} imports {target}"
        for name in modules()
        for target in imported_modules(name)
        if part(name) in LAYER and part(target) in LAYER and part(name) != part(target)
        if LAYER[part(target)] >= LAYER[part(name)]
    ]
    assert wrong == []


def test_every_part_has_a_layer() -> None:
    """A part that is renamed must be renamed here too, or nothing would be checked."""
    parts = {part(name) for name in modules()}
    assert set(LAYER) <= parts
    packages = {"", "engine", "realtime", "worker"}
    assert parts - packages - set(LAYER) == set()


def test_no_imports_are_circular() -> None:
    graphlib.TopologicalSorter({name: imported_modules(name) for name in modules()}).prepare()


def test_only_the_management_commands_import_the_simulator() -> None:
    importing = {
        part(name) for name in modules() if any(part(target) == "simulator" for target in imported_modules(name))
    }
    assert importing <= {"simulator", "management"}


@pytest.mark.parametrize("name", ["realtime.pubsub", "encryption"])
def test_pubsub_and_encryption_import_nothing_of_the_app(name: str) -> None:
    assert imported_modules(name) == set()


def test_the_simulator_imports_nothing_of_the_app() -> None:
    for name in modules_of("simulator"):
        assert {target for target in imported_modules(name) if part(target) != "simulator"} == set(), name


def test_the_engine_imports_nothing_else_of_the_app_and_no_framework() -> None:
    foreign = {target.partition(".")[0] for name in modules_of("engine") for target in imports(name)}
    assert foreign - sys.stdlib_module_names == {"deployments", "httpx", "websockets"}
    for name in modules_of("engine"):
        assert all(part(target).startswith("engine") for target in imported_modules(name)), name


def test_only_the_management_commands_import_the_project() -> None:
    importing = [name for name in modules() if any(t.partition(".")[0] == "deployportal" for t in imports(name))]
    assert [name for name in importing if part(name) != "management"] == []


# -- a new interpreter -------------------------------------------------------------------------------------------------


def test_the_engine_loads_neither_django_nor_channels() -> None:
    names = [f"deployments.{name}" for name in modules_of("engine")]
    assert len(names) > 10
    code = (
        f"import sys, importlib; [importlib.import_module(name) for name in {names!r}];"
        "print(sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    loaded = ast.literal_eval(output_of(code))
    assert "httpx" in loaded
    assert not {"django", "channels", "daphne", "asgiref", "deployportal", "twisted"} & set(loaded)


def test_the_simulator_loads_nothing_of_the_app() -> None:
    names = [f"deployments.{name}" for name in modules_of("simulator") if not name.endswith("__main__")]
    code = (
        f"import sys, importlib; [importlib.import_module(name) for name in {names!r}];"
        "print([name for name in sys.modules if name.startswith(('deployments.', 'django', 'deployportal'))"
        " and not name.startswith('deployments.simulator')])"
    )
    assert output_of(code) == "[]\n"


# -- the test itself ---------------------------------------------------------------------------------------------------


def test_imports_are_found() -> None:
    assert {"engine.dokploy", "engine.containers", "engine.reporter"} <= imported_modules(
        "engine.resources.application"
    )
    assert {"engine.deploy", "engine.health", "engine.resources.project"} <= imported_modules("engine.recipe")
    assert "models" in {part(target) for target in imported_modules("worker.runner")}
    assert "realtime.pubsub" in {part(target) for target in imported_modules("models.deployment")}
