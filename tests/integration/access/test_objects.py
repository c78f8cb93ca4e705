"""Another user's deployments and stacks do not exist: not on pages, in the API, or at sockets."""

import httpx
import pytest
from django.test import Client
from websockets.exceptions import InvalidStatus

from deployments.models import Deployment

from ...processes import Portal
from ...users import People, end, socket, token
from .support import API, PAGES, STRANGER, closing_code, contents, signed_in


@pytest.mark.parametrize("path", PAGES)
def test_another_users_deployment_is_not_found_on_any_page(people: People, path: str) -> None:
    deployment = end(people.deploy(people.owner, "canary-shop"))
    for client in (signed_in(people.other), Client()):
        answer = client.get(path.format(deployment.pk))
        assert answer.status_code == 404
        assert b"canary-shop" not in answer.content
    for person in (people.owner, people.operator):
        assert b"canary-shop" in signed_in(person).get(path.format(deployment.pk)).content


@pytest.mark.django_db(transaction=True)  # a stream returns its connection to the pool
@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
@pytest.mark.parametrize("path", API)
def test_another_users_deployment_is_not_found_by_any_script(
    client: Client, people: People, path: str, accept: str
) -> None:
    deployment = end(people.deploy(people.owner, "canary-shop"))
    for header in (token(people.other), {}):
        answer = client.get(path.format(deployment.pk), headers={**header, "Accept": accept})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "NOT_FOUND")
        assert b"canary-shop" not in answer.content
    for person in (people.owner, people.operator):
        assert client.get(path.format(deployment.pk), headers={**token(person), "Accept": accept}).status_code == 200


@pytest.mark.parametrize("verb", ["deploy", "remove"])
def test_another_users_stack_cannot_be_changed(people: People, verb: str) -> None:
    deployment = end(people.deploy(people.owner, "shop"))
    page = f"/stacks/{deployment.stack_id}/{verb}"
    form = {"name": "shop", "template": people.template.slug}
    before = contents()
    other = signed_in(people.other)
    assert other.get(page).status_code == other.post(page, form).status_code == 404
    assert Client().post(page, form).status_code == 302  # to the login page
    assert Client().delete("/api/stacks/shop", headers=token(people.other)).status_code == 404
    assert Client(enforce_csrf_checks=True).post(page, form).status_code == 403
    owner = signed_in(people.owner)
    assert owner.get(page).status_code == 200
    after = contents()
    assert {name: rows for name, rows in after.items() if name.startswith("deployments.D")} == {
        name: rows for name, rows in before.items() if name.startswith("deployments.D")
    }
    assert owner.post(page, form).status_code == 302
    assert Deployment.objects.filter(stack=deployment.stack_id).count() == 2


@pytest.mark.parametrize("path", [*PAGES, *API])
def test_no_other_method_reaches_another_users_deployment(people: People, path: str) -> None:
    deployment = people.deploy(people.owner, "canary-shop")
    client = Client()
    header = token(people.other) if path.startswith("/api") else {}
    client.force_login(people.other)
    before = contents()
    for method in ("post", "put", "patch", "delete", "head", "options"):
        answer = getattr(client, method)(path.format(deployment.pk), headers=header)
        assert answer.status_code in (404, 405)
        assert b"canary-shop" not in answer.content
    after = contents()
    for rows in (before, after):
        for row in rows["deployments.ApiToken"]:
            del row["last_used_at"]
    assert before == after


def test_a_socket_shows_a_deployment_to_its_owner_only(shared_portal: Portal, owned: str, other: httpx.Client) -> None:
    with socket(shared_portal, f"/ws/deployments/{owned}") as mine:
        assert "doors-owned" in str(mine.recv(10))
    with socket(shared_portal, f"/ws/deployments/{owned}", other) as theirs:
        assert closing_code(theirs) == 4404
    with socket(shared_portal, f"/ws/deployments/{owned}", **STRANGER) as nobodys:
        assert closing_code(nobodys) == 4404
    with socket(shared_portal, "/ws/stacks", **STRANGER) as nobodys:
        assert closing_code(nobodys) == 4404
    with socket(shared_portal, "/ws/stacks", other) as theirs:
        assert "doors-owned" not in str(theirs.recv(10))


def test_a_missing_deployment_and_another_users_look_the_same_at_the_socket(
    shared_portal: Portal, other: httpx.Client
) -> None:
    with socket(shared_portal, f"/ws/deployments/dep_{'0' * 32}", other) as theirs:
        assert closing_code(theirs) == 4404


def test_an_unknown_socket_address_is_refused_without_an_error(shared_portal: Portal) -> None:
    with pytest.raises(InvalidStatus), socket(shared_portal, "/ws/unheard-of"):
        pass
