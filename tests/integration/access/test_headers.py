"""Security headers, cookies, error pages and redirects."""

import re

import httpx
import pytest
from django.test import Client

from deployments.models import Deployment, Stack

from ...processes import Portal
from ...users import PASSWORD, People, end, token
from .support import API, CANARY, INLINE, PAGES, signed_in


def test_every_response_has_the_security_headers(shared_portal: Portal, owner: httpx.Client) -> None:
    answers = [
        owner.get("/"),
        owner.get("/help/"),
        owner.get("/login"),
        owner.get("/admin/login/"),
        owner.get("/unheard-of"),
        owner.get("/api/deployments/unheard-of"),
        owner.post("/tokens"),
        owner.get("/", headers={"Host": "evil.example"}),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 404, 404, 403, 400]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert "no-store" in answer.headers["cache-control"] or "no-cache" in answer.headers["cache-control"]
    for answer in (owner.get("/static/portal.css"), owner.post("/api/deploy", content=b" " * 70_000)):
        assert answer.headers["x-content-type-options"] == "nosniff"
    server = owner.get("/").headers.get("server", "").lower()
    assert not re.search(r"\d", server), "the Server header must not contain a version"


def test_cookies_are_limited_to_this_portal(client: Client, people: People) -> None:
    client.post("/login", {"username": "owner", "password": PASSWORD})
    cookie = client.cookies["portal_session"]
    assert (cookie["httponly"], cookie["samesite"], cookie["domain"]) == (True, "Lax", "")


def test_no_page_has_content_that_its_content_security_policy_forbids(
    people: People, open_deployment: Deployment
) -> None:
    live = end(people.deploy(people.owner, "shop"))
    waiting = people.deploy(people.owner, "shop2")
    client = signed_in(people.owner)
    pages = [
        client.get("/"),
        client.post("/", {"name": "?"}),
        *(client.get(PAGES[0].format(deployment.pk)) for deployment in (live, waiting, open_deployment)),
        client.post("/tokens", {"label": "x"}),
        client.get("/help/"),
        client.get("/help/CANCELLED"),
        client.get("/unheard-of"),
        Client().get("/login"),
        Client(enforce_csrf_checks=True).post("/login"),
    ]
    assert [page.status_code for page in pages] == [200, 400, 200, 200, 200, 200, 200, 200, 404, 200, 403]
    for page in pages:
        assert not INLINE.findall(page.content.decode())


def test_an_internal_error_reveals_nothing(people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table is missing in the database."""
    client = signed_in(people.owner)
    client.raise_request_exception = False
    deployment = people.deploy(people.owner, "shop")
    Stack.objects.filter(pk=deployment.stack_id).update(url="http://[")  # not a valid URL
    Deployment.objects.filter(pk=deployment.pk).update(error={"canary": CANARY})
    for path in (PAGES[0], API[1]):
        answer = client.get(path.format(deployment.pk), headers=token(people.owner))
        assert answer.status_code == 500
        assert CANARY not in answer.content.decode()
        assert "Traceback" not in answer.content.decode()
        assert "content-security-policy" in answer.headers


@pytest.mark.parametrize(
    "next",
    [
        "https://evil.example/",
        "//evil.example/",
        "/\\evil.example",
        "\\\\evil.example",
        "javascript:alert(1)",
        "///evil",
    ],
)
def test_signing_in_redirects_to_this_portal_only(client: Client, people: People, next: str) -> None:
    for path in ("/login", "/admin/login/"):
        given = {"username": "operator", "password": PASSWORD, "next": next}
        answer = client.post(f"{path}?next={next}", given)
        assert answer.status_code == 302
        assert answer.headers["Location"] in ("/", "/admin/")
    out = client.post("/logout", {"next": next})
    assert out.headers["Location"] == "/"
