"""Secrets are stored at Dokploy and, encrypted, in the database. They appear nowhere else."""

import hashlib
import io
import json
import logging
import re
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest
from asgiref.sync import sync_to_async
from cryptography.fernet import Fernet
from django.apps import apps
from django.contrib.admin.utils import quote
from django.core.management import call_command
from django.core.management.base import CommandError
from django.test import Client
from django.utils.html import escape

from deployments import encryption
from deployments.forms import UNREADABLE_SECRET
from deployments.models import ApiToken, Deployment, Template
from deployments.worker.runner import Runner
from deployportal.log_redaction import RedactingFilter

from ..processes import Portal, until
from ..users import People, browser, end, new_token, operator, socket, submit, token
from .test_removal import ONE_OF_EACH, count_objects
from .test_serve import run

CANARY = "canary-parameter-5c1e"
PASSWORD = "canary-password-9a4b"
PARAMETERS = [{"key": "API_TOKEN", "type": "secret"}, {"key": "GREETING", "type": "text"}]


@pytest.fixture
def people(db: None) -> People:
    return with_a_secret(People())


def with_a_secret(people: People) -> People:
    people.template.parameters = PARAMETERS
    people.template.registry, people.template.registry_username = "registry.example.org", "robot"
    people.template.registry_password = PASSWORD
    people.template.save()
    return people


# -- in a portal process ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def operator_client(shared_portal: Portal) -> Iterator[httpx.Client]:
    """Return the operator, who has created a template with a secret parameter and a registry password."""
    http = operator(shared_portal)
    given = {
        "slug": "secretive",
        "name": "Secretive",
        "icon": "🤫",
        "image": "docker.io/library/caddy:2",
        "port": "80",
        "parameters": '[{"key": "API_TOKEN", "type": "secret"}]',
        "registry": "registry.example.org",
        "registry_username": "robot",
        "registry_password": PASSWORD,
        "health_path": "/",
        "health_interval": "0.3",
        "health_timeout": "20",
        "position": "5",
        "active": "on",
    }
    assert submit(http, "/admin/deployments/template/add/", given).status_code == 302
    yield http
    http.close()


def test_a_secret_is_shown_nowhere_but_at_dokploy(shared_portal: Portal, operator_client: httpx.Client) -> None:
    """One deployment succeeds; Dokploy refuses one and the registry another, both with the secrets in their errors."""
    mine = browser(shared_portal)
    header = new_token(mine)
    seen: dict[str, str] = {}
    for name in ("secret-well", "secret-refused", "secret-log"):
        said = f"{CANARY} with {PASSWORD}: manifest unknown"
        if name == "secret-refused":
            shared_portal.fault("application.saveEnvironment", "error400", times=None, text=said)
        shared_portal.turn(pull_error=said if name == "secret-log" else None)
        body = {"name": name, "template": "secretive", "parameters": {"API_TOKEN": CANARY}}
        started = mine.post("/api/deploy", json=body, headers=header).json()
        id, state_path = started["deploymentId"], f"/api/deployments/{started['deploymentId']}"
        until(lambda path=state_path: mine.get(path, headers=header).json()["status"] != "in_progress", 60)
        if name == "secret-well":
            assert CANARY in str(shared_portal.dokploy()), "Dokploy must receive the secret"
            assert PASSWORD in str(shared_portal.dokploy())
        with socket(shared_portal, started["pageUrl"].replace("/deployments", "/ws/deployments"), mine) as frames:
            seen[f"{name}: frame"] = str(frames.recv(10))
        every = {"Last-Event-ID": "0"}
        with mine.stream("GET", f"{started['statusUrl']}?all=1", headers={**header, **every}, timeout=20) as stream:
            seen[f"{name}: stream"] = "".join(stream.iter_text())
        for path in (state_path, started["eventsUrl"]):
            seen[f"{name}: {path}"] = mine.get(path, headers=header).text
        for path in (started["pageUrl"], f"{started['pageUrl']}/live", "/", "/stacks"):
            seen[f"{name}: {path}"] = mine.get(path).text
            seen[f"{name}: {path} for an operator"] = operator_client.get(path).text
        shared_portal.switches.delete("faults")
        seen[f"{name}: admin"] = operator_client.get(f"/admin/deployments/deployment/{quote(id)}/change/").text
    shared_portal.turn(pull_error=None)
    for page in ("template", "stack", "deployment", "externalresource", "apitoken"):
        listed = operator_client.get(f"/admin/deployments/{page}/", params={"q": "secret-"})
        assert listed.status_code == 200
        shown = seen[f"list of {page}"] = listed.text
        for path in re.findall(rf"/admin/deployments/{page}/[\w]+/change/", shown):
            seen[path] = operator_client.get(path).text
    for file in shared_portal.data.glob("portal.sqlite3*"):
        seen[file.name] = file.read_bytes().decode("latin-1")
    seen["log"] = shared_portal.output.read_text()
    mine.close()

    assert '"DOKPLOY_UNCLEAR"' in seen["secret-refused: stream"]
    assert "*** with ***: manifest unknown" in seen["secret-log: stream"]
    assert len(seen) > 40
    own = {name: (shared_portal.data / name).read_text() for name in ("secret-key", "encryption-key", "simulator-key")}
    hidden = {"parameter": CANARY, "password": PASSWORD, "token": header["Authorization"].split()[1], **own}
    found = [(what, where) for what, secret in hidden.items() for where, text in seen.items() if secret in text]
    assert found == []


