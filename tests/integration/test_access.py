"""Who gets in where, and what is tried at each door."""

import asyncio
import gc
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
from asgiref.sync import sync_to_async
from channels.testing import WebsocketCommunicator
from django.apps import apps
from django.contrib.auth import get_user_model
from django.core.cache import cache
from django.test import Client
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from deployments import identity as who
from deployments.models import ApiToken, Deployment, Stack, Template
from deployments.realtime import hub
from deployportal.asgi import application

from ..processes import Portal, until
from ..users import PASSWORD, QUICK, People, browser, end, new_token, operator, sign_in, socket, submit, token

CANARY = "canary-7d1f"
STRANGER = {"X-Forwarded-For": "192.0.2.7"}  # at the demo: somebody who is not its visitor


@pytest.fixture(autouse=True)
def forgetful(settings: Any) -> None:
    cache.clear()
    settings.PASSWORD_HASHERS = QUICK


@pytest.fixture(name="people")
def three_people(db: None) -> People:
    return People()


def signed_in(person: Any) -> Client:
    client = Client()
    client.force_login(person)
    return client


def contents() -> dict[str, list[Any]]:
    """Every row of every table."""
    return {
        model._meta.label: list(model._default_manager.order_by("pk").values())
        for model in apps.get_models(include_auto_created=True)
    }


# -- another's run -----------------------------------------------------------------------------------------------------

PAGES = ["/deployments/{}", "/deployments/{}/live"]
API = ["/api/status/{}", "/api/deployments/{}", "/api/deployments/{}/events", "/api/deployments/{}/events?wait=5"]


@pytest.mark.parametrize("path", PAGES)
def test_anothers_run_is_not_there_on_any_page(people: People, path: str) -> None:
    run = end(people.run(people.owner, "canary-shop"))
    for client in (signed_in(people.other), Client()):
        answer = client.get(path.format(run.pk))
        assert answer.status_code == 404
        assert b"canary-shop" not in answer.content
    for person in (people.owner, people.operator):
        assert b"canary-shop" in signed_in(person).get(path.format(run.pk)).content


@pytest.mark.django_db(transaction=True)  # who streams hands its connection back, which must not be the test's
@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
@pytest.mark.parametrize("path", API)
def test_anothers_run_is_not_there_for_any_script(client: Client, people: People, path: str, accept: str) -> None:
    run = end(people.run(people.owner, "canary-shop"))
    for header in (token(people.other), {}):
        answer = client.get(path.format(run.pk), headers={**header, "Accept": accept})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "NOT_FOUND")
        assert b"canary-shop" not in answer.content
    for person in (people.owner, people.operator):
        assert client.get(path.format(run.pk), headers={**token(person), "Accept": accept}).status_code == 200


@pytest.mark.parametrize("verb", ["deploy", "remove"])
def test_anothers_stack_is_not_there_to_be_changed(people: People, verb: str) -> None:
    run = end(people.run(people.owner, "shop"))
    page = f"/stacks/{run.stack_id}/{verb}"
    form = {"name": "shop", "template": people.template.slug}
    before = contents()
    other = signed_in(people.other)
    assert other.get(page).status_code == other.post(page, form).status_code == 404
    assert Client().post(page, form).status_code == 302  # to the sign-in
    assert Client().delete("/api/stacks/shop", headers=token(people.other)).status_code == 404
    assert Client(enforce_csrf_checks=True).post(page, form).status_code == 403
    owner = signed_in(people.owner)
    assert owner.get(page).status_code == 200
    after = contents()
    assert {name: rows for name, rows in after.items() if name.startswith("deployments.D")} == {
        name: rows for name, rows in before.items() if name.startswith("deployments.D")
    }
    assert owner.post(page, form).status_code == 302
    assert Deployment.objects.filter(stack=run.stack_id).count() == 2


@pytest.mark.parametrize("path", [*PAGES, *API])
def test_no_other_verb_opens_anothers_run(people: People, path: str) -> None:
    run = people.run(people.owner, "canary-shop")
    client = Client()
    header = token(people.other) if path.startswith("/api") else {}
    client.force_login(people.other)
    before = contents()
    for method in ("post", "put", "patch", "delete", "head", "options"):
        answer = getattr(client, method)(path.format(run.pk), headers=header)
        assert answer.status_code in (404, 405)
        assert b"canary-shop" not in answer.content
    after = contents()
    for rows in (before, after):
        for row in rows["deployments.ApiToken"]:
            del row["last_used_at"]
    assert before == after


@pytest.fixture(scope="module")
def owner(shared_portal: Portal) -> Iterator[httpx.Client]:
    """The demo's visitor."""
    with browser(shared_portal) as http:
        http.headers.update({"Origin": shared_portal.url})
        http.headers.update(new_token(http))
        yield http


