"""The id of an anonymous deployment shows its progress and nothing else."""

from typing import Any

from django.test import Client

from deployments.models import Deployment

from ...processes import Portal
from ...users import People, socket
from .support import API, CANARY, PAGES, STRANGER, signed_in


def test_a_client_with_the_id_of_an_anonymous_deployment_sees_its_progress_only(
    client: Client, open_deployment: Any
) -> None:
    seen = [client.get(path.format(open_deployment.pk)) for path in PAGES]
    seen += [client.get(path.format(open_deployment.pk), headers={"Accept": "application/json"}) for path in API]
    for answer in seen:
        assert answer.status_code == 200
        assert CANARY not in answer.content.decode()
        assert "a line" not in answer.content.decode()
        assert "POST project.create" not in answer.content.decode()
    state = client.get(API[1].format(open_deployment.pk)).json()
    assert (state["status"], state["logs"]) == ("failure", [])
    assert list(state["error"]) == ["phase", "code", "message", "retryable", "help"]
    events = client.get(API[2].format(open_deployment.pk)).json()["events"]
    assert [(event["message"], event["data"]) for event in events if event["kind"] == "log"] == [("", {})]


def test_a_signed_in_user_sees_no_more_and_an_operator_sees_all(people: People, open_deployment: Deployment) -> None:
    page = f"/deployments/{open_deployment.pk}"
    assert CANARY not in signed_in(people.other).get(page).content.decode()
    assert f"evidence-{CANARY}" in signed_in(people.operator).get(page).content.decode()


def test_an_anonymous_deployment_is_never_listed(people: People, open_deployment: Deployment) -> None:
    for path in ("/", "/stacks"):
        for person in (people.owner, people.operator):
            assert b"open-shop" not in signed_in(person).get(path).content


def test_stream_and_socket_of_an_anonymous_deployment_have_no_log_lines(shared_portal: Portal, opened: str) -> None:
    stream = list(shared_portal.stream(opened, **{"Last-Event-ID": "0"}))
    assert stream[-1]["event"] == "complete"
    with shared_portal.http.stream("GET", f"/api/status/{opened}?all=1", headers={"Last-Event-ID": "0"}) as every:
        data = [line for line in every.iter_lines() if line.startswith("data: ")]
    assert not any('"lines"' in line for line in data)
    with socket(shared_portal, f"/ws/deployments/{opened}", **STRANGER) as credential:
        frame = str(credential.recv(10))
    assert "doors-open" in frame
    assert 'class="log"' not in frame


def test_closing_the_portal_hides_anonymous_deployments(client: Client, open_deployment: Any, settings: Any) -> None:
    settings.PORTAL_OPEN = False
    assert [client.get(path.format(open_deployment.pk)).status_code for path in PAGES] == [404, 404]
    assert [client.get(path.format(open_deployment.pk)).status_code for path in API] == [401] * 4
