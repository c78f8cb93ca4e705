"""The client's address and scheme behind trusted proxies, and the lock of an account after wrong passwords."""

import re
from typing import Any

import pytest
from django.core.cache import cache
from django.test import Client

from deployments.models import Stack

from ...users import PASSWORD, People
from .support import signed_in


@pytest.mark.parametrize(
    ("proxies", "forwarded", "address"),
    [
        (0, "", "203.0.113.9"),
        (0, "192.0.2.1", "203.0.113.9"),
        (1, "192.0.2.1", "192.0.2.1"),
        (1, "198.51.100.66, 192.0.2.1", "192.0.2.1"),
        (2, "198.51.100.66, 192.0.2.1, 10.0.0.1", "192.0.2.1"),
        (2, "192.0.2.1", "203.0.113.9"),
        (1, "", "203.0.113.9"),
        (1, "192.0.2.1, evil", "0.0.0.0"),
        (1, "2001:db8::1", "2001:db8::1"),
        (1, ", ,192.0.2.1", "192.0.2.1"),
    ],
)
def test_the_client_address_is_read_after_as_many_hops_as_trusted_proxies(
    people: People, settings: Any, proxies: int, forwarded: str, address: str
) -> None:
    settings.TRUSTED_PROXIES = proxies
    client = Client(REMOTE_ADDR="203.0.113.9")
    headers = {"X-Forwarded-For": forwarded} if forwarded else {}
    answer = client.post("/api/deploy", '{"name": "shop"}', content_type="application/json", headers=headers)
    assert answer.status_code == 202
    assert Stack.objects.get().requested_from == address


@pytest.mark.parametrize(
    ("proxies", "headers", "scheme"),
    [
        (0, {"X-Portal-Scheme": "https"}, "http"),
        (1, {"X-Portal-Scheme": "https"}, "http"),
        (0, {"X-Forwarded-Proto": "https"}, "http"),
        (1, {"X-Forwarded-Proto": "https"}, "https"),
        (1, {"X-Forwarded-Proto": "https, http"}, "http"),
        (1, {"X-Forwarded-Proto": "http, https"}, "https"),
        (2, {"X-Forwarded-Proto": "https, https, http"}, "https"),
        (1, {"X-Forwarded-Proto": "HTTPS"}, "http"),
    ],
)
def test_the_scheme_cannot_be_forged(
    people: People, settings: Any, proxies: int, headers: dict[str, str], scheme: str
) -> None:
    settings.TRUSTED_PROXIES = proxies
    shown = signed_in(people.owner).get("/tokens", headers=headers).content.decode()
    assert re.findall(r"(\w+)://testserver(?::80)?/api/deploy", shown) == [scheme]


def test_five_wrong_passwords_lock_an_account_for_that_address(people: People) -> None:
    def attempt(password: str, peer: str = "192.0.2.7", username: str = "owner", path: str = "/login") -> int:
        client = Client(REMOTE_ADDR=peer)
        return int(client.post(path, {"username": username, "password": password}).status_code)

    assert [attempt("wrong") for _ in range(5)] == [200] * 5
    assert attempt(PASSWORD) == 200, "the account is locked even for the right password"
    assert attempt(PASSWORD, username="OWNER") == 200
    assert attempt(PASSWORD, path="/admin/login/") == 200
    page = Client(REMOTE_ADDR="192.0.2.7").post("/login", {"username": "owner", "password": PASSWORD})
    assert "Too many wrong passwords" in page.content.decode()
    assert attempt(PASSWORD, peer="192.0.2.8") == 302, "the owner can sign in from another address"
    assert attempt(PASSWORD, username="other") == 302


def test_attempts_with_many_unknown_names_do_not_evict_a_lock(people: People) -> None:
    client = Client()
    for _ in range(5):
        client.post("/login", {"username": "owner", "password": "wrong"})
    for number in range(1000):
        cache.add(f"login:made-up-{number}", 1)
    assert client.post("/login", {"username": "owner", "password": PASSWORD}).status_code == 200