@pytest.fixture(scope="module")
def other(shared_portal: Portal) -> Iterator[httpx.Client]:
    """Somebody whom the operator made an account, signed in."""
    boss = operator(shared_portal)
    made = {"username": "other", "usable_password": "true", "password1": PASSWORD, "password2": PASSWORD}
    assert submit(boss, "/admin/auth/user/add/", made).status_code == 302
    boss.close()
    with browser(shared_portal) as http:
        yield sign_in(http, "other", PASSWORD)


@pytest.fixture(scope="module")
def owned(shared_portal: Portal, owner: httpx.Client) -> str:
    """The id of a run of the visitor's that is over."""
    answer = owner.post("/api/deploy", json={"name": "doors-owned"})
    assert answer.status_code == 202, answer.text
    id = str(answer.json()["deploymentId"])
    until(lambda: owner.get(f"/api/deployments/{id}").json()["status"] == "success", 20)
    return id


@pytest.fixture(scope="module")
def opened(shared_portal: Portal) -> str:
    """The id of a run of nobody's that is over."""
    id = shared_portal.deploy("doors-open")
    shared_portal.finished(id)
    return id


def closing_code(opened: ClientConnection) -> int | None:
    """The code with which the other side closes; what comes before is an error."""
    with pytest.raises(ConnectionClosed) as closed:
        opened.recv(10)
    return closed.value.rcvd.code if closed.value.rcvd else None


def test_a_socket_shows_a_run_to_its_owner_and_to_nobody_else(
    shared_portal: Portal, owned: str, other: httpx.Client
) -> None:
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


def test_a_run_that_is_not_there_and_one_of_anothers_look_the_same_at_the_socket(
    shared_portal: Portal, other: httpx.Client
) -> None:
    with socket(shared_portal, f"/ws/deployments/dep_{'0' * 32}", other) as theirs:
        assert closing_code(theirs) == 4404


def test_an_address_that_no_socket_has_is_refused_quietly(shared_portal: Portal) -> None:
    with pytest.raises(InvalidStatus), socket(shared_portal, "/ws/unheard-of"):
        pass


# -- who only holds the id of an open run ------------------------------------------------------------------------------


@pytest.fixture
def open_run(people: People) -> Deployment:
    """A run of nobody's that failed, with a parameter, a log line and evidence."""
    parameter = {"key": "GREETING", "type": "text"}
    Template.objects.filter(pk=people.template.pk).update(parameters=[parameter])
    people.template.refresh_from_db()
    run = people.run(who.open_user(), "open-shop", GREETING=CANARY)
    return end(run, "failure", evidence=f"evidence-{CANARY}")


def test_who_holds_the_id_of_an_open_run_sees_how_it_goes_and_nothing_else(client: Client, open_run: Any) -> None:
    seen = [client.get(path.format(open_run.pk)) for path in PAGES]
    seen += [client.get(path.format(open_run.pk), headers={"Accept": "application/json"}) for path in API]
    for answer in seen:
        assert answer.status_code == 200
        assert CANARY not in answer.content.decode()
        assert "a line" not in answer.content.decode()
        assert "POST project.create" not in answer.content.decode()
    state = client.get(API[1].format(open_run.pk)).json()
    assert (state["status"], state["logs"]) == ("failure", [])
    assert list(state["error"]) == ["phase", "code", "message", "retryable", "help"]
    events = client.get(API[2].format(open_run.pk)).json()["events"]
    assert [(event["message"], event["data"]) for event in events if event["kind"] == "log"] == [("", {})]


def test_a_signed_in_holder_sees_no_more_and_an_operator_sees_all(people: People, open_run: Deployment) -> None:
    page = f"/deployments/{open_run.pk}"
    assert CANARY not in signed_in(people.other).get(page).content.decode()
    assert f"evidence-{CANARY}" in signed_in(people.operator).get(page).content.decode()


def test_an_open_run_is_never_listed(people: People, open_run: Deployment) -> None:
    for path in ("/", "/stacks"):
        for person in (people.owner, people.operator):
            assert b"open-shop" not in signed_in(person).get(path).content


def test_the_stream_and_the_socket_of_an_open_run_hold_no_log_line(shared_portal: Portal, opened: str) -> None:
    stream = list(shared_portal.stream(opened, **{"Last-Event-ID": "0"}))
    assert stream[-1]["event"] == "complete"
    with shared_portal.http.stream("GET", f"/api/status/{opened}?all=1", headers={"Last-Event-ID": "0"}) as every:
        data = [line for line in every.iter_lines() if line.startswith("data: ")]
    assert not any('"lines"' in line for line in data)
    with socket(shared_portal, f"/ws/deployments/{opened}", **STRANGER) as credential:
        frame = str(credential.recv(10))
    assert "doors-open" in frame
    assert 'class="log"' not in frame


