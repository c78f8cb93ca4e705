"""The three users of the tests, their deployments, and how they sign in."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import MD5PasswordHasher
from websockets.sync.client import ClientConnection, connect

from deployments.engine.spec import Progress
from deployments.models import ApiToken, Deployment, DeploymentRequest, Template

from .processes import Portal

PASSWORD = "a-long-enough-passphrase"
# Tests that sign in set PASSWORD_HASHERS to QUICK: the default hasher takes about a second.
HASHED = MD5PasswordHasher().encode(PASSWORD, "salt")
QUICK = ["django.contrib.auth.hashers.MD5PasswordHasher"]


class People:
    """Create an owner, another user and an operator in the test database."""

    def __init__(self) -> None:
        make = get_user_model().objects.create
        self.owner = make(username="owner", password=HASHED)
        self.other = make(username="other", password=HASHED)
        self.operator = make(username="operator", password=HASHED, is_staff=True, is_superuser=True)
        Template.follow_settings()
        self.template = Template.objects.get(from_settings=True)

    def deploy(self, person: Any, name: str, **more: Any) -> Deployment:
        """Create a queued deployment of this user."""
        return DeploymentRequest(person, self.template, more, Deployment.Via.API).deploy(name)


def token(person: Any) -> dict[str, str]:
    """Return the Authorization header of a new token of this user."""
    return {"Authorization": f"Bearer {ApiToken.issue(person, 'test')[1]}"}


def end(deployment: Deployment, status: Any = "success", **more: Any) -> Deployment:
    """Claim a queued deployment, record its end as a worker would, and return it. It must be the next to be claimed."""
    claimed = Deployment.claim("worker", excluding=[])
    assert claimed is not None
    assert claimed.pk == deployment.pk
    requests = ["2026-01-01T00:00:00Z POST project.create -> 200, 3 ms"]
    claimed.record(Progress("log", "deploying", "a line", data={"source": "s", "first": 1, "lines": ["a line"]}))
    if status == "success":
        last = Progress("phase", "completed", "It is live", status, progress=100, data={"step": "ends"})
    else:
        error = {
            "phase": "deploying",
            "code": "IMAGE_NOT_FOUND",
            "message": "There is no such image.",
            "retryable": True,
            "evidence": "manifest unknown",
            **more,
        }
        last = Progress("phase", "rolling_back", "Rollback completed", status, progress=95, error=error)
    claimed.record(last, requests)
    claimed.refresh_from_db()
    return claimed


# -- the same at a portal process --------------------------------------------------------------------------------------


def browser(portal: Portal) -> httpx.Client:
    """Return a client with cookies of its own; in the demo it is the demo user."""
    return httpx.Client(base_url=portal.url, timeout=10, verify=False)


def submit(http: httpx.Client, page: str, data: dict[str, str], action: str | None = None) -> httpx.Response:
    """Open the page and send its form to `action`, by default to the page itself."""
    shown = http.get(page)
    assert shown.status_code == 200, shown.text
    found = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', shown.text)
    assert found is not None
    return http.post(action or page, data={"csrfmiddlewaretoken": found[1], **data})


def sign_in(http: httpx.Client, username: str, password: str) -> httpx.Client:
    """Sign this client in with a password and return it."""
    answer = submit(http, "/login", {"username": username, "password": password})
    assert answer.status_code == 302, answer.text
    return http


def operator(portal: Portal) -> httpx.Client:
    """Return a client that is signed in as the demo's operator."""
    return sign_in(browser(portal), "operator", (portal.data / "operator-password").read_text())


def new_token(http: httpx.Client) -> dict[str, str]:
    """Return the Authorization header of a token that this client's user creates."""
    found = re.search(r"dpt_[\w-]{20,}", submit(http, "/tokens", {"label": "test"}).text)
    assert found is not None
    return {"Authorization": f"Bearer {found[0]}"}


@contextmanager
def socket(portal: Portal, path: str, http: httpx.Client | None = None, **headers: str) -> Iterator[ClientConnection]:
    """Open a WebSocket as this client's browser would."""
    cookies = {"Cookie": "; ".join(f"{name}={value}" for name, value in http.cookies.items())} if http else {}
    address = f"ws://127.0.0.1:{portal.port}{path}"
    given = {"Origin": portal.url, **cookies, **headers}
    with connect(address, additional_headers=given, proxy=None, open_timeout=10) as opened:
        yield opened
