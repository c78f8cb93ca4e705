"""The templates are well-formed, obey the Content-Security-Policy, and show nothing personal in shared frames."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.template.loader import get_template
from django.test import Client

from deployments.engine.spec import Progress
from deployments.models import ApiToken, Deployment, DeploymentRequest, Template

ROOT = Path(__file__).resolve().parent.parent.parent / "templates"
TEMPLATES = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.html"))
VOID = set("area base br col embed hr img input link meta source track wbr".split())


class MarkupChecker(HTMLParser):
    """Collects tags that are unclosed or closed in the wrong order, inline code, and ids."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.errors: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if attributes.get("id"):
            self.ids.append(str(attributes["id"]))
        if "style" in attributes or any(name.startswith("on") for name in attributes):
            self.errors.append(f"<{tag}> has an inline style or event handler")
        if tag == "script" and not attributes.get("src"):
            self.errors.append("an inline script")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.errors.append(f"</{tag}> at {self.getpos()}")


def assert_well_formed(html: str) -> None:
    checker = MarkupChecker()
    checker.feed(html)
    assert checker.errors == []
    assert checker.open == []
    assert len(checker.ids) == len(set(checker.ids)), "an id is used twice"


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_compiles_and_marks_nothing_as_safe(name: str) -> None:
    get_template(name)
    source = (ROOT / name).read_text()
    assert not re.search(r"\|\s*safe\b|autoescape off|hx-on|javascript:", source)


def with_includes(name: str) -> set[str]:
    """Return the names of a template and of all templates that it includes."""
    source = (ROOT / name).read_text()
    return {name}.union(*(with_includes(included) for included in re.findall(r'{% include "([^"]+)"', source)))


@pytest.mark.parametrize("name", sorted(with_includes("_deployment.html") | with_includes("_stacks.html")))
def test_a_frame_for_all_watchers_contains_nothing_personal(name: str) -> None:
    source = (ROOT / name).read_text()
    assert not re.search(r"csrf|request\.|\buser\b|<form", source)


REPORTS = {
    "queued": [],
    "running": [Progress("phase", "creating_project", "Creating", progress=10, data={"step": "begins"})],
    "checking": [
        Progress("phase", "verifying_health", "Checking", progress=90, data={"step": "begins"}),
        Progress("log", "deploying", "<b>", data={"source": "d", "first": 1, "lines": ["<b>line</b>", "x" * 400]}),
        Progress("rung", "verifying_health", "", data={"rungs": [{"name": "DNS", "ok": True, "text": "1.1.1.1"}]}),
    ],
    "undoing": [
        Progress(
            "receipt", "creating_project", "", data={"state": "made", "kind": "project", "mark": "m", "id": "p<1>"}
        ),
        Progress(
            "phase",
            "rolling_back",
            "Undoing",
            progress=95,
            error={
                "phase": "deploying",
                "code": "IMAGE_NOT_FOUND",
                "message": "<i>no</i>",
                "evidence": "<script>alert(1)</script>",
                "retryable": True,
            },
        ),
    ],
    "live": [Progress("phase", "completed", "Live", "success", progress=100)],
}


@pytest.mark.django_db
@pytest.mark.parametrize("state", REPORTS)
def test_every_page_is_well_formed(client: Client, state: str) -> None:
    Template.follow_settings()
    user: Any = get_user_model().objects.create_user("anna")
    template = Template.objects.get(slug="web-page")
    deployment = DeploymentRequest(user, template, {"GREETING": "<hi>"}, "form").deploy("shop")
    if REPORTS[state]:
        claimed = Deployment.claim("worker", excluding=[])
        assert claimed is not None
        for report in REPORTS[state]:
            claimed.record(report)
    ApiToken.issue(user, "<label>")
    client.force_login(user)
    for address in [
        "/",
        "/?name=shop",
        "/tokens",
        "/help/",
        "/help/IMAGE_NOT_FOUND",
        f"/deployments/{deployment.pk}",
        "/none",
    ]:
        html = client.get(address).content.decode()
        assert_well_formed(html)
        assert "<script>alert" not in html
        assert "<b>line" not in html
    assert_well_formed(client.post("/", {"name": "No Good", "template": "web-page"}).content.decode())
    client.logout()
    assert_well_formed(client.get("/login").content.decode())