def test_who_closes_the_portal_closes_the_open_runs_too(client: Client, open_run: Any, settings: Any) -> None:
    settings.PORTAL_OPEN = False
    assert [client.get(path.format(open_run.pk)).status_code for path in PAGES] == [404, 404]
    assert [client.get(path.format(open_run.pk)).status_code for path in API] == [401] * 4


# -- a closed portal, with the lowest of caps --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def closed_portal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Portal]:
    closed = Portal(tmp_path_factory.mktemp("closed"), PORTAL_OPEN=0, PORTAL_VIEWERS_EACH=1, SIMULATOR_START_SECONDS=0)
    yield closed.start()
    closed.close()


def test_a_closed_portal_refuses_who_did_not_sign_in_at_every_door(closed_portal: Portal) -> None:
    http = closed_portal.http
    id = f"dep_{'0' * 32}"
    answers = [http.post("/api/deploy", json={"name": "shop"}), http.get("/api/check/shop")]
    answers += [http.get(path.format(id)) for path in API]
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "NOT_SIGNED_IN")
    for path in ("/", "/tokens", "/check?name=shop", "/stacks"):
        answer = http.get(path, headers=STRANGER)
        assert (answer.status_code, answer.headers["location"].split("?")[0]) == (302, "/login")
    assert http.get(PAGES[0].format(id), headers=STRANGER).status_code == 404
    for path in (f"/ws/deployments/{id}", "/ws/stacks"):
        with socket(closed_portal, path, **STRANGER) as refused:
            assert closing_code(refused) == 4404


def test_one_viewer_too_many_is_told_to_come_back(closed_portal: Portal) -> None:
    """The cap is one for each person and address; whoever goes makes room."""
    with browser(closed_portal) as http:
        http.headers.update(new_token(http))
        closed_portal.close_gate("project.all")
        started = http.post("/api/deploy", json={"name": "doors-cap"}).json()
        with http.stream("GET", started["statusUrl"]) as stream:
            lines = stream.iter_lines()
            assert next(lines) == "event: progress"
            refused = http.get(started["statusUrl"])
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "QUOTA")
            assert int(refused.headers["Retry-After"]) > 0
            waiting = http.get(started["eventsUrl"], params={"after": 1000, "wait": 5})
            assert waiting.status_code == 429
        until(lambda: _streams(http, started["statusUrl"]))
        page = f"/ws/deployments/{started['deploymentId']}"
        with socket(closed_portal, page) as first:
            assert "doors-cap" in str(first.recv(10))
            with socket(closed_portal, page) as second:
                assert closing_code(second) == 3013
        closed_portal.open_gate("project.all")


def _streams(http: httpx.Client, path: str) -> bool:
    with http.stream("GET", path) as answer:
        return answer.status_code == 200


async def test_a_stream_that_nobody_reads_gives_its_place_back(transactional_db: None, async_client: Any) -> None:
    """The client is gone between the view's answer and the first byte."""
    made = await sync_to_async(People)()
    run = await sync_to_async(made.run)(made.owner, "shop")
    header = await sync_to_async(token)(made.owner)
    answer = await async_client.get(f"/api/status/{run.pk}", headers=header)
    viewers = hub.Hub.current()._viewers
    assert viewers.total() == 1
    del answer
    await sync_to_async(gc.collect)()  # in the thread that had it last
    async with asyncio.timeout(5):
        while viewers.total():
            await asyncio.sleep(0)


# -- whose token, whose cookie -----------------------------------------------------------------------------------------


def test_a_session_is_nobody_at_the_api(people: People, settings: Any) -> None:
    run = end(people.run(people.owner, "shop"))
    client = signed_in(people.owner)
    assert client.get(f"/api/deployments/{run.pk}").status_code == 404
    answer = client.post("/api/deploy", '{"name": "shop2"}', content_type="application/json")
    assert Deployment.objects.get(pk=answer.json()["deploymentId"]).stack.owner.username == "open"
    settings.PORTAL_OPEN = False
    assert client.get(f"/api/deployments/{run.pk}").status_code == 401
    assert client.post("/api/deploy", '{"name": "shop3"}', content_type="application/json").status_code == 401


def test_a_token_is_nobody_on_pages(client: Client, people: People) -> None:
    run = end(people.run(people.owner, "shop"))
    header = token(people.owner)
    assert client.get(f"/deployments/{run.pk}", headers=header).status_code == 404
    assert client.get("/", headers=header).status_code == 302


