"""The documents agree with the code: links, settings, endpoints, fields, kinds and codes."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from django.apps import apps

from deployments.engine import failures
from deployments.engine.recipe import TITLES
from deployments.engine.spec import Kind
from deployments.models import Deployment, Event, Refusal, Stack, wire
from deployments.urls import urlpatterns

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
CODE_BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
SETTING = re.compile(r"[A-Z][A-Z0-9_]+")
README_LINES = 120
IMAGE_BYTES = 150_000


def text(name: str) -> str:
    return (ROOT / name).read_text()


def anchors(document: Path) -> set[str]:
    """Return the anchors that a forge derives from a document's headings."""
    headings = HEADING.findall(CODE_BLOCK.sub("", document.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def settings_read() -> set[str]:
    """Return the environment variables that the settings read: capitalised first arguments of calls."""
    calls = [node for node in ast.walk(ast.parse(text("deployportal/settings.py"))) if isinstance(node, ast.Call)]
    first = [call.args[0] for call in calls if call.args and isinstance(call.func, ast.Name)]
    values = [argument.value for argument in first if isinstance(argument, ast.Constant)]
    return {value for value in values if isinstance(value, str) and SETTING.fullmatch(value)}


def endpoints() -> Iterator[str]:
    for pattern in urlpatterns:
        route = str(pattern.pattern)
        if route.startswith("api/") and "path:" not in route:
            yield "/" + re.sub(r"<\w+:(\w+)>", r"<\1>", route)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_resolve(document: Path) -> None:
    broken = []
    for link in LINK.findall(document.read_text()):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_paths_of_the_product_exist() -> None:
    """A file that a document names must not have been renamed."""
    named = re.compile(r"`((?:deployments|deployportal|deploy|tests|docs)/[\w./@-]+)`")
    missing = [
        f"{document.name}: {path}"
        for document in DOCUMENTS
        for path in named.findall(document.read_text())
        if not (ROOT / path).exists()
    ]
    assert missing == []


def test_readme_is_short_and_has_two_screenshots() -> None:
    readme = text("README.md")
    assert len(readme.splitlines()) <= README_LINES
    images = re.findall(r"!\[[^\]]+\]\((docs/images/[^)]+)\)", readme)
    assert len(images) == 2
    assert all((ROOT / image).stat().st_size < IMAGE_BYTES for image in images)


def test_operations_document_has_exactly_the_settings() -> None:
    read = settings_read()
    assert {"PORT", "DOKPLOY_API_KEY", "STACK_REGISTRIES", "PORTAL_TLS", "SECRET_KEY"} <= read
    documented = re.findall(r"^\| `([A-Z][A-Z0-9_]+)` \| ", text("docs/operations.md"), re.MULTILINE)
    assert sorted(documented) == sorted(read)


def test_api_document_has_every_endpoint() -> None:
    document = text("docs/api.md")
    found = list(endpoints())
    assert len(found) > 5
    assert [endpoint for endpoint in found if f" {endpoint}`" not in document] == []


def test_api_document_has_every_field() -> None:
    deployment = Deployment(stack=Stack(name="shop", url="https://shop.example.org"))
    event = Event(deployment=deployment, seq=1, type="phase", phase="initializing", status="in_progress", progress=0)
    document = text("docs/api.md")
    fields = [*wire.deployment_dict(deployment, "operator"), *wire.event_dict(event, "operator")]
    assert [field for field in fields if f"`{field}`" not in document] == []


def test_glossary_has_every_stored_name_that_differs_in_code() -> None:
    glossary = text("docs/glossary.md")
    for model in apps.get_app_config("deployments").get_models():
        assert model._meta.db_table == f"deployments_{model._meta.model_name}" or model._meta.db_table in glossary
        stored = [field.column for field in model._meta.concrete_fields if field.column != field.attname]
        assert [column for column in stored if f".{column}`" not in glossary] == []


def test_api_document_has_every_phase_and_event_kind() -> None:
    document = text("docs/api.md")
    assert [phase for phase in TITLES if f"| `{phase}` |" not in document] == []
    assert [kind for kind in get_args(Kind) if f"**`{kind}`**" not in document] == []


def test_api_document_has_exactly_the_codes() -> None:
    document = text("docs/api.md")
    requests, deployments = document.split("## Failure codes")
    row = re.compile(r"^\| `([A-Z][A-Z_]+)` \|", re.MULTILINE)
    assert sorted(row.findall(requests.split("## Errors of a request")[1])) == sorted(Refusal.STATUS)
    assert sorted(row.findall(deployments)) == sorted(failures.BY_CODE)


def test_version_is_stated_once() -> None:
    version = re.search(r'^version = "(.+)"$', text("pyproject.toml"), re.MULTILINE)
    assert version is not None
    assert f'"{version[1]}"' not in text("deployportal/settings.py")
