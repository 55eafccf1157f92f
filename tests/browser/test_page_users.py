"""The users' page of the dashboard in a real Chromium: what an administrator does there is in force at once."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, Page

from tests.support.browser import Start
from tests.support.people import Site
from tests.support.server_process import ServerProcess
from tests.support.visitors import live, people, tab_to, visitor
from tests.support.waiting import until

pytestmark = pytest.mark.browser

NEW_PASSWORD = "battery staple horse"


def start(start_server: Start) -> tuple[ServerProcess, Site]:
    server = start_server(expected=("login_refused",))
    people(server)
    return server, Site(server)


def said(page: Page, text: str) -> None:
    page.wait_for_selector(f"[data-said]:has-text('{text}')")


def row(page: Page, name: str, text: str) -> None:
    page.wait_for_selector(f"tr[data-user='{name}']:has-text('{text}')")


def save(page: Page) -> None:
    page.click("dialog.form button[type=submit]")


@pytest.mark.slow
def test_a_user_is_added_changed_and_refused_by_keyboard(chromium: Browser, start_server: Start) -> None:
    server, site = start(start_server)
    with visitor(chromium, server) as boss, site.http:
        page = boss.open("/admin#users")
        live(page)
        row(page, "ann", "allowed")
        tab_to(page, "Add a user")
        page.keyboard.press("Enter")
        page.wait_for_selector("dialog[open]")
        page.keyboard.type("carl")
        tab_to(page, "Password")
        password = page.input_value("dialog input[name=password]")
        assert len(password) == 16
        tab_to(page, "May read")
        page.keyboard.type("dashboard,  desk.*")
        page.keyboard.press("Enter")
        said(page, "Added: carl. The settings have no channel that desk.* covers.")
        row(page, "carl", "dashboard, desk.*")
        assert page.evaluate("document.activeElement.textContent") == "Add a user…"
        session = site.log_in("carl", password)
        ear = site.hear(session.stream)

        tab_to(page, "Search by name")
        page.keyboard.type("CAR")
        page.wait_for_selector("[data-found=CAR]:has-text('1 found')")
        tab_to(page, "Change carl")
        page.keyboard.press("Enter")
        page.wait_for_selector("dialog[open]")
        page.keyboard.press("Enter")
        page.wait_for_selector("dialog [role=alert]:has-text('Nothing was changed.')")
        tab_to(page, "Refuse the login")
        page.keyboard.press("Space")
        with page.expect_request(lambda request: request.method == "PATCH") as sent:
            page.keyboard.press("Enter")
        assert sent.value.post_data_json == {
            "disabled": True
        }  # and not what others may have changed meanwhile
        said(page, "Changed: carl.")
        row(page, "carl", "refused")
        until(lambda: ear.farewell == "revoked", "the stream has ended")
        assert site.try_login("carl", password).status_code == 401
        assert page.evaluate("document.activeElement.ariaLabel") == "Change carl"

        page.keyboard.press("Enter")
        page.fill("dialog input[name=password]", NEW_PASSWORD)
        page.uncheck("dialog input[name=disabled]")
        page.check("dialog input[name=admin]")
        save(page)
        page.wait_for_selector("tr[data-user=carl] td:text-is('admin')")
        row(page, "carl", "allowed")
        assert site.log_in("carl", NEW_PASSWORD)
        page.click(".views a:has-text('Server')")
        page.wait_for_selector(
            "section[aria-labelledby=audit-title] tr:has-text('password changed'):has-text('user carl')"
        )
    site.leave_all()


@pytest.mark.slow
def test_what_the_server_refuses_is_told_in_the_form_which_stays(
    chromium: Browser, start_server: Start
) -> None:
    server, site = start(start_server)
    with visitor(chromium, server) as boss, site.http:
        page = boss.open("/admin#users")
        live(page)
        page.click("text=Add a user…")
        for name, words in (("ann", "user ann exists already"), (".x", "a user name is letters")):
            page.fill("dialog input[name=name]", name)
            save(page)
            page.wait_for_selector(f"dialog [role=alert]:has-text('{words}')")
        page.fill("dialog input[name=name]", "dora")
        page.fill("dialog input[name=subscribe]", "Not A Pattern")
        save(page)
        page.wait_for_selector("dialog [role=alert]:has-text('not a channel pattern')")
        page.keyboard.press("Escape")
        page.wait_for_selector("dialog", state="detached")
        assert page.locator("tr[data-user]").count() == 2
        refused = [line for line in boss.trouble if "409" in line or "422" in line]
        assert len(refused) == len(boss.trouble) == 3
        boss.trouble.clear()


@pytest.mark.long
def test_administrators_are_asked_before_they_give_up_administration(
    chromium: Browser, start_server: Start
) -> None:
    server, site = start(start_server)
    with visitor(chromium, server) as boss, site.http:
        page = boss.open("/admin#users")
        live(page)
        page.click("[aria-label='Change admin']")
        page.wait_for_selector("dialog:has-text('This is your own account')")
        page.uncheck("dialog input[name=admin]")
        save(page)
        page.wait_for_selector("dialog:has-text('you could not administer this server any more')")
        page.click("dialog:has-text('Take administration from yourself?') button:has-text('Cancel')")
        page.wait_for_selector("dialog.form [role=alert]:has-text('Nothing was changed.')")
        assert site.me(site.log_in("admin").access) == 200
        page.check("dialog input[name=admin]")
        page.check("dialog input[name=disabled]")
        save(page)
        page.click("dialog:has-text('Take administration from yourself?') button:has-text('Do it')")
        page.wait_for_selector("body[data-view=login]")
        assert site.try_login("admin").status_code == 401
        boss.trouble.clear()  # the browser notes the refusals


@pytest.mark.long
def test_thousands_of_users_are_searched_and_cut_into_pages(chromium: Browser, start_server: Start) -> None:
    server, site = start(start_server)
    with site.http:
        for number in range(120):
            site.add_user(f"trader-{number:03}")
    with visitor(chromium, server) as boss:
        page = boss.open("/admin#users")
        live(page)
        page.wait_for_selector("[data-found]:has-text('122 in all')")
        assert page.locator("tr[data-user]").count() == 50
        page.click("button:has-text('Last')")
        row(page, "trader-119", "allowed")
        page.fill("input[name=search-users]", "r-11")
        page.wait_for_selector("[data-found='r-11']:has-text('10 found')")
        assert page.locator("tr[data-user]").count() == 10