FOREIGN = [
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "http://testserver.evil.example"},
    {"Origin": "http://eviltestserver"},
    {"Origin": "https://testserver"},
    {"Origin": "http://testserver:81"},
    {"Origin": "http://shop.localhost:3002"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Origin": "http://testserver", "Sec-Fetch-Site": "cross-site"},
]


@pytest.mark.parametrize("headers", FOREIGN)
def test_another_site_cannot_use_the_api_through_somebodys_browser(
    client: Client, people: People, headers: dict[str, str]
) -> None:
    run = end(people.run(people.owner, "shop"))
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "application/json"):
        answer = client.post("/api/deploy", '{"name": "shop2"}', content_type=content_type, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "FORBIDDEN")
    reading = client.get(f"/api/deployments/{run.pk}", headers={**token(people.owner), **headers})
    assert reading.status_code == 403
    assert Stack.objects.count() == 1


@pytest.mark.parametrize("headers", [{"Origin": "http://testserver"}, {"Sec-Fetch-Site": "same-origin"}, {}])
def test_the_portals_own_pages_may_use_the_api(client: Client, people: People, headers: dict[str, str]) -> None:
    answer = client.post("/api/deploy", '{"name": "shop"}', content_type="application/json", headers=headers)
    assert answer.status_code == 202
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_no_form_is_taken_without_its_token(people: People) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(people.owner)
    before = contents()
    forms: dict[str, dict[str, str]] = {
        "/": {"name": "shop", "template": "stack"},
        "/login": {"username": "other", "password": PASSWORD},
        "/logout": {},
        "/tokens": {"label": "x"},
    }
    for path, data in forms.items():
        for headers in ({}, {"HX-Request": "true"}, {"X-CSRFToken": "x" * 32}):
            assert client.post(path, data, headers=headers).status_code == 403
    assert contents() == before
    assert client.get("/tokens").status_code == 200, "still signed in"


def test_a_form_with_the_token_in_htmxs_header_is_taken(people: People) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(people.owner)
    found = re.search(r"hx-headers='\{\"X-CSRFToken\": \"(\w+)\"\}'", client.get("/").content.decode())
    assert found is not None
    answer = client.post("/", {"name": "shop", "template": "stack"}, headers={"X-CSRFToken": found[1]})
    assert answer.status_code == 302
    assert Stack.objects.get().owner == people.owner


def test_a_foreign_origin_is_refused_with_the_token_too(people: People) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(people.owner)
    client.get("/")
    given = {"name": "shop", "template": "stack", "csrfmiddlewaretoken": client.cookies["portal_csrf"].value}
    assert client.post("/", given, headers={"Origin": "http://shop.localhost:3002"}).status_code == 403
    assert not Stack.objects.exists()


GETS = [
    "/",
    "/?name=shop2",
    "/check?name=shop2",
    "/stacks",
    "/tokens",
    "/tokens?revoke=1&label=x",
    "/deployments/{id}",
    "/deployments/{id}/live",
    "/help/",
    "/help/CANCELLED",
    "/login",
    "/logout",
    "/api/deploy?name=shop2",
    "/api/status/{id}",
    "/api/deployments/{id}",
    "/api/deployments/{id}/events",
    "/api/check/shop2",
    "/admin/",
    "/admin/deployments/stack/",
    "/admin/deployments/deployment/{id}/change/",
    "/admin/deployments/template/",
]


def test_reading_never_writes(people: People, settings: Any) -> None:
    settings.DOKPLOY_URL = "http://127.0.0.1:1"  # nobody there
    who.open_user()
    run = end(people.run(people.operator, "shop"))
    client, header = signed_in(people.operator), token(people.operator)
    client.get("/api/check/shop2", headers=header)  # a token's last use is noted once a minute
    before = contents()
    for path in GETS:
        client.get(path.format(id=run.pk), headers={**header, "Accept": "application/json"})
        client.head(path.format(id=run.pk), headers={**header, "Accept": "application/json"})
        assert contents() == before, path


# -- sockets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "http://127.0.0.1",
        "http://127.0.0.1:{other}",
        "https://127.0.0.1:{port}",
        "http://localhost:{port}",
        "http://evil.localhost:{port}",
        "http://127.0.0.1:{port}.evil.example",
        "http://127.0.0.1:{port}@evil.example",
        "http://shop.localhost:{other}",
        "null",
        "",
        None,
    ],
)
def test_a_socket_from_elsewhere_is_refused(shared_portal: Portal, origin: str | None) -> None:
    port = shared_portal.port
    headers = {} if origin is None else {"Origin": origin.format(port=port, other=port + 2)}
    with pytest.raises(InvalidStatus) as refused:
        connect(f"ws://127.0.0.1:{port}/ws/stacks", additional_headers=headers, proxy=None)
    assert refused.value.response.status_code in (400, 403)


