"""The admin panel: operators see every row and change only templates and tokens; other users are refused."""

import json
import re
from typing import Any

import pytest
from django.apps import apps
from django.contrib.admin.utils import quote
from django.contrib.auth import get_user_model
from django.core.cache import cache
from django.core.exceptions import ValidationError
from django.test import Client

from deployments.models import ApiToken, Deployment, ExternalResource, Stack, Template
from deployments.models.parameters import validate_parameters

from ..users import PASSWORD, QUICK, People, end

READ_ONLY = ["stack", "deployment", "externalresource"]
FORM = {
    "slug": "shop",
    "name": "Shop",
    "icon": "🛒",
    "description": "",
    "image": "docker.io/library/caddy:2",
    "port": "80",
    "parameters": "[]",
    "registry": "",
    "registry_username": "",
    "registry_password": "",
    "memory_bytes": "",
    "cpus": "",
    "health_path": "/",
    "health_interval": "5",
    "health_timeout": "60",
    "public": "on",
    "active": "on",
    "position": "3",
}


@pytest.fixture
def people(db: None, settings: Any) -> People:
    settings.PASSWORD_HASHERS = QUICK
    cache.clear()
    return People()


@pytest.fixture
def deployment(people: People) -> Deployment:
    """Return a failed deployment with one external resource and a token of its owner."""
    over = end(people.deploy(people.owner, "admin-shop"), "failure")
    given = {"stack": over.stack, "deployment": over, "resource_type": "project", "phase": "creating_project"}
    ExternalResource.objects.create(
        **given, mark="deployportal/x/y", external_id="project-77", state="left", why="It hung."
    )
    ApiToken.issue(people.owner, "laptop")
    return over


@pytest.fixture
def operator(people: People) -> Client:
    client = Client()
    client.force_login(people.operator)
    return client


def ids(deployment: Deployment) -> dict[str, Any]:
    return {
        "stack": quote(deployment.stack_id),
        "deployment": quote(deployment.pk),
        "externalresource": ExternalResource.objects.get().pk,
    }


def rows() -> dict[str, list[Any]]:
    found = apps.get_app_config("deployments").get_models()
    return {model.__name__: list(model._default_manager.order_by("pk").values()) for model in found}


def test_an_operator_lists_and_searches_everything(operator: Client, deployment: Deployment) -> None:
    assert operator.get("/admin/").status_code == 200
    for page in (*READ_ONLY, "template", "apitoken"):
        listed = operator.get(f"/admin/deployments/{page}/")
        assert listed.status_code == 200, page
        shown = listed.content.decode()
        assert {"template": "AI workspace", "apitoken": "laptop"}.get(page, "admin-shop") in shown
    for page in READ_ONLY:
        assert "admin-shop" in operator.get(f"/admin/deployments/{page}/", {"q": "admin-shop"}).content.decode()
        assert "admin-shop" not in operator.get(f"/admin/deployments/{page}/", {"q": "unheard"}).content.decode()
    filtered = operator.get("/admin/deployments/deployment/", {"status__exact": "failure"}).content.decode()
    assert f'href="/deployments/{deployment.pk}"' in filtered, "the row links to the deployment's page"
    assert (
        "admin-shop"
        not in operator.get("/admin/deployments/deployment/", {"status__exact": "success"}).content.decode()
    )


def test_an_operator_sees_a_deployment_with_its_events_and_a_stack_with_its_external_resources(
    operator: Client, deployment: Deployment
) -> None:
    shown = operator.get(f"/admin/deployments/deployment/{quote(deployment.pk)}/change/").content.decode()
    for text in ("IMAGE_NOT_FOUND", "Rollback completed", "a line", "Queued"):
        assert text in shown
    assert "spec_encrypted" not in shown
    shown = operator.get(f"/admin/deployments/stack/{quote(deployment.stack_id)}/change/").content.decode()
    for text in ("admin-shop", "project-77", "It hung.", deployment.pk, "deployportal/x/y"):
        assert text in shown


