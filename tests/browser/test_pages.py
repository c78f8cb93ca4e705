"""A user at a browser. Each gate at Dokploy opens only once the page has shown the phase before it."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from ..gates import GATES, held
from ..processes import Portal

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect
expect.set_options(timeout=20_000)

SHOWN = {
    "creating_project": "Creating the project",
    "getting_environment": "Finding the environment",
    "creating_application": "Creating the application",
    "configuring_application": "Configuring the application",
    "creating_domain": "Creating the domain",
    "deploying": "Deploying",
    "verifying_health": "Checking health",
}

pytestmark = pytest.mark.browser


@pytest.fixture
def tab(browser: Any, portal: Portal) -> Iterator[Any]:
    """Yield a page that fails the test if its console shows an error."""
    yield from open_tab(browser, portal)


def open_tab(browser: Any, portal: Portal, **options: Any) -> Iterator[Any]:
    context = browser.new_context(base_url=f"http://localhost:{portal.port}", **options)
    context.set_default_timeout(15_000)
    tab = context.new_page()
    complaints: list[str] = []
    tab.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    yield tab
    context.close()
    assert complaints == []


def fill_in(tab: Any, name: str, template: str = "stack") -> None:
    tab.goto("/")
    tab.get_by_label("Name", exact=True).fill(name)
    tab.locator(f"label[for=template-{template}]").click()


def type_name(tab: Any, name: str, template: str = "stack") -> None:
    """Wait for the name check: leaving the page during one is an error in the console."""
    fill_in(tab, name, template)
    expect(tab.locator("#check")).to_contain_text(f"http://{name}.localhost")


def deploy(tab: Any, name: str, template: str = "stack") -> str:
    type_name(tab, name, template)
    return send(tab)


def send(tab: Any) -> str:
    tab.get_by_role("button", name="Deploy").click()
    tab.wait_for_url("**/deployments/dep_*")
    return str(tab.url.rpartition("/")[2])


def test_a_name_goes_live_before_the_persons_eyes(portal: Portal, tab: Any) -> None:
    type_name(tab, "before-eyes")
    expect(tab.locator("#check")).to_contain_text(f"http://before-eyes.localhost:{portal.port + 2}")
    expect(tab.locator("#check")).to_contain_text("Available")
    with held(portal, *GATES.values()):
        tab.get_by_role("button", name="Deploy").click()
        tab.wait_for_url("**/deployments/dep_*")
        tab.evaluate("window.sameDocument = true")
        for number, (phase, gate) in enumerate(GATES.items(), 1):
            expect(tab.locator("#deployment")).to_contain_text(f"Deploying, {number} of 7")
            expect(tab.locator("#deployment .phase.is-active")).to_contain_text(SHOWN[phase])
            expect(tab).to_have_title(f"({number}/7) Deploying · before-eyes")
            portal.open_gate(gate)
    expect(tab.get_by_role("heading", name="It is live")).to_be_visible()
    assert tab.evaluate("window.sameDocument") is True, "the page was loaded anew"
    with tab.context.expect_page() as opened:
        tab.get_by_role("link", name=re.compile("Open before-eyes")).click()
    expect(opened.value.locator("body")).to_contain_text("before-eyes")
    assert opened.value.url == f"http://before-eyes.localhost:{portal.port + 2}/"


def test_a_failure_says_why_and_what_became_of_it(portal: Portal, tab: Any) -> None:
    deploy(tab, "will-fail", "broken")
    card = tab.locator("#failure")
    expect(card).to_contain_text("You lost nothing, and the name “will-fail” is free again.")
    expect(card).to_contain_text("no such host")
    expect(card).to_be_focused()
    expect(tab.locator("#deployment")).to_contain_text("Undone, nothing left behind")
    expect(tab.locator("#deployment")).to_contain_text("Failed while deploying")
    assert tab.locator("progress").count() == 0, "an undo has no bar"
    card.get_by_role("link", name="REGISTRY_UNREACHABLE").click()
    expect(tab.get_by_role("heading", level=1)).to_contain_text("The registry cannot be reached")


def test_the_list_of_stacks_moves_by_itself(portal: Portal, tab: Any) -> None:
    with held(portal, "domain.create"):
        tab.goto("/")
        other = tab.context.new_page()
        deploy(other, "in-the-list")
        expect(tab.locator("#stacks")).to_contain_text("in-the-list")
        expect(tab.locator("#stacks")).to_contain_text("Deploying, 5 of 7")
    expect(tab.get_by_role("link", name=f"http://in-the-list.localhost:{portal.port + 2}")).to_be_visible()


def test_a_stack_is_removed_before_the_persons_eyes(portal: Portal, tab: Any) -> None:
    deploy(tab, "taken-away")
    tab.locator("#actions").get_by_role("link", name="Remove").click()
    button = tab.get_by_role("button", name="Remove taken-away")
    tab.get_by_label("Type taken-away to remove it").fill("taken-away")
    gates = {"domain.delete": "domain", "application.delete": "application", "project.remove": "project"}
    with held(portal, *gates):
        button.click()
        tab.wait_for_url("**/deployments/dep_*")
        for number, (gate, kind) in enumerate(gates.items(), 1):
            expect(tab.locator("#deployment")).to_contain_text(f"Removing, {number} of 3")
            expect(tab.locator("#deployment .phase.is-active")).to_contain_text(f"Removing the {kind}")
            portal.open_gate(gate)
    expect(tab.get_by_role("heading", name="It is gone")).to_be_visible()
    expect(tab.locator("#deployment")).to_contain_text("Removed, nothing left behind")
    assert tab.locator("#actions").count() == 0
    tab.goto("/")
    expect(tab.locator("#stack-taken-away")).to_contain_text("Removed")


def test_a_person_cancels_and_tries_again_on_the_page(portal: Portal, tab: Any) -> None:
    with held(portal, "pull"):
        deploy(tab, "changed-mind")
        expect(tab.locator("#deployment")).to_contain_text("Deploying, 6 of 7")
        tab.once("dialog", lambda dialog: dialog.accept())
        tab.get_by_role("link", name="Cancel").click()
        expect(tab.locator("#deployment")).to_contain_text("Cancelling")
    expect(tab.locator("#deployment[data-done]")).to_contain_text("Cancelled")
    expect(tab.locator("#failure")).to_contain_text("You lost nothing, and the name “changed-mind” is free")
    tab.get_by_role("link", name="Try again").click()
    expect(tab.get_by_role("heading", name="It is live")).to_be_visible()


def test_a_button_does_what_it_says_also_where_another_one_stood_before(portal: Portal, tab: Any) -> None:
    """During the deployment another link, which htmx would post, was in its place."""
    elsewhere = tab.context.new_page()
    elsewhere.goto("/")
    with held(portal, "job"):
        deploy(tab, "same-place")
        entry = elsewhere.locator("#stack-same-place")
        for page in (tab, entry):
            expect(page.get_by_role("link", name="Cancel")).to_be_visible()
    for page in (tab.locator("#actions"), entry):
        page.get_by_role("link", name="Deploy again").click()
    for page in (tab, elsewhere):
        page.wait_for_url("**/stacks/stk_*/deploy")
        expect(page.get_by_role("button", name="Deploy again")).to_be_visible()


def test_a_stale_pages_button_leads_to_the_sentence_that_says_why(portal: Portal, tab: Any) -> None:
    portal.turn(pull_error="no space left on device")
    portal.fault("application.delete", "error500", times=None)
    deploy(tab, "stale-page")
    again = tab.get_by_role("link", name="Finish cleanup")
    expect(again).to_be_visible()
    portal.switches.delete("faults")
    elsewhere = tab.context.new_page()
    elsewhere.goto("/")
    elsewhere.locator("#stack-stale-page").get_by_role("link", name="Finish cleanup").click()
    expect(elsewhere.get_by_role("heading", name="It is gone")).to_be_visible()
    again.click()
    expect(tab.get_by_text("“stale-page” has been removed.")).to_be_visible()


def test_without_a_socket_the_page_polls_and_says_so(portal: Portal, tab: Any) -> None:
    tab.context.route_web_socket("**/*", lambda socket: socket.close())
    with held(portal, "job"):
        deploy(tab, "polls-itself")
        expect(tab.locator("#chip")).to_have_text("Refreshing every 5 s")
    expect(tab.get_by_role("heading", name="It is live")).to_be_visible()


def test_losing_the_connection_never_looks_like_a_failure(own_portal: Any, browser: Any) -> None:
    portal = own_portal().start()
    tabs = open_tab(browser, portal)
    tab = next(tabs)
    with held(portal, "job"):
        deploy(tab, "restarted")
        expect(tab.locator("#chip")).to_have_text("Live")
        expect(tab.locator("#deployment")).to_contain_text("Deploying, 6 of 7")
        portal.kill()
        expect(tab.locator("#chip")).to_have_text("Reconnecting, the deployment goes on")
        expect(tab.locator("#deployment")).to_contain_text("Deploying, 6 of 7")
        assert tab.locator("#failure").count() == 0
    portal.start()
    expect(tab.get_by_role("heading", name="It is live")).to_be_visible()
    tab.context.close()


def test_it_works_without_javascript(portal: Portal, browser: Any) -> None:
    tabs = open_tab(browser, portal, java_script_enabled=False)
    tab = next(tabs)
    fill_in(tab, "no-javascript")
    send(tab)
    expect(tab.get_by_role("heading", name="It is live")).to_be_visible()
    tab.goto("/")
    tab.get_by_label("Name", exact=True).fill("Not A Name")
    tab.get_by_role("button", name="Deploy").click()
    expect(tab.get_by_role("alert").first).to_contain_text("lower-case")
    expect(tab.get_by_label("Name", exact=True)).to_have_value("Not A Name")
    tab.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_overflows_in_any_theme_at_any_width(portal: Portal, browser: Any, scheme: str, width: int) -> None:
    tabs = open_tab(browser, portal, color_scheme=scheme, viewport={"width": width, "height": 800})
    tab = next(tabs)
    deploy(tab, f"a-name-of-thirty-chars-{scheme[0]}-{width}", "broken")
    expect(tab.locator("#deployment[data-done] #failure")).to_be_visible()
    for address in [tab.url, "/", "/help/", "/tokens", "/login"]:
        tab.goto(address)
        assert tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), address
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(int(part) for part in re.findall(r"\d+", background)[:3]) > 3 * 128
    assert light == (scheme == "light")
    next(tabs, None)