# -- at rest -----------------------------------------------------------------------------------------------------------


def test_secrets_are_stored_encrypted(client: Client, people: People) -> None:
    body = {"name": "shop", "parameters": {"API_TOKEN": CANARY, "GREETING": "hello-in-clear"}}
    header = token(people.owner)
    assert client.post("/api/deploy", body, content_type="application/json", headers=header).status_code == 202
    rows = str([list(model._default_manager.values()) for model in apps.get_models()])
    assert "hello-in-clear" in rows
    for secret in (CANARY, PASSWORD, header["Authorization"].split()[1]):
        assert secret not in rows
    spec = Deployment.objects.get().stack_spec()
    assert dict(spec.env)["API_TOKEN"] == CANARY
    assert spec.registry_password == PASSWORD
    assert set(spec.secrets) == {CANARY, PASSWORD}
    assert CANARY not in repr(spec)
    assert PASSWORD not in repr(spec)


def test_a_token_is_stored_as_a_hash_and_shown_once(people: People) -> None:
    client = Client()
    client.force_login(people.owner)
    page = client.post("/tokens", {"label": "mine"}).content.decode()
    text = re.findall(r"dpt_[\w-]{43}", page)[0]
    row = ApiToken.objects.get()
    assert row.digest == hashlib.sha256(text.encode()).hexdigest()
    assert text.startswith(row.prefix)
    assert len(row.prefix) < 12
    assert text not in client.get("/tokens").content.decode()
    assert client.get("/api/check/shop", headers={"Authorization": f"Bearer {text}"}).status_code == 200
    assert client.get("/api/check/shop", headers={"Authorization": f"Bearer {row.digest}"}).status_code == 401


def test_the_form_never_shows_an_entered_secret_again(people: People) -> None:
    client = Client()
    client.force_login(people.owner)
    answer = client.post("/", {"name": "?", "template": "stack", "stack-API_TOKEN": CANARY, "stack-GREETING": "hello"})
    assert answer.status_code == 400
    assert "hello" in answer.content.decode()
    assert CANARY not in answer.content.decode()


# -- keys --------------------------------------------------------------------------------------------------------------