def test_the_number_of_queries_does_not_grow_with_the_list(
    operator: Client, people: People, django_assert_max_num_queries: Any
) -> None:
    for number in range(12):
        people.deploy(people.owner, f"shop-{number}")
    for page in ("deployment", "stack", "externalresource"):
        with django_assert_max_num_queries(15):
            operator.get(f"/admin/deployments/{page}/")


@pytest.mark.parametrize("page", READ_ONLY)
def test_rows_written_by_the_runner_are_read_only(operator: Client, deployment: Deployment, page: str) -> None:
    before = rows()
    id = ids(deployment)[page]
    shown = operator.get(f"/admin/deployments/{page}/{id}/change/").content.decode()
    assert 'name="_save"' not in shown
    assert not re.findall(r'<(?:input type="(?!hidden|submit)|select|textarea)[^>]* name="', shown)
    given = {
        "name": "evil",
        "status": "success",
        "state": "live",
        "owner": "1",
        "events-TOTAL_FORMS": "1",
        "_save": "1",
    }
    attempts = [
        operator.post(f"/admin/deployments/{page}/{id}/change/", given),
        operator.post(f"/admin/deployments/{page}/add/", given),
        operator.get(f"/admin/deployments/{page}/add/"),
        operator.post(f"/admin/deployments/{page}/{id}/delete/", {"post": "yes"}),
    ]
    assert [answer.status_code for answer in attempts] == [403] * 4
    action = {"action": "delete_selected", "_selected_action": str(id), "post": "yes"}
    operator.post(f"/admin/deployments/{page}/", action)
    assert rows() == before


def test_an_operator_revokes_a_token_and_never_sees_or_changes_it(operator: Client, deployment: Deployment) -> None:
    row = ApiToken.objects.get()
    path = f"/admin/deployments/apitoken/{row.pk}"
    assert row.digest not in operator.get(f"{path}/change/").content.decode()
    assert operator.post(f"{path}/change/", {"owner": "1", "label": "x"}).status_code == 403
    assert operator.post(f"{path}/delete/", {"post": "yes"}).status_code == 302
    assert not ApiToken.objects.exists()


# -- templates ---------------------------------------------------------------------------------------------------------


def save(operator: Client, template: Template | None = None, **changed: Any) -> Any:
    path = f"/admin/deployments/template/{template.pk}/change/" if template else "/admin/deployments/template/add/"
    return operator.post(path, {**FORM, **changed})