@pytest.mark.parametrize(
    "host", ["evil.localhost:{port}", "evil.example", "127.0.0.1:{port}@evil.example", "[", "[::1"]
)
async def test_a_socket_whose_host_is_not_ours_is_refused(host: str) -> None:
    """Also when Origin and Host agree: a name of the attacker's that leads here."""
    own = host.format(port=3000)
    headers = [(b"host", own.encode()), (b"origin", f"http://{own}".encode())]
    communicator = WebsocketCommunicator(application, "/ws/stacks", headers=headers)
    accepted, code = await communicator.connect(10)
    assert (accepted, code) == (False, 4403)


def test_what_a_page_sends_is_not_looked_at(shared_portal: Portal, owner: httpx.Client, owned: str) -> None:
    before = owner.get(f"/api/deployments/{owned}").json()
    with socket(shared_portal, f"/ws/deployments/{owned}") as mine:
        mine.recv(10)
        for frame in ('{"type": "wake"}', '{"action": "cancel"}', "x" * 60_000, b"\xff\xfe", ""):
            mine.send(frame)
        mine.ping().wait(10)
        with pytest.raises(TimeoutError):
            mine.recv(0)
    assert owner.get(f"/api/deployments/{owned}").json() == before


def test_a_frame_that_is_too_large_closes_the_socket(shared_portal: Portal, owned: str) -> None:
    with socket(shared_portal, f"/ws/deployments/{owned}") as mine:
        mine.recv(10)
        with suppress(ConnectionClosed):  # the server does not read to the end of the frame
            mine.send("x" * 2_000_000)
        with pytest.raises(ConnectionClosed):
            mine.recv(10)
    assert shared_portal.http.get("/help/").status_code == 200


@pytest.mark.parametrize("ends", ["logout", "deactivated", "role"])
async def test_a_socket_ends_soon_after_its_person_may_not_see_it_any_more(
    transactional_db: None, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    monkeypatch.setattr(hub, "CREDENTIAL_CHECK_SECONDS", 0.05)

    def begin() -> tuple[Any, Any, str]:
        made = People()
        client = signed_in(made.operator)
        return client, end(made.run(made.owner, "shop")), client.cookies["portal_session"].value

    client, run, cookie = await sync_to_async(begin)()
    headers = [
        (b"host", b"localhost:3000"),
        (b"origin", b"http://localhost:3000"),
        (b"cookie", f"portal_session={cookie}".encode()),
    ]
    communicator = WebsocketCommunicator(application, f"/ws/deployments/{run.pk}", headers=headers)
    assert (await communicator.connect(10))[0]
    assert "shop" in await communicator.receive_from(5)
    user = get_user_model().objects.filter(username="operator")
    if ends == "logout":
        await sync_to_async(client.post)("/logout")
    elif ends == "deactivated":
        await user.aupdate(is_active=False)
    else:
        await user.aupdate(is_staff=False)
    closing = await communicator.receive_output(5)
    assert (closing["type"], closing["code"]) == ("websocket.close", 4401)
    await communicator.disconnect()


async def test_a_stream_ends_soon_after_its_token_is_revoked(
    transactional_db: None, monkeypatch: pytest.MonkeyPatch, async_client: Any
) -> None:
    monkeypatch.setattr(hub, "CREDENTIAL_CHECK_SECONDS", 0.05)
    made = await sync_to_async(People)()
    run = await sync_to_async(made.run)(made.owner, "shop")
    header = await sync_to_async(token)(made.owner)
    answer = await async_client.get(f"/api/status/{run.pk}", headers=header)
    lines = aiter(answer)
    assert b"event: progress" in await anext(lines)
    await ApiToken.objects.all().adelete()
    async with asyncio.timeout(5):
        assert [line async for line in lines] == []


# -- the demo's visitor ------------------------------------------------------------------------------------------------


def visiting(host: str = "localhost:3000", peer: str = "127.0.0.1", **headers: str) -> Any:
    return Client(REMOTE_ADDR=peer, HTTP_HOST=host).get("/stacks", headers=headers)


@pytest.mark.parametrize("host", ["localhost", "localhost:3000", "127.0.0.1:3000", "[::1]", "[::1]:3000"])
@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.9.10", "::1"])
def test_a_visitor_from_this_machine_is_let_in_to_the_demo(db: None, host: str, peer: str) -> None:
    assert visiting(host, peer).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Forwarded": "for=192.0.2.7"},
        {"Via": "1.1 proxy"},
        {"X-Forwarded-For": "127.0.0.1"},
        {"X-Forwarded-For": ""},
        {"X-Forwarded-Host": "localhost"},
        {"X-Forwarded-Proto": "https"},
        {"X-Forwarded-Anything": "1"},
        {"X-Real-IP": "127.0.0.1"},
    ],
)
def test_a_forwarded_request_is_a_strangers(db: None, headers: dict[str, str]) -> None:
    assert visiting(**headers).status_code == 302


