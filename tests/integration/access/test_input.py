"""Unexpected fields and hostile texts change nothing and are shown escaped."""

import re
from typing import Any

import pytest
from django.test import Client

from deployments import identity
from deployments.models import ApiToken, Deployment, Stack, Template

from ...users import People, end
from .support import INLINE, contents, signed_in

EXTRA: dict[str, Any] = {
    "owner": 1,
    "owner_id": 1,
    "status": "success",
    "state": "live",
    "phase": "completed",
    "progress": 100,
    "lease_owner": "evil",
    "lease_token": 99,
    "requested_by": 1,
    "via": "command",
    "id": "dep_" + "0" * 32,
    "deploymentId": "dep_" + "0" * 32,
    "url": "http://evil.example",
    "host": "evil.example",
    "image": "evil.example/image",
    "is_staff": True,
}


def test_unexpected_fields_change_nothing(people: People) -> None:
    client = signed_in(people.owner)
    assert client.post("/", {"name": "shop", "template": "stack", **EXTRA}).status_code == 302
    body = {"name": "shop2", "template": "stack", **EXTRA}
    assert client.post("/api/deploy", body, content_type="application/json").status_code == 202
    for stack, owner in ((Stack.objects.get(name="shop"), "owner"), (Stack.objects.get(name="shop2"), "open")):
        assert (stack.owner.username, stack.state) == (owner, "pending")
        assert stack.host == f"{stack.name}.localhost"
        deployment = stack.deployments.get()
        assert (
            deployment.status,
            deployment.phase,
            deployment.progress,
            deployment.lease_owner,
            deployment.lease_token,
        ) == (
            "in_progress",
            "initializing",
            0,
            "",
            0,
        )
        assert (deployment.requested_by.username, deployment.spec["image"]) == (owner, people.template.image)
        assert deployment.pk != EXTRA["id"]
    people.owner.refresh_from_db()
    assert not people.owner.is_staff


def test_a_user_revokes_their_own_tokens_only(people: People) -> None:
    mine, theirs = (ApiToken.issue(person, "x")[0] for person in (people.owner, people.other))
    client = signed_in(people.owner)
    for given in (str(theirs.pk), "x", "-1", "9" * 40, "٣", "1 OR 1=1"):
        assert client.post("/tokens", {"revoke": given}).status_code == 302
    assert set(ApiToken.objects.all()) == {mine, theirs}
    client.post("/tokens", {"revoke": str(mine.pk)})
    assert set(ApiToken.objects.all()) == {theirs}


EVIL = [
    "<script>alert(1)</script>",
    "'><img src=x onerror=alert(1)>",
    "{{7*7}}",
    "${7*7}",
    "${{project.DATABASE_URL}}",
    "{% debug %}",
    "a; rm -rf /",
    "$(id)",
    "`id`",
    "a\r\nSet-Cookie: x=1",
    "../../etc",
    "shop\u202egnp",
    "ѕhop",
    "shop\u200b",
    "ｓｈｏｐ",
    "shop.evil.example",
    "shop%0aevil",
    "' OR 1=1 --",
]


@pytest.mark.parametrize("text", EVIL)
def test_a_hostile_name_is_refused_and_shown_escaped(people: People, settings: Any, text: str) -> None:
    settings.DOKPLOY_URL = "http://127.0.0.1:1"
    identity.open_user()
    client = signed_in(people.owner)
    before = contents()
    pages = [
        client.post("/", {"name": text, "template": "stack"}),
        client.get("/", {"name": text}),
        client.get("/check", {"name": text}),
        client.post("/", {"name": "fine", "template": text}),
        Client().post("/login", {"username": text, "password": "x"}),
    ]
    answer = client.post("/api/deploy", {"name": text}, content_type="application/json")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "INVALID_NAME")
    assert contents() == before
    assert [page.status_code for page in pages] == [400, 200, 200, 400, 200]
    for page in pages:
        shown = page.content.decode()
        assert "<script>alert" not in shown
        assert "<img" not in shown
        assert "49" not in re.sub(r'"[\w-]{20,}"|\d{10}\.\d+', "", shown) or "7*7" not in text
        assert "Set-Cookie" not in page.headers or "x=1" not in page.headers["Set-Cookie"]


@pytest.mark.parametrize("text", [*EVIL[:4], *EVIL[5:9]])
def test_hostile_text_is_shown_escaped(people: People, text: str) -> None:
    """Test parameters, labels, and Dokploy's texts in messages, logs and errors."""
    parameter = {"key": "GREETING", "label": text, "help": text, "type": "text", "default": "x"}
    Template.objects.filter(pk=people.template.pk).update(parameters=[parameter], name=text[:60], description=text)
    people.template.refresh_from_db()
    client = signed_in(people.owner)
    answer = client.post("/", {"name": "shop", "template": "stack", "stack-GREETING": text})
    assert answer.status_code == 302
    deployment = Deployment.objects.get()
    assert dict(deployment.stack_spec().env) == {"GREETING": text}, "unchanged"
    end(deployment, "failure", message=text, evidence=text)
    for path in ("/", f"/deployments/{deployment.pk}", f"/deployments/{deployment.pk}/live", "/stacks"):
        shown = client.get(path).content.decode()
        assert "<script>alert" not in shown
        assert "<img" not in shown
        assert not INLINE.findall(shown.replace("&#x27;", "").replace("&gt;&lt;img src=x onerror=alert(1)&gt;", ""))
    ApiToken.issue(people.owner, text)
    assert "<script>alert" not in client.get("/tokens").content.decode()


def test_a_nul_in_a_token_label_is_removed(people: People) -> None:
    client = signed_in(people.owner)
    assert client.post("/tokens", {"label": "a\0b\r\nc"}).status_code == 200
    assert ApiToken.objects.get().label == "abc"


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"ALLOWED_HOSTS": ["localhost", "panel.apps.example.net"]}, "panel"),
        ({"DOKPLOY_URL": "https://ploy.apps.example.net"}, "ploy"),
        ({"STACK_RESERVED_NAMES": ["billing"]}, "billing"),
        ({}, "dokploy"),
        ({}, "traefik"),
    ],
)
def test_the_portals_and_dokploys_host_names_are_reserved(
    people: People, settings: Any, changed: dict[str, Any], name: str
) -> None:
    settings.STACK_DOMAIN_SUFFIX, settings.STACK_URL = "apps.example.net", "https://{name}.apps.example.net"
    for setting, value in changed.items():
        setattr(settings, setting, value)
    client = Client(HTTP_HOST="localhost", REMOTE_ADDR="192.0.2.7")
    answer = client.post("/api/deploy", {"name": name}, content_type="application/json")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "INVALID_NAME")