def test_an_operator_creates_a_template_that_users_can_deploy(operator: Client, people: People) -> None:
    parameters = [
        {
            "key": "TITLE",
            "label": "Title",
            "type": "text",
            "default": "Hello",
            "help": "Shown on top.",
            "required": True,
        },
        {"key": "COUNT", "type": "integer", "min": 1, "max": 9, "default": 3},
        {"key": "COLOR", "type": "choice", "choices": ["red", "green"], "default": "green"},
        {"key": "CLOCK", "type": "boolean", "default": True},
        {"key": "KEY", "type": "secret"},
    ]
    assert save(operator, parameters=json.dumps(parameters), memory_bytes="67108864", cpus="0.5").status_code == 302
    client = Client()
    client.force_login(people.owner)
    page = client.get("/").content.decode()
    assert "Shown on top." in page
    given = {"name": "shop", "template": "shop", "shop-TITLE": "Hi", "shop-COUNT": "4", "shop-COLOR": "red"}
    assert client.post("/", given).status_code == 302
    spec = Deployment.objects.get().stack_spec()
    assert dict(spec.env) == {"TITLE": "Hi", "COUNT": "4", "COLOR": "red", "CLOCK": "false", "KEY": ""}
    assert (spec.image, spec.port, spec.memory_bytes, spec.cpus) == ("docker.io/library/caddy:2", 80, 67108864, 0.5)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("image", "Not An Image", "[registry/]name[:tag]"),
        ("image", "caddy:2; rm -rf /", "[registry/]name[:tag]"),
        ("image", "$(id)", "[registry/]name[:tag]"),
        ("image", "caddy:2\nRUN evil", "[registry/]name[:tag]"),
        ("image", "--privileged", "[registry/]name[:tag]"),
        ("port", "0", "greater than or equal to 1"),
        ("port", "65536", "less than or equal to 65535"),
        ("port", "x", "whole number"),
        ("slug", "a b", "slug"),
        ("health_path", "health", "such as /health"),
        ("health_path", "/a b", "such as /health"),
        ("health_path", "/\r\nHost: evil", "such as /health"),
        ("health_interval", "0", "greater than or equal to 0.1"),
        ("health_timeout", "100000", "less than or equal to 600"),
        ("cpus", "0", "greater than or equal to 0.01"),
        ("cpus", "nan", "number"),
        ("memory_bytes", "-1", "greater than or equal to"),
        ("parameters", "{", "valid JSON"),
        ("parameters", '{"key": "X"}', "as a list"),
        ("parameters", '[{"key": "X", "type": "file"}]', "the type must be one of"),
        ("parameters", '[{"key": "X", "type": ["text"]}]', "the type must be one of"),
        (
            "parameters",
            '[{"key": "X", "type": "choice", "choices": ["a"], "default": "b"}]',
            "the default is invalid",
        ),
        ("parameters", '[{"key": "X", "type": "secret", "default": "in clear"}]', "a secret has no default"),
    ],
)
def test_an_invalid_template_is_refused_with_a_sentence(
    operator: Client, people: People, field: str, value: str, says: str
) -> None:
    answer = save(operator, **{field: value})
    assert answer.status_code == 200
    form = answer.context["adminform"].form
    assert set(form.errors) == {field}
    assert says in " ".join(form.errors[field])
    assert not Template.objects.filter(slug="shop").exists()


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ('["X"]', "an object with a key"),
        ('[{"key": 7}]', "an object with a key"),
        ('[{"key": "NO SPACE"}]', "not a valid environment variable name"),
        ('[{"key": "X=1\\nY"}]', "not a valid environment variable name"),
        ('[{"key": "X"}, {"key": "X"}]', "defined twice"),
        ('[{"key": "X", "type": "choice"}]', "a choice needs"),
        ('[{"key": "X", "type": "choice", "choices": "ab"}]', "a choice needs"),
        ('[{"key": "X", "type": "choice", "choices": [1, 2]}]', "a choice needs"),
        ('[{"key": "X", "type": "integer", "min": "one"}]', "whole numbers"),
        ('[{"key": "X", "type": "integer", "default": "many"}]', "the default is invalid"),
        ('[{"key": "X", "type": "integer", "max": 3, "default": 4}]', "the default is invalid"),
        ('[{"key": "X", "default": "${{project.KEY}}"}]', "the default is invalid"),
        ('[{"key": "X", "default": {}}]', "a single value"),
        ('[{"key": "X", "label": ["a"]}]', "must be text"),
        ('[{"key": "X", "requird": true}]', "requird"),
    ],
)
def test_invalid_parameters_are_refused_with_a_sentence(parameters: str, says: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(says)) as refused:
        validate_parameters(json.loads(parameters))
    assert refused.value.messages[0].endswith(".")


def test_a_registry_that_is_not_allowed_is_refused(operator: Client, people: People, settings: Any) -> None:
    settings.STACK_REGISTRIES = ["registry.example.org"]
    assert "registry.example.org" in str(save(operator).context["adminform"].form.errors["image"])
    assert save(operator, image="registry.example.org/shop:1").status_code == 302


def test_a_registry_password_can_be_set_but_is_never_shown(operator: Client, people: People) -> None:
    assert save(operator, registry="registry.example.org", registry_password="canary-1").status_code == 302
    template = Template.objects.get(slug="shop")
    assert template.registry_password == "canary-1"
    path = f"/admin/deployments/template/{template.pk}"
    for shown in (operator.get(f"{path}/change/"), operator.get(f"{path}/history/"), operator.get("/admin/")):
        assert "canary-1" not in shown.content.decode()
        assert template.registry_password_encrypted not in shown.content.decode()
    refused = save(operator, template, registry_password="canary-2", port="0")
    assert "canary-2" not in refused.content.decode()
    assert save(operator, template, name="Renamed").status_code == 302
    template.refresh_from_db()
    assert (template.name, template.registry_password) == ("Renamed", "canary-1"), (
        "an empty field keeps the stored password"
    )
    assert save(operator, template, registry_password_encrypted="evil", registry_password="canary-3").status_code == 302
    template.refresh_from_db()
    assert template.registry_password == "canary-3"


