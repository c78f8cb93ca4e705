"""Sessions are for pages, tokens for the API; forms need the CSRF token; other sites get nothing."""

import re
from typing import Any

import pytest
from django.test import Client

from deployments import identity
from deployments.models import Deployment, Stack

from ...users import PASSWORD, People, end, token
from .support import contents, signed_in


def test_a_session_does_not_authenticate_at_the_api(people: People, settings: Any) -> None:
    deployment = end(people.deploy(people.owner, "shop"))
    client = signed_in(people.owner)
    assert client.get(f"/api/deployments/{deployment.pk}").status_code == 404
    answer = client.post("/api/deploy", '{"name": "shop2"}', content_type="application/json")
    assert Deployment.objects.get(pk=answer.json()["deploymentId"]).stack.owner.username == "open"
    settings.PORTAL_OPEN = False
    assert client.get(f"/api/deployments/{deployment.pk}").status_code == 401
    assert client.post("/api/deploy", '{"name": "shop3"}', content_type="application/json").status_code == 401


def test_a_token_does_not_authenticate_on_pages(client: Client, people: People) -> None:
    deployment = end(people.deploy(people.owner, "shop"))
    header = token(people.owner)
    assert client.get(f"/deployments/{deployment.pk}", headers=header).status_code == 404
    assert client.get("/", headers=header).status_code == 302


FOREIGN = [
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "http://testserver.evil.example"},
    {"Origin": "http://eviltestserver"},
    {"Origin": "https://testserver"},
    {"Origin": "http://testserver:81"},
    {"Origin": "http://shop.localhost:3002"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Origin": "http://testserver", "Sec-Fetch-Site": "cross-site"},
]


@pytest.mark.parametrize("headers", FOREIGN)
def test_another_site_cannot_use_the_api_through_a_users_browser(
    client: Client, people: People, headers: dict[str, str]
) -> None:
    deployment = end(people.deploy(people.owner, "shop"))
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "application/json"):
        answer = client.post("/api/deploy", '{"name": "shop2"}', content_type=content_type, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "FORBIDDEN")
    reading = client.get(f"/api/deployments/{deployment.pk}", headers={**token(people.owner), **headers})
    assert reading.status_code == 403
    assert Stack.objects.count() == 1


@pytest.mark.parametrize("headers", [{"Origin": "http://testserver"}, {"Sec-Fetch-Site": "same-origin"}, {}])
def test_the_portals_own_pages_may_use_the_api(client: Client, people: People, headers: dict[str, str]) -> None:
    answer = client.post("/api/deploy", '{"name": "shop"}', content_type="application/json", headers=headers)
    assert answer.status_code == 202
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_a_form_without_csrf_token_is_refused(people: People) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(people.owner)
    before = contents()
    forms: dict[str, dict[str, str]] = {
        "/": {"name": "shop", "template": "stack"},
        "/login": {"username": "other", "password": PASSWORD},
        "/logout": {},
        "/tokens": {"label": "x"},
    }
    for path, data in forms.items():
        for headers in ({}, {"HX-Request": "true"}, {"X-CSRFToken": "x" * 32}):
            assert client.post(path, data, headers=headers).status_code == 403
    assert contents() == before
    assert client.get("/tokens").status_code == 200, "the user is still signed in"


def test_a_form_with_the_csrf_token_in_htmxs_header_is_accepted(people: People) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(people.owner)
    found = re.search(r"hx-headers='\{\"X-CSRFToken\": \"(\w+)\"\}'", client.get("/").content.decode())
    assert found is not None
    answer = client.post("/", {"name": "shop", "template": "stack"}, headers={"X-CSRFToken": found[1]})
    assert answer.status_code == 302
    assert Stack.objects.get().owner == people.owner


def test_a_foreign_origin_is_refused_even_with_the_csrf_token(people: People) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(people.owner)
    client.get("/")
    given = {"name": "shop", "template": "stack", "csrfmiddlewaretoken": client.cookies["portal_csrf"].value}
    assert client.post("/", given, headers={"Origin": "http://shop.localhost:3002"}).status_code == 403
    assert not Stack.objects.exists()


GETS = [
    "/",
    "/?name=shop2",
    "/check?name=shop2",
    "/stacks",
    "/tokens",
    "/tokens?revoke=1&label=x",
    "/deployments/{id}",
    "/deployments/{id}/live",
    "/help/",
    "/help/CANCELLED",
    "/login",
    "/logout",
    "/api/deploy?name=shop2",
    "/api/status/{id}",
    "/api/deployments/{id}",
    "/api/deployments/{id}/events",
    "/api/check/shop2",
    "/admin/",
    "/admin/deployments/stack/",
    "/admin/deployments/deployment/{id}/change/",
    "/admin/deployments/template/",
]


def test_get_requests_never_write(people: People, settings: Any) -> None:
    settings.DOKPLOY_URL = "http://127.0.0.1:1"  # nothing listens there
    identity.open_user()
    deployment = end(people.deploy(people.operator, "shop"))
    client, header = signed_in(people.operator), token(people.operator)
    client.get("/api/check/shop2", headers=header)  # a token's last use is recorded once a minute
    before = contents()
    for path in GETS:
        client.get(path.format(id=deployment.pk), headers={**header, "Accept": "application/json"})
        client.head(path.format(id=deployment.pk), headers={**header, "Accept": "application/json"})
        assert contents() == before, path
