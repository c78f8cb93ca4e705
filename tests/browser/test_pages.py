"""The pages in Chromium. Dokploy continues only after the page has shown the current step."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from deployments.engine.recipe import TITLES

from ..gates import GATES, held
from ..processes import Portal

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect
expect.set_options(timeout=20_000)

pytestmark = pytest.mark.browser


@pytest.fixture
def tab(browser: Any, portal: Portal) -> Iterator[Any]:
    """Yield a browser tab that fails the test if its console shows an error or a warning."""
    yield from open_tab(browser, portal)


def open_tab(browser: Any, portal: Portal, **options: Any) -> Iterator[Any]:
    context = browser.new_context(base_url=f"http://localhost:{portal.port}", **options)
    context.set_default_timeout(15_000)
    tab = context.new_page()
    problems: list[str] = []
    tab.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: problems.append(str(error)))
    yield tab
    context.close()
    assert problems == []


def fill_in(tab: Any, name: str, template: str = "stack") -> None:
    tab.goto("/")
    tab.get_by_label("Name", exact=True).fill(name)
    tab.locator(f"label[for=template-{template}]").click()


def type_name(tab: Any, name: str, template: str = "stack") -> None:
    """Fill in the form and wait for the name check. The next page would abort it, which is an error in the console."""
    fill_in(tab, name, template)
    expect(tab.locator("#check")).to_contain_text(f"http://{name}.localhost")


def deploy(tab: Any, name: str, template: str = "stack") -> str:
    type_name(tab, name, template)
    return send(tab)


def send(tab: Any) -> str:
    tab.get_by_role("button", name="Deploy").click()
    tab.wait_for_url("**/deployments/dep_*")
    return str(tab.url.rpartition("/")[2])


def test_every_phase_is_shown_until_the_stack_is_live(portal: Portal, tab: Any) -> None:
    type_name(tab, "watched-live")
    expect(tab.locator("#check")).to_contain_text(f"http://watched-live.localhost:{portal.port + 2}")
    expect(tab.locator("#check")).to_contain_text("Available")
    with held(portal, *GATES.values()):
        tab.get_by_role("button", name="Deploy").click()
        tab.wait_for_url("**/deployments/dep_*")
        tab.evaluate("window.sameDocument = true")
        for number, (phase, gate) in enumerate(GATES.items(), 1):
            expect(tab.locator("#deployment")).to_contain_text(f"Deploying, {number} of 7")
            expect(tab.locator("#deployment .phase.is-active")).to_contain_text(TITLES[phase])
            expect(tab).to_have_title(f"({number}/7) Deploying · watched-live")
            portal.open_gate(gate)
    expect(tab.get_by_role("heading", name="The stack is live")).to_be_visible()
    assert tab.evaluate("window.sameDocument") is True, "the page must not be reloaded"
    with tab.context.expect_page() as opened:
        tab.get_by_role("link", name=re.compile("Open watched-live")).click()
    expect(opened.value.locator("body")).to_contain_text("watched-live")
    assert opened.value.url == f"http://watched-live.localhost:{portal.port + 2}/"


def test_a_failure_says_why_and_what_is_left(portal: Portal, tab: Any) -> None:
    deploy(tab, "will-fail", "broken")
    card = tab.locator("#failure")
    expect(card).to_contain_text("You lost nothing, and the name “will-fail” is free again.")
    expect(card).to_contain_text("no such host")
    expect(card).to_be_focused()
    expect(tab.locator("#deployment")).to_contain_text("Undone, nothing left behind")
    expect(tab.locator("#deployment")).to_contain_text("Failed while deploying")
    assert tab.locator("progress").count() == 0, "an undo shows no progress bar"
    card.get_by_role("link", name="REGISTRY_UNREACHABLE").click()
    expect(tab.get_by_role("heading", level=1)).to_contain_text("The registry cannot be reached")


def test_the_list_of_stacks_updates_itself(portal: Portal, tab: Any) -> None:
    with held(portal, "domain.create"):
        tab.goto("/")
        other = tab.context.new_page()
        deploy(other, "in-the-list")
        expect(tab.locator("#stacks")).to_contain_text("in-the-list")
        expect(tab.locator("#stacks")).to_contain_text("Deploying, 5 of 7")
    expect(tab.get_by_role("link", name=f"http://in-the-list.localhost:{portal.port + 2}")).to_be_visible()


def test_every_phase_of_a_removal_is_shown(portal: Portal, tab: Any) -> None:
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
    expect(tab.get_by_role("heading", name="The stack was removed")).to_be_visible()
    expect(tab.locator("#deployment")).to_contain_text("Removed, nothing left behind")
    assert tab.locator("#actions").count() == 0
    tab.goto("/")
    expect(tab.locator("#stack-taken-away")).to_contain_text("Removed")


def test_a_user_cancels_and_retries_on_the_page(portal: Portal, tab: Any) -> None:
    with held(portal, "pull"):
        deploy(tab, "changed-mind")
        expect(tab.locator("#deployment")).to_contain_text("Deploying, 6 of 7")
        tab.once("dialog", lambda dialog: dialog.accept())
        tab.get_by_role("link", name="Cancel").click()
        expect(tab.locator("#deployment")).to_contain_text("Cancelling")
    expect(tab.locator("#deployment[data-done]")).to_contain_text("Cancelled")
    expect(tab.locator("#failure")).to_contain_text("You lost nothing, and the name “changed-mind” is free")
    tab.get_by_role("link", name="Try again").click()
    expect(tab.get_by_role("heading", name="The stack is live")).to_be_visible()


def test_a_link_that_replaces_another_one_does_not_inherit_its_action(portal: Portal, tab: Any) -> None:
    """The new link stands where a link that htmx posts stood while the deployment was in progress."""
    elsewhere = tab.context.new_page()
    elsewhere.goto("/")
    with held(portal, "job"):
        deploy(tab, "same-place")
        entry = elsewhere.locator("#stack-same-place")
        for page in (tab, entry):
            expect(page.get_by_role("link", name="Cancel")).to_be_visible()
    for page in (tab.locator("#actions"), entry):
        page.get_by_role("link", name="Change settings and deploy").click()
    for page in (tab, elsewhere):
        page.wait_for_url("**/stacks/stk_*/deploy")
        expect(page.get_by_role("button", name="Deploy")).to_be_visible()


def test_an_outdated_button_leads_to_the_reason_why_it_cannot_work(portal: Portal, tab: Any) -> None:
    portal.turn(pull_error="no space left on device")
    portal.fault("application.delete", "error500", times=None)
    deploy(tab, "stale-page")
    again = tab.get_by_role("link", name="Finish cleanup")
    expect(again).to_be_visible()
    portal.switches.delete("faults")
    elsewhere = tab.context.new_page()
    elsewhere.goto("/")
    elsewhere.locator("#stack-stale-page").get_by_role("link", name="Finish cleanup").click()
    expect(elsewhere.get_by_role("heading", name="The stack was removed")).to_be_visible()
    again.click()
    expect(tab.get_by_text("“stale-page” has been removed.")).to_be_visible()


def test_without_a_socket_the_page_polls_and_says_so(portal: Portal, tab: Any) -> None:
    tab.context.route_web_socket("**/*", lambda socket: socket.close())
    with held(portal, "job"):
        deploy(tab, "polls-itself")
        expect(tab.locator("#chip")).to_have_text("Refreshing every 5 s")
    expect(tab.get_by_role("heading", name="The stack is live")).to_be_visible()


def test_a_lost_connection_never_looks_like_a_failure(own_portal: Any, browser: Any) -> None:
    portal = own_portal().start()
    tabs = open_tab(browser, portal)
    tab = next(tabs)
    with held(portal, "job"):
        deploy(tab, "restarted")
        expect(tab.locator("#chip")).to_have_text("Connected")
        expect(tab.locator("#deployment")).to_contain_text("Deploying, 6 of 7")
        portal.kill()
        expect(tab.locator("#chip")).to_have_text("Reconnecting; the deployment continues")
        expect(tab.locator("#deployment")).to_contain_text("Deploying, 6 of 7")
        assert tab.locator("#failure").count() == 0
    portal.start()
    expect(tab.get_by_role("heading", name="The stack is live")).to_be_visible()
    tab.context.close()


def test_the_pages_work_without_javascript(portal: Portal, browser: Any) -> None:
    tabs = open_tab(browser, portal, java_script_enabled=False)
    tab = next(tabs)
    fill_in(tab, "no-javascript")
    send(tab)
    expect(tab.get_by_role("heading", name="The stack is live")).to_be_visible()
    tab.goto("/")
    tab.get_by_label("Name", exact=True).fill("Not A Name")
    tab.get_by_role("button", name="Deploy").click()
    expect(tab.get_by_role("alert").first).to_contain_text("lower-case")
    expect(tab.get_by_label("Name", exact=True)).to_have_value("Not A Name")
    tab.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_no_page_overflows_in_any_theme_at_any_width(portal: Portal, browser: Any, scheme: str, width: int) -> None:
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
