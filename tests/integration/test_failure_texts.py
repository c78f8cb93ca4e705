"""Failures of the Dokploy server: users and operators get different texts, and no object is left behind."""

from contextlib import closing
from typing import Any

import pytest
from django.test import Client

from deployments.engine import errors, failures

from ..processes import Portal
from ..users import People, end, operator, token

SERVER_FAILURES = [
    failure_kind
    for failure_kind in failures.FAILURES
    if failure_kind.code.startswith("DOKPLOY_") or "AT_DOKPLOY" in failure_kind.code
]


@pytest.mark.parametrize("failure_kind", SERVER_FAILURES, ids=lambda failure_kind: failure_kind.code)
def test_a_failure_of_the_server_has_different_texts_for_users_and_operators(
    failure_kind: failures.FailureKind,
) -> None:
    assert failure_kind.text.endswith(".")
    assert failure_kind.advice
    assert failure_kind.operator.endswith(".")
    assert failure_kind.operator not in (failure_kind.text, *failure_kind.causes, *failure_kind.advice)


def test_every_error_of_the_client_has_a_failure_kind() -> None:
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    client_errors = [value for value in classes if issubclass(value, errors.DokployError)]
    assert len(client_errors) > 8
    for error in client_errors:
        assert error is errors.DokployError or error.code in failures.BY_CODE, error


@pytest.mark.django_db
def test_the_text_for_operators_is_shown_to_operators_only() -> None:
    people = People()
    deployment = end(people.deploy(people.owner, "shop"), "failure", code="DOKPLOY_TOO_OLD")
    sentence = failures.BY_CODE["DOKPLOY_TOO_OLD"].operator
    for user, is_operator in ((people.operator, True), (people.owner, False)):
        client = Client()
        client.force_login(user)
        for page in (f"/deployments/{deployment.pk}", "/help/DOKPLOY_TOO_OLD"):
            assert (sentence in client.get(page).content.decode()) is is_operator
        answer = Client().get(f"/api/deployments/{deployment.pk}", headers=token(user)).json()
        assert answer["error"].get("operator") == (sentence if is_operator else None)


@pytest.mark.parametrize(
    ("name", "switches", "fault", "code"),
    [
        ("too-old", {"version": "v0.28.8"}, None, "DOKPLOY_TOO_OLD"),
        ("forgets", {}, None, "DEPLOY_LOST"),
        ("not-ours", {}, None, "NAME_IN_USE_AT_DOKPLOY"),
        ("no-such-call", {}, ("domain.byApplicationId", "redirect"), "DOKPLOY_ADDRESS_WRONG"),
    ],
)
def test_a_deployment_that_fails_because_of_the_server_leaves_nothing_behind(
    own_portal: Any, name: str, switches: dict[str, Any], fault: tuple[str, str] | None, code: str
) -> None:
    portal: Portal = own_portal().start()
    portal.turn(**switches)
    if fault:
        portal.fault(*fault)
    if code == "NAME_IN_USE_AT_DOKPLOY":
        key = (portal.data / "simulator-key").read_text()
        created = portal.http.post(
            f"http://127.0.0.1:{portal.port + 1}/api/project.create", json={"name": name}, headers={"x-api-key": key}
        )
        assert created.status_code == 200
    before = portal.dokploy()["projects"]
    if code == "DEPLOY_LOST":
        id = deploy_and_lose(portal, name)
    else:
        id = portal.deploy(name)
    state = portal.finished(id, 60)
    assert (state["status"], state["error"]["code"]) == ("failure", code)
    after = portal.dokploy()
    assert after["projects"] == before
    assert (after["applications"], after["domains"], after["services"]) == ([], [], [])
    with closing(operator(portal)) as admin:
        html = admin.get(f"/deployments/{id}").text
    failure_kind = failures.BY_CODE[code]
    assert "You lost nothing" in html
    assert "For operators" in html
    assert failure_kind.operator.split("'")[0] in html
    assert failure_kind.operator not in portal.http.get(f"/deployments/{id}").text


def deploy_and_lose(portal: Portal, name: str) -> str:
    """Start a deployment that Dokploy loses each time that it is sent. Return its id."""
    portal.close_gate("job")
    id = portal.deploy(name)
    for _ in range(3):
        portal.wait_at("job", 20)
        portal.switches.post("restart").raise_for_status()
    portal.open_gate("job")
    return id