@pytest.mark.parametrize(("host", "peer"), [("localhost", "192.0.2.7"), ("localhost", "::2"), ("localhost", "")])
def test_a_peer_from_elsewhere_is_a_stranger(db: None, host: str, peer: str) -> None:
    assert visiting(host, peer).status_code == 302


@pytest.mark.parametrize("host", ["testserver", "portal.example.org", "localhost.example.org", "evil.localhost"])
def test_a_name_that_is_not_this_machines_is_a_strangers(db: None, settings: Any, host: str) -> None:
    settings.ALLOWED_HOSTS = ["*"]
    assert visiting(host).status_code == 302


def test_a_host_that_is_not_allowed_is_an_error_without_a_trace(db: None) -> None:
    answer = visiting("evil.example")
    assert answer.status_code == 400
    assert b"Traceback" not in answer.content


def test_outside_the_demo_nobody_is_the_visitor(db: None, settings: Any) -> None:
    settings.DEMO = False
    assert visiting().status_code == 302
    assert not get_user_model().objects.filter(username="visitor").exists()


def test_the_visitor_is_no_operator_and_never_in_the_admin_panel(db: None) -> None:
    client = Client(REMOTE_ADDR="127.0.0.1", HTTP_HOST="localhost:3000")
    assert client.get("/stacks").status_code == 200
    visitor = get_user_model().objects.get(username="visitor")
    assert (visitor.is_staff, visitor.is_superuser, visitor.has_usable_password()) == (False, False, False)
    visitor.is_staff = visitor.is_superuser = True  # even then
    visitor.save()
    for path in ("/admin/", "/admin/deployments/stack/", "/admin/auth/user/add/"):
        answer = client.get(path)
        assert (answer.status_code, answer.headers["Location"].split("?")[0]) == (302, "/admin/login/")


def test_nobody_signs_in_as_the_visitor_or_as_the_owner_of_open_runs(client: Client, people: People) -> None:
    who.open_user()
    who.demo_user()
    for username in ("open", "visitor"):
        for password in ("!", username):
            assert client.post("/login", {"username": username, "password": password}).status_code == 200
    assert "portal_session" not in client.cookies


# -- headers and pages -------------------------------------------------------------------------------------------------


def test_every_answer_carries_the_headers_that_protect_it(shared_portal: Portal, owner: httpx.Client) -> None:
    answers = [
        owner.get("/"),
        owner.get("/help/"),
        owner.get("/login"),
        owner.get("/admin/login/"),
        owner.get("/unheard-of"),
        owner.get("/api/deployments/unheard-of"),
        owner.post("/tokens"),
        owner.get("/", headers={"Host": "evil.example"}),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 404, 404, 403, 400]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert "no-store" in answer.headers["cache-control"] or "no-cache" in answer.headers["cache-control"]
    for answer in (owner.get("/static/portal.css"), owner.post("/api/deploy", content=b" " * 70_000)):
        assert answer.headers["x-content-type-options"] == "nosniff"
    server = owner.get("/").headers.get("server", "").lower()
    assert not re.search(r"\d", server), "no version of the server's"


def test_a_cookie_is_for_this_portal_alone(client: Client, people: People) -> None:
    client.post("/login", {"username": "owner", "password": PASSWORD})
    cookie = client.cookies["portal_session"]
    assert (cookie["httponly"], cookie["samesite"], cookie["domain"]) == (True, "Lax", "")


INLINE = re.compile(
    r"\sstyle\s*=|<style|<script(?![^>]*\ssrc=)[^>]*>|\son[a-z]+\s*=|javascript:|hx-on|hx-vals=.js|<base", re.IGNORECASE
)


def test_no_page_needs_what_the_policy_forbids(people: People, open_run: Deployment) -> None:
    live = end(people.run(people.owner, "shop"))
    waiting = people.run(people.owner, "shop2")
    client = signed_in(people.owner)
    pages = [
        client.get("/"),
        client.post("/", {"name": "?"}),
        *(client.get(PAGES[0].format(run.pk)) for run in (live, waiting, open_run)),
        client.post("/tokens", {"label": "x"}),
        client.get("/help/"),
        client.get("/help/CANCELLED"),
        client.get("/unheard-of"),
        Client().get("/login"),
        Client(enforce_csrf_checks=True).post("/login"),
    ]
    assert [page.status_code for page in pages] == [200, 400, 200, 200, 200, 200, 200, 200, 404, 200, 403]
    for page in pages:
        assert not INLINE.findall(page.content.decode())


