"""Only a visitor on this machine is the demo user."""

from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.test import Client

from deployments import identity

from ...users import People


def visiting(host: str = "localhost:3000", peer: str = "127.0.0.1", **headers: str) -> Any:
    return Client(REMOTE_ADDR=peer, HTTP_HOST=host).get("/stacks", headers=headers)


@pytest.mark.parametrize("host", ["localhost", "localhost:3000", "127.0.0.1:3000", "[::1]", "[::1]:3000"])
@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.9.10", "::1"])
def test_a_visitor_from_this_machine_is_the_demo_user(db: None, host: str, peer: str) -> None:
    assert visiting(host, peer).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Forwarded": "for=192.0.2.7"},
        {"Via": "1.1 proxy"},
        {"X-Forwarded-For": "127.0.0.1"},
        {"X-Forwarded-For": ""},
        {"X-Forwarded-Host": "localhost"},
        {"X-Forwarded-Proto": "https"},
        {"X-Forwarded-Anything": "1"},
        {"X-Real-IP": "127.0.0.1"},
    ],
)
def test_a_forwarded_request_is_not_the_demo_users(db: None, headers: dict[str, str]) -> None:
    assert visiting(**headers).status_code == 302


@pytest.mark.parametrize(("host", "peer"), [("localhost", "192.0.2.7"), ("localhost", "::2"), ("localhost", "")])
def test_a_remote_peer_is_not_the_demo_user(db: None, host: str, peer: str) -> None:
    assert visiting(host, peer).status_code == 302


@pytest.mark.parametrize("host", ["testserver", "portal.example.org", "localhost.example.org", "evil.localhost"])
def test_a_host_name_that_is_not_loopback_is_not_the_demo_users(db: None, settings: Any, host: str) -> None:
    settings.ALLOWED_HOSTS = ["*"]
    assert visiting(host).status_code == 302


def test_a_host_that_is_not_allowed_is_refused_without_a_traceback(db: None) -> None:
    answer = visiting("evil.example")
    assert answer.status_code == 400
    assert b"Traceback" not in answer.content


def test_outside_the_demo_no_visitor_is_the_demo_user(db: None, settings: Any) -> None:
    settings.DEMO = False
    assert visiting().status_code == 302
    assert not get_user_model().objects.filter(username="visitor").exists()


def test_the_demo_user_is_not_an_operator_and_cannot_open_the_admin(db: None) -> None:
    client = Client(REMOTE_ADDR="127.0.0.1", HTTP_HOST="localhost:3000")
    assert client.get("/stacks").status_code == 200
    visitor = get_user_model().objects.get(username="visitor")
    assert (visitor.is_staff, visitor.is_superuser, visitor.has_usable_password()) == (False, False, False)
    visitor.is_staff = visitor.is_superuser = True  # not even with these flags
    visitor.save()
    for path in ("/admin/", "/admin/deployments/stack/", "/admin/auth/user/add/"):
        answer = client.get(path)
        assert (answer.status_code, answer.headers["Location"].split("?")[0]) == (302, "/admin/login/")


def test_no_password_signs_in_as_the_demo_user_or_the_owner_of_anonymous_stacks(client: Client, people: People) -> None:
    identity.open_user()
    identity.demo_user()
    for username in ("open", "visitor"):
        for password in ("!", username):
            assert client.post("/login", {"username": username, "password": password}).status_code == 200
    assert "portal_session" not in client.cookies