def test_a_redeploy_with_an_empty_secret_keeps_the_stored_one_and_does_not_show_it(people: People) -> None:
    first = end(people.deploy(people.owner, "shop", API_TOKEN=CANARY, GREETING="hi"))
    http = Client()
    http.force_login(people.owner)
    page = f"/stacks/{first.stack_id}/deploy"
    shown = http.get(page).content.decode()
    assert CANARY not in shown
    assert 'value="hi"' in shown
    slug = people.template.slug
    http.post(page, {"template": slug, f"{slug}-API_TOKEN": "", f"{slug}-GREETING": "ho"})
    second = end(Deployment.objects.get(kind="redeploy"))
    assert second.stored_spec.environment() == {"API_TOKEN": CANARY, "GREETING": "ho"}
    http.post(page, {"template": slug, f"{slug}-API_TOKEN": "another", f"{slug}-GREETING": ""})
    assert Deployment.objects.first().stored_spec.environment() == {"API_TOKEN": "another", "GREETING": ""}


def test_deploying_an_own_stack_by_name_keeps_its_secret(people: People, client: Client) -> None:
    end(people.deploy(people.owner, "shop", API_TOKEN=CANARY, GREETING="hi"))
    client.force_login(people.owner)
    client.post("/", {"name": "shop", "template": "stack", "stack-API_TOKEN": "", "stack-GREETING": "ho"})
    again = end(Deployment.objects.first())
    assert (again.kind, again.stored_spec.environment()) == ("redeploy", {"API_TOKEN": CANARY, "GREETING": "ho"})


def test_keys_can_be_rotated(settings: Any) -> None:
    old, new = (Fernet.generate_key().decode() for _ in range(2))
    settings.ENCRYPTION_KEYS = [old]
    kept = encryption.encrypt({"password": CANARY})
    assert CANARY not in kept
    settings.ENCRYPTION_KEYS = [new, old]
    assert encryption.decrypt(kept) == {"password": CANARY}
    renewed = encryption.rotate(kept)
    settings.ENCRYPTION_KEYS = [new]
    assert encryption.decrypt(renewed) == {"password": CANARY}
    with pytest.raises(
        encryption.DecryptionError, match=r"can't be decrypted: its key is not among ENCRYPTION_KEYS\.$"
    ):
        encryption.decrypt(kept)


def test_the_command_rotates_every_stored_secret_or_none(people: People, settings: Any, capsys: Any) -> None:
    deployment = people.deploy(people.owner, "shop", API_TOKEN=CANARY)
    old, new = settings.ENCRYPTION_KEYS[0], Fernet.generate_key().decode()
    settings.ENCRYPTION_KEYS = [new, old]
    call_command("rotate_secrets")
    settings.ENCRYPTION_KEYS = [new]
    assert dict(Deployment.objects.get().stack_spec().env)["API_TOKEN"] == CANARY
    assert Template.objects.get(pk=people.template.pk).registry_password == PASSWORD
    settings.ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
    kept = Deployment.objects.get().spec_encrypted
    with pytest.raises(CommandError, match="Nothing was changed"):
        call_command("rotate_secrets")
    assert Deployment.objects.get(pk=deployment.pk).spec_encrypted == kept
    assert CANARY not in capsys.readouterr().out


@pytest.mark.parametrize("broken", ["x", "gAAAAA", "ü"])
def test_a_tampered_secret_cannot_be_decrypted(broken: str) -> None:
    with pytest.raises(encryption.DecryptionError):
        encryption.decrypt(broken)
    whole = encryption.encrypt("secret")
    with pytest.raises(encryption.DecryptionError):
        encryption.decrypt(whole[:-4] + secrets.token_hex(2))


def test_an_empty_value_is_stored_as_empty_text() -> None:
    assert (encryption.encrypt(""), encryption.encrypt({}), encryption.encrypt(None), encryption.rotate("")) == (
        "",
        "",
        "",
        "",
    )
    assert encryption.decrypt("") is None