def test_an_error_of_the_portals_own_shows_nothing_of_it(people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database is asked for a table that is gone."""
    client = signed_in(people.owner)
    client.raise_request_exception = False
    run = people.run(people.owner, "shop")
    Stack.objects.filter(pk=run.stack_id).update(url="http://[")  # no address at all
    Deployment.objects.filter(pk=run.pk).update(error={"canary": CANARY})
    for path in (PAGES[0], API[1]):
        answer = client.get(path.format(run.pk), headers=token(people.owner))
        assert answer.status_code == 500
        assert CANARY not in answer.content.decode()
        assert "Traceback" not in answer.content.decode()
        assert "content-security-policy" in answer.headers


@pytest.mark.parametrize(
    "next",
    [
        "https://evil.example/",
        "//evil.example/",
        "/\\evil.example",
        "\\\\evil.example",
        "javascript:alert(1)",
        "///evil",
    ],
)
def test_signing_in_leads_nowhere_else(client: Client, people: People, next: str) -> None:
    for path in ("/login", "/admin/login/"):
        given = {"username": "operator", "password": PASSWORD, "next": next}
        answer = client.post(f"{path}?next={next}", given)
        assert answer.status_code == 302
        assert answer.headers["Location"] in ("/", "/admin/")
    out = client.post("/logout", {"next": next})
    assert out.headers["Location"] == "/"


# -- addresses ---------------------------------------------------------------------------------------------------------


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
def test_an_address_is_believed_for_as_many_hops_as_there_are_proxies(
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
    assert attempt(PASSWORD) == 200, "the right one comes too late"
    assert attempt(PASSWORD, username="OWNER") == 200
    assert attempt(PASSWORD, path="/admin/login/") == 200
    page = Client(REMOTE_ADDR="192.0.2.7").post("/login", {"username": "owner", "password": PASSWORD})
    assert "Too many wrong passwords" in page.content.decode()
    assert attempt(PASSWORD, peer="192.0.2.8") == 302, "the true owner is elsewhere"
    assert attempt(PASSWORD, username="other") == 302


def test_a_flood_of_made_up_names_does_not_make_a_lock_forgotten(people: People) -> None:
    client = Client()
    for _ in range(5):
        client.post("/login", {"username": "owner", "password": "wrong"})
    for number in range(1000):
        cache.add(f"login:made-up-{number}", 1)
    assert client.post("/login", {"username": "owner", "password": PASSWORD}).status_code == 200


# -- what is typed -----------------------------------------------------------------------------------------------------

EXTRA: dict[str, Any] = {
    "owner": 1,
    "owner_id": 1,
    "status": "success",
    "state": "live",
    "phase": "completed",
    "progress": 100,
    "lease_owner": "evil",
    "lease_token": 99,
    "requested_by": 1,
    "via": "command",
    "id": "dep_" + "0" * 32,
    "deploymentId": "dep_" + "0" * 32,
    "url": "http://evil.example",
    "host": "evil.example",
    "image": "evil.example/image",
    "is_staff": True,
}


def test_fields_that_nobody_asked_for_change_nothing(people: People) -> None:
    client = signed_in(people.owner)
    assert client.post("/", {"name": "shop", "template": "stack", **EXTRA}).status_code == 302
    body = {"name": "shop2", "template": "stack", **EXTRA}
    assert client.post("/api/deploy", body, content_type="application/json").status_code == 202
    for stack, owner in ((Stack.objects.get(name="shop"), "owner"), (Stack.objects.get(name="shop2"), "open")):
        assert (stack.owner.username, stack.state) == (owner, "pending")
        assert stack.host == f"{stack.name}.localhost"
        run = stack.deployments.get()
        assert (run.status, run.phase, run.progress, run.lease_owner, run.lease_token) == (
            "in_progress",
            "initializing",
            0,
            "",
            0,
        )
        assert (run.requested_by.username, run.spec["image"]) == (owner, people.template.image)
        assert run.pk != EXTRA["id"]
    people.owner.refresh_from_db()
    assert not people.owner.is_staff


def test_a_person_revokes_their_own_tokens_only(people: People) -> None:
    mine, theirs = (ApiToken.issue(person, "x")[0] for person in (people.owner, people.other))
    client = signed_in(people.owner)
    for given in (str(theirs.pk), "x", "-1", "9" * 40, "٣", "1 OR 1=1"):
        assert client.post("/tokens", {"revoke": given}).status_code == 302
    assert set(ApiToken.objects.all()) == {mine, theirs}
    client.post("/tokens", {"revoke": str(mine.pk)})
    assert set(ApiToken.objects.all()) == {theirs}


EVIL = [
    "<script>alert(1)</script>",
    "'><img src=x onerror=alert(1)>",
    "{{7*7}}",
    "${7*7}",
    "${{project.DATABASE_URL}}",
    "{% debug %}",
    "a; rm -rf /",
    "$(id)",
    "`id`",
    "a\r\nSet-Cookie: x=1",
    "../../etc",
    "shop\u202egnp",
    "ѕhop",
    "shop\u200b",
    "ｓｈｏｐ",
    "shop.evil.example",
    "shop%0aevil",
    "' OR 1=1 --",
]


@pytest.mark.parametrize("text", EVIL)
def test_a_name_with_tricks_in_it_is_refused_and_shown_escaped(people: People, settings: Any, text: str) -> None:
    settings.DOKPLOY_URL = "http://127.0.0.1:1"
    who.open_user()
    client = signed_in(people.owner)
    before = contents()
    pages = [
        client.post("/", {"name": text, "template": "stack"}),
        client.get("/", {"name": text}),
        client.get("/check", {"name": text}),
        client.post("/", {"name": "fine", "template": text}),
        Client().post("/login", {"username": text, "password": "x"}),
    ]
    answer = client.post("/api/deploy", {"name": text}, content_type="application/json")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "INVALID_NAME")
    assert contents() == before
    assert [page.status_code for page in pages] == [400, 200, 200, 400, 200]
    for page in pages:
        shown = page.content.decode()
        assert "<script>alert" not in shown
        assert "<img" not in shown
        assert "49" not in re.sub(r'"[\w-]{20,}"|\d{10}\.\d+', "", shown) or "7*7" not in text
        assert "Set-Cookie" not in page.headers or "x=1" not in page.headers["Set-Cookie"]


@pytest.mark.parametrize("text", [*EVIL[:4], *EVIL[5:9]])
def test_what_is_typed_or_said_by_others_is_shown_escaped(people: People, text: str) -> None:
    """Parameters, labels, and Dokploy's own texts in messages, logs and errors."""
    parameter = {"key": "GREETING", "label": text, "help": text, "type": "text", "default": "x"}
    Template.objects.filter(pk=people.template.pk).update(parameters=[parameter], name=text[:60], description=text)
    people.template.refresh_from_db()
    client = signed_in(people.owner)
    answer = client.post("/", {"name": "shop", "template": "stack", "stack-GREETING": text})
    assert answer.status_code == 302
    run = Deployment.objects.get()
    assert dict(run.stack_spec().env) == {"GREETING": text}, "unchanged"
    end(run, "failure", message=text, evidence=text)
    for path in ("/", f"/deployments/{run.pk}", f"/deployments/{run.pk}/live", "/stacks"):
        shown = client.get(path).content.decode()
        assert "<script>alert" not in shown
        assert "<img" not in shown
        assert not INLINE.findall(shown.replace("&#x27;", "").replace("&gt;&lt;img src=x onerror=alert(1)&gt;", ""))
    ApiToken.issue(people.owner, text)
    assert "<script>alert" not in client.get("/tokens").content.decode()


def test_a_label_with_a_nul_is_cleaned(people: People) -> None:
    client = signed_in(people.owner)
    assert client.post("/tokens", {"label": "a\0b\r\nc"}).status_code == 200
    assert ApiToken.objects.get().label == "abc"


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"ALLOWED_HOSTS": ["localhost", "panel.apps.example.net"]}, "panel"),
        ({"DOKPLOY_URL": "https://ploy.apps.example.net"}, "ploy"),
        ({"STACK_RESERVED_NAMES": ["billing"]}, "billing"),
        ({}, "dokploy"),
        ({}, "traefik"),
    ],
)
def test_the_portals_own_and_dokploys_own_names_are_reserved(
    people: People, settings: Any, changed: dict[str, Any], name: str
) -> None:
    settings.STACK_DOMAIN_SUFFIX, settings.STACK_URL = "apps.example.net", "https://{name}.apps.example.net"
    for setting, value in changed.items():
        setattr(settings, setting, value)
    client = Client(HTTP_HOST="localhost", REMOTE_ADDR="192.0.2.7")
    answer = client.post("/api/deploy", {"name": name}, content_type="application/json")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "INVALID_NAME")
