"""A running stack is deployed again: existing objects are found, and a failure restores the previous settings."""

import re
from typing import Any

import pytest
from django.test import Client

from deployments.models import Deployment

from ..processes import Portal
from ..users import People, end

KINDS = ("projects", "applications", "domains", "services")


@pytest.fixture
def token(portal: Portal) -> dict[str, str]:
    """Create a token of the demo user on the page."""
    page = portal.http.get("/tokens", headers={"Host": f"localhost:{portal.port}"})
    csrf = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page.text)
    assert csrf
    made = portal.http.post(
        "/tokens",
        data={"label": "test", "csrfmiddlewaretoken": csrf[1]},
        headers={"Host": f"localhost:{portal.port}", "Origin": f"http://localhost:{portal.port}"},
    )
    text = re.search(r"dpt_[\w-]+", made.text)
    assert text
    return {"Authorization": f"Bearer {text[0]}", "Accept": "application/json"}


def deploy(portal: Portal, token: dict[str, str], name: str, **more: Any) -> Any:
    """Deploy and return the final state, with the events as "events"."""
    answer = portal.http.post("/api/deploy", json={"name": name, **more}, headers=token)
    assert answer.status_code == 202, answer.text
    id, seen = answer.json()["deploymentId"], 0
    while True:
        address = f"/api/deployments/{id}/events"
        events = portal.http.get(address, params={"after": seen, "wait": 20}, headers=token).json()
        seen = events["last"]
        if events["done"]:
            return portal.http.get(f"/api/deployments/{id}", headers=token).json()


def of(portal: Portal, name: str) -> dict[str, Any]:
    """Return the stack's objects at Dokploy."""
    there = portal.dokploy()
    application = next(row for row in there["applications"] if row["name"] == name)
    service = next(row for row in there["services"] if row["name"] == application["appName"])
    return {"application": application, "service": service, "domains": there["domains"]}


def test_a_redeploy_changes_the_existing_objects(portal: Portal, token: dict[str, str]) -> None:
    first = deploy(portal, token, "again", template="web-page", parameters={"GREETING": "one"})
    second = deploy(portal, token, "again", template="web-page", parameters={"GREETING": "two"})
    assert (first["kind"], second["kind"]) == ("deploy", "redeploy")
    assert (first["status"], second["status"]) == ("success", "success")
    assert first["resources"] == second["resources"]
    assert "GREETING=two" in str(of(portal, "again")["service"]["env"])
    assert len([row for row in portal.dokploy()["applications"] if row["name"] == "again"]) == 1


def test_a_failed_redeploy_restores_the_former_version(portal: Portal, token: dict[str, str]) -> None:
    first = deploy(portal, token, "restored", template="web-page", parameters={"GREETING": "one"})
    before = of(portal, "restored")
    second = deploy(portal, token, "restored", template="broken")
    after = of(portal, "restored")
    assert (second["status"], second["phase"], second["message"]) == ("failure", "rolling_back", "Rollback completed")
    assert (second["error"]["phase"], second["error"]["code"]) == ("deploying", "REGISTRY_UNREACHABLE")
    assert after["application"]["dockerImage"] == after["service"]["image"] == before["service"]["image"]
    assert after["service"]["env"] == before["service"]["env"]
    assert second["resources"] == first["resources"]
    assert portal.router.get("/", headers={"Host": "restored.localhost"}).status_code == 200
    third = deploy(portal, token, "restored", template="web-page")
    assert third["status"] == "success"


@pytest.mark.django_db
def test_the_page_warns_that_the_earlier_image_may_no_longer_exist() -> None:
    people = People()
    first = end(people.deploy(people.owner, "shop"))  # without a digest in the log
    second = end(people.deploy(people.owner, "shop"), "failure")
    http = Client()
    http.force_login(people.owner)
    html = http.get(f"/deployments/{second.pk}").content.decode()
    assert "its previous image may no longer be in the registry" in html
    Deployment.objects.filter(pk=first.pk).update(resources={"image_digest": f"sha256:{'0' * 64}"})
    html = http.get(f"/deployments/{second.pk}").content.decode()
    assert "previous settings are restored." in html


def test_a_redeploy_that_changed_nothing_undoes_nothing(portal: Portal, token: dict[str, str]) -> None:
    deploy(portal, token, "untouched", template="web-page")
    calls = portal.dokploy()["calls"]
    portal.fault("project.all", "redirect", times=1)
    second = deploy(portal, token, "untouched", template="web-page")
    assert (second["status"], second["phase"]) == ("failure", "failed")
    assert second["error"]["code"] == "DOKPLOY_ADDRESS_WRONG"
    assert portal.dokploy()["calls"]["application.deploy"] == calls["application.deploy"]
    assert portal.router.get("/", headers={"Host": "untouched.localhost"}).status_code == 200