async def test_a_deployment_whose_secret_cannot_be_decrypted_fails_with_a_sentence(
    transactional_db: None, settings: Any
) -> None:
    people = await sync_to_async(lambda: with_a_secret(People()))()
    deployment = await sync_to_async(people.deploy)(people.owner, "shop", API_TOKEN=CANARY)
    settings.ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
    runner = Runner(sweep=0.01)
    runner.start()
    while not deployment.done:
        deployment = await sync_to_async(Deployment.objects.select_related("stack").get)(pk=deployment.pk)
    await runner.drain()
    assert (deployment.status, deployment.phase) == ("failure", "failed")
    assert deployment.error is not None
    assert re.fullmatch(r"[A-Z][^.]+\.( [A-Z][^.]+\.)*", deployment.error["message"])
    assert deployment.stack.state == "gone", "nothing was created, so the name is free"


ASK = {"content_type": "application/json"}


def test_a_secret_that_can_no_longer_be_decrypted_must_be_entered_again(people: People, settings: Any) -> None:
    people.template.registry_password_encrypted = ""
    people.template.save()
    first = end(people.deploy(people.owner, "shop", API_TOKEN=CANARY, GREETING="hi"))
    settings.ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
    client, header = Client(), token(people.owner)
    for parameters in ({}, {"GREETING": "ho"}, {"API_TOKEN": ""}):
        answer = client.post("/api/deploy", {"name": "shop", "parameters": parameters}, headers=header, **ASK)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["field"]) == (409, "CONFLICT", "API_TOKEN")
        assert error["message"] == f"API_TOKEN: {UNREADABLE_SECRET}"
    client.force_login(people.owner)
    page = f"/stacks/{first.stack_id}/deploy"
    shown = client.get(page).content.decode()
    assert escape(UNREADABLE_SECRET) in shown
    assert "Leave empty to keep" not in shown
    assert 'value="hi"' in shown
    refused = client.post(page, {"template": "stack", "stack-API_TOKEN": "", "stack-GREETING": "ho"})
    assert refused.status_code == 400
    assert escape(f"API_TOKEN: {UNREADABLE_SECRET}") in refused.content.decode()
    assert Deployment.objects.get() == first, "no deployment was created"
    again = {"name": "shop", "parameters": {"API_TOKEN": "another"}}
    assert client.post("/api/deploy", again, headers=header, **ASK).status_code == 202
    assert Deployment.objects.first().stored_spec.environment() == {"API_TOKEN": "another", "GREETING": "hi"}


def test_a_stack_whose_key_was_lost_can_be_deployed_with_new_secrets_and_is_never_removed(own_portal: Any) -> None:
    portal: Portal = own_portal(ENCRYPTION_KEYS=Fernet.generate_key().decode()).start()
    with closing(sqlite3.connect(portal.data / "portal.sqlite3", timeout=10)) as database:
        database.execute("UPDATE deployments_template SET parameters = ?", [json.dumps(PARAMETERS)])
        database.commit()
    with closing(browser(portal)) as mine:
        header = {**new_token(mine), "Accept": "application/json"}

    def deploy(value: str) -> Any:
        given = {"name": "key-lost", "parameters": {"API_TOKEN": value}}
        started = portal.http.post("/api/deploy", json=given, headers=header).json()
        ask = lambda: portal.http.get(started["statusUrl"], headers=header).json()  # noqa: E731
        return until(lambda: (state := ask())["status"] != "in_progress" and state, 30)

    def container_environment() -> list[str]:
        return next(row["env"] for row in portal.dokploy()["services"] if row["name"].startswith("key-lost-"))

    assert deploy("one")["status"] == "success"
    assert run("deploy", "key-lost", "--set", "GREETING=ho", env=portal.env).returncode == 0
    assert {"API_TOKEN=one", "GREETING=ho"} <= set(container_environment())
    assert portal.stop() == 0
    until(portal.ports_are_free, 10)
    portal.env["ENCRYPTION_KEYS"] = Fernet.generate_key().decode()
    portal.start()
    portal.turn(pull_error="no space left on device")
    failed = deploy("two")
    assert (failed["error"]["code"], failed["phase"]) == ("SERVER_DISK_FULL", "rolling_back")
    left = "Not restored: the previous version (one of its secrets can no longer be decrypted)"
    assert failed["message"] == left
    assert count_objects(portal, "key-lost") == ONE_OF_EACH
    portal.turn(pull_error=None)
    assert deploy("three")["status"] == "success"
    assert count_objects(portal, "key-lost") == ONE_OF_EACH
    assert "API_TOKEN=three" in container_environment()


