"""Fixtures of the access tests: users by role, and deployments in a portal process."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from django.core.cache import cache

from deployments import identity
from deployments.models import Deployment, Template

from ...processes import Portal, until
from ...users import PASSWORD, QUICK, People, browser, end, new_token, operator, sign_in, submit
from .support import CANARY


@pytest.fixture(autouse=True)
def clear_cache(settings: Any) -> None:
    cache.clear()
    settings.PASSWORD_HASHERS = QUICK


@pytest.fixture(name="people")
def three_people(db: None) -> People:
    return People()


@pytest.fixture(scope="session")
def owner(shared_portal: Portal) -> Iterator[httpx.Client]:
    """Yield a client of the demo user."""
    with browser(shared_portal) as http:
        http.headers.update({"Origin": shared_portal.url})
        http.headers.update(new_token(http))
        yield http


@pytest.fixture(scope="session")
def other(shared_portal: Portal) -> Iterator[httpx.Client]:
    """Yield a client of a user whose account an operator created."""
    operator_client = operator(shared_portal)
    made = {"username": "other", "usable_password": "true", "password1": PASSWORD, "password2": PASSWORD}
    assert submit(operator_client, "/admin/auth/user/add/", made).status_code == 302
    operator_client.close()
    with browser(shared_portal) as http:
        yield sign_in(http, "other", PASSWORD)


@pytest.fixture(scope="session")
def owned(shared_portal: Portal, owner: httpx.Client) -> str:
    """Return the id of a completed deployment that the demo user owns."""
    answer = owner.post("/api/deploy", json={"name": "doors-owned"})
    assert answer.status_code == 202, answer.text
    id = str(answer.json()["deploymentId"])
    until(lambda: owner.get(f"/api/deployments/{id}").json()["status"] == "success", 20)
    return id


@pytest.fixture(scope="session")
def opened(shared_portal: Portal) -> str:
    """Return the id of a completed anonymous deployment."""
    id = shared_portal.deploy("doors-open")
    shared_portal.finished(id)
    return id


@pytest.fixture
def open_deployment(people: People) -> Deployment:
    """Return an anonymous deployment that failed, with a parameter, a log line and evidence."""
    parameter = {"key": "GREETING", "type": "text"}
    Template.objects.filter(pk=people.template.pk).update(parameters=[parameter])
    people.template.refresh_from_db()
    deployment = people.deploy(identity.open_user(), "open-shop", GREETING=CANARY)
    return end(deployment, "failure", evidence=f"evidence-{CANARY}")