def test_fields_that_follow_the_settings_cannot_be_edited(operator: Client, people: People) -> None:
    template = people.template
    given = {"slug": template.slug, "name": "Our own", "image": "evil.example/x:1", "port": "1", "from_settings": ""}
    assert save(operator, template, **given).status_code == 302
    template.refresh_from_db()
    assert template.name == "Our own"
    assert (template.image, template.port, template.from_settings) != ("evil.example/x:1", 1, False)
    assert template.image != "evil.example/x:1"
    assert template.from_settings


# -- access ------------------------------------------------------------------------------------------------------------


def test_only_operators_can_open_the_admin(people: People, deployment: Deployment) -> None:
    mine = Client()
    mine.force_login(people.owner)
    for client in (mine, Client()):
        for path in (
            "/admin/",
            f"/admin/deployments/deployment/{quote(deployment.pk)}/change/",
            "/admin/deployments/template/add/",
            "/admin/auth/user/",
            "/admin/jsi18n/",
        ):
            answer = client.get(path)
            assert (answer.status_code, answer.headers.get("Location", "").split("?")[0]) == (302, "/admin/login/"), (
                path
            )
            assert client.post(path, FORM).status_code == 302
    assert not Template.objects.filter(slug="shop").exists()


def test_the_admin_login_accepts_operators_only(people: People) -> None:
    client = Client()
    client.post("/admin/login/", {"username": "owner", "password": PASSWORD, "next": "/admin/"})
    assert client.get("/admin/").status_code == 302
    client.post("/admin/login/", {"username": "operator", "password": PASSWORD, "next": "/admin/"})
    assert client.get("/admin/").status_code == 200


def test_staff_without_permissions_see_and_change_nothing(people: People, deployment: Deployment) -> None:
    get_user_model().objects.filter(pk=people.other.pk).update(is_staff=True)
    client = Client()
    client.force_login(people.other)
    for page in (*READ_ONLY, "template", "apitoken"):
        assert client.get(f"/admin/deployments/{page}/").status_code == 403
    assert save(client).status_code == 403


def test_a_user_who_is_no_longer_an_operator_is_refused_at_once(operator: Client, people: People) -> None:
    assert operator.get("/admin/").status_code == 200
    get_user_model().objects.filter(pk=people.operator.pk).update(is_staff=False)
    assert operator.get("/admin/").status_code == 302


def test_html_in_texts_is_shown_escaped(operator: Client, deployment: Deployment) -> None:
    text = "<script>alert(1)</script>"
    Deployment.objects.filter(pk=deployment.pk).update(message=text, error={"message": text})
    Stack.objects.filter(pk=deployment.stack_id).update(host=text)
    deployment.events.update(message=text, data={"lines": [text]})
    ExternalResource.objects.update(why=text)
    for page, id in ids(deployment).items():
        for path in (f"/admin/deployments/{page}/", f"/admin/deployments/{page}/{id}/change/"):
            assert "<script>alert" not in operator.get(path).content.decode()


def test_invalid_orders_and_filters_on_secrets_are_ignored_or_refused(operator: Client, deployment: Deployment) -> None:
    """A filter on a digest or a password hash would reveal it letter by letter."""
    for query in ({"o": "99"}, {"o": "-1.x"}, {"p": "x"}, {"q": "\0"}):
        assert operator.get("/admin/deployments/apitoken/", query).status_code in (200, 302)
    for path, query in (
        ("/admin/deployments/apitoken/", {"digest__startswith": "a"}),
        ("/admin/deployments/apitoken/", {"owner__password__startswith": "m"}),
        ("/admin/deployments/deployment/", {"requested_by__password__startswith": "m"}),
        ("/admin/deployments/deployment/", {"stack__owner__api_tokens__digest__startswith": "a"}),
        ("/admin/deployments/stack/", {"owner__password__startswith": "m"}),
    ):
        assert operator.get(path, query).status_code in (302, 400), path