def test_a_template_whose_password_cannot_be_decrypted_is_refused_with_a_sentence(
    people: People, settings: Any
) -> None:
    settings.ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
    client = Client()
    answer = client.post("/api/deploy", {"name": "shop"}, content_type="application/json")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "PAUSED")
    assert answer.json()["error"]["message"].endswith(".")
    client.force_login(people.owner)
    page = client.post("/", {"name": "shop", "template": "stack"})
    assert page.status_code == 400
    assert "be decrypted" in page.content.decode()
    assert not Deployment.objects.exists()


# -- the log -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Return what the portal's own log handler writes, as the settings configure it."""
    handlers = [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.StreamHandler)]
    handler = next(
        handler for handler in handlers if any(isinstance(filter, RedactingFilter) for filter in handler.filters)
    )
    written = io.StringIO()
    before = handler.setStream(written)
    yield written
    handler.setStream(before)


@pytest.mark.parametrize(
    "message",
    [
        "the key is {key}",
        "keys: {encryption}",
        "x-api-key: {canary}",
        "{{'Authorization': 'Bearer {canary}'}}",
        "Cookie: portal_session={canary}",
        'POST {{"password": "{canary}", "name": "shop"}}',
        "registryPassword={canary}",
        "API_KEY={canary}",
        "MY_SECRET = {canary}",
        "GET /?x=dpt_{canary}{canary}",
    ],
)
def test_the_log_contains_no_secret(log: io.StringIO, settings: Any, message: str) -> None:
    settings.DOKPLOY_API_KEY, settings.ENCRYPTION_KEYS = f"{CANARY}-dokploy", [f"{CANARY}-encryption"]
    text = message.format(key=settings.DOKPLOY_API_KEY, encryption=settings.ENCRYPTION_KEYS[0], canary=CANARY)
    logger = logging.getLogger("deployments.test")
    logger.error(text)
    logger.error("as an argument: %s", text)
    logger.error("with its stack", stack_info=True)
    try:
        raise ValueError(text)
    except ValueError:
        logger.exception("a trace")
    assert log.getvalue().count("***") >= 3
    assert "Traceback" in log.getvalue()
    assert CANARY not in log.getvalue()


def test_an_error_page_and_its_log_entry_contain_no_secret(log: io.StringIO, people: People) -> None:
    """The view fails at an invalid row; neither page nor log repeats the row's values."""
    deployment = end(people.deploy(people.owner, "shop", API_TOKEN=CANARY), "failure")
    Deployment.objects.filter(pk=deployment.pk).update(error={"password": CANARY})
    client = Client(raise_request_exception=False)
    client.force_login(people.owner)
    answer = client.get(f"/deployments/{deployment.pk}", {"token": CANARY})
    assert answer.status_code == 500
    assert CANARY not in answer.content.decode()
    assert "Traceback" in log.getvalue()
    assert CANARY not in log.getvalue()


def test_a_secret_has_no_default(people: People) -> None:
    template = Template(slug="x", name="x", image="caddy:2", parameters=[{**PARAMETERS[0], "default": CANARY}])
    with pytest.raises(Exception, match="a secret has no default"):
        template.full_clean()
