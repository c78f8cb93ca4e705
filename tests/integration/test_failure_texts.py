"""What went wrong has a sentence for the person and one for the operator, and leaves nothing half made."""

from contextlib import closing
from typing import Any

import pytest
from django.test import Client

from deployments.engine import errors, failures

from ..processes import Portal
from ..users import People, end, operator, token

OPERATORS_MATTER = [
    entry for entry in failures.FAILURES if entry.code.startswith("DOKPLOY_") or "AT_DOKPLOY" in entry.code
]


@pytest.mark.parametrize("entry", OPERATORS_MATTER, ids=lambda entry: entry.code)
def test_what_concerns_the_server_tells_the_person_and_the_operator_different_things(
    entry: failures.FailureKind,
) -> None:
    told = (entry.text, *entry.causes, *entry.advice)
    assert entry.text.endswith(".")
    assert entry.advice
    assert entry.operator.endswith(".")
    assert entry.operator not in told


def test_every_error_of_the_client_has_its_entry() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.DokployError)]
    assert len(kinds) > 8
    for kind in kinds:
        assert kind is errors.DokployError or kind.code in failures.BY_CODE, kind


@pytest.mark.django_db
def test_the_operators_sentence_is_shown_to_operators_alone() -> None:
    people = People()
    run = end(people.run(people.owner, "shop"), "failure", code="DOKPLOY_TOO_OLD")
    sentence = failures.BY_CODE["DOKPLOY_TOO_OLD"].operator
    for person, sees in ((people.operator, True), (people.owner, False)):
        http = Client()
        http.force_login(person)
        for page in (f"/deployments/{run.pk}", "/help/DOKPLOY_TOO_OLD"):
            assert (sentence in http.get(page).content.decode()) is sees
        answer = Client().get(f"/api/deployments/{run.pk}", headers=token(person)).json()
        assert answer["error"].get("operator") == (sentence if sees else None)


@pytest.mark.parametrize(
    ("name", "turns", "fault", "code"),
    [
        ("too-old", {"version": "v0.28.8"}, None, "DOKPLOY_TOO_OLD"),
        ("forgets", {}, None, "DEPLOY_LOST"),
        ("not-ours", {}, None, "NAME_IN_USE_AT_DOKPLOY"),
        ("no-such-call", {}, ("domain.byApplicationId", "redirect"), "DOKPLOY_ADDRESS_WRONG"),
    ],
)
def test_a_server_that_is_not_as_it_should_be_leaves_nothing_half_made(
    own_portal: Any, name: str, turns: dict[str, Any], fault: tuple[str, str] | None, code: str
) -> None:
    portal: Portal = own_portal().start()
    portal.turn(**turns)
    if fault:
        portal.fault(*fault)
    if code == "NAME_IN_USE_AT_DOKPLOY":
        key = (portal.data / "simulator-key").read_text()
        made = portal.http.post(
            f"http://127.0.0.1:{portal.port + 1}/api/project.create", json={"name": name}, headers={"x-api-key": key}
        )
        assert made.status_code == 200
    before = portal.dokploy()["projects"]
    if code == "DEPLOY_LOST":
        id = forgotten(portal, name)
    else:
        id = portal.deploy(name)
    state = portal.finished(id, 60)
    assert (state["status"], state["error"]["code"]) == ("failure", code)
    there = portal.dokploy()
    assert there["projects"] == before
    assert (there["applications"], there["domains"], there["services"]) == ([], [], [])
    with closing(operator(portal)) as admin:
        html = admin.get(f"/deployments/{id}").text
    entry = failures.BY_CODE[code]
    assert "Nothing of yours is lost" in html
    assert "For operators" in html
    assert entry.operator.split("'")[0] in html
    assert entry.operator not in portal.http.get(f"/deployments/{id}").text


def forgotten(portal: Portal, name: str) -> str:
    """Return a deployment that Dokploy loses each time it is sent."""
    portal.close_gate("job")
    id = portal.deploy(name)
    for _ in range(3):
        portal.wait_at("job", 20)
        portal.switches.post("restart").raise_for_status()
    portal.open_gate("job")
    return id
