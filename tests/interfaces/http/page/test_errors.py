"""When something goes wrong the page says so in plain words, keeps the text, and can go on."""

from typing import TYPE_CHECKING

import pytest

from tests.interfaces.http.page.acting import OpenPage, story, until, wait_for_tokens, write
from tests.interfaces.http.page.stand_in import BEGINNING, CONTINUATION, StandIn

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow
GONE = "The server does not answer. Is it still running? Start it again, then try once more."


@pytest.fixture
def page(open_page: OpenPage, stand_in: StandIn) -> "Page":
    """The browser itself complains about failed requests here."""
    return open_page(stand_in.url).page


def error(page: "Page") -> str:
    until(page, "document.getElementById('error').textContent !== ''")
    assert page.get_attribute("#error", "role") == "alert"
    return page.text_content("#error") or ""


def test_a_server_that_is_gone(page: "Page", stand_in: StandIn) -> None:
    write(page)
    stand_in.stop()
    page.fill("#beginning", "Another day")
    page.click("#write")
    assert error(page) == GONE
    assert story(page) == BEGINNING + CONTINUATION
    assert page.is_visible("#write")


def test_a_server_that_was_never_reached_leaves_no_empty_story(page: "Page", stand_in: StandIn) -> None:
    until(page, "document.getElementById('model').textContent !== ''")
    stand_in.stop()
    page.focus("#write")
    page.keyboard.press("Enter")
    assert error(page) == GONE
    assert page.is_hidden("#result")
    assert page.evaluate("document.activeElement.id") == "write"


def test_a_server_that_goes_in_the_middle(page: "Page", stand_in: StandIn) -> None:
    stand_in.plan.hold_after = stand_in.plan.break_after = 3
    page.click("#write")
    wait_for_tokens(page, 3)
    stand_in.plan.go.set()
    assert error(page) == "The connection to the server broke off after 3 tokens. Continue goes on from there."
    assert story(page) == BEGINNING + " girl named Mia"
    stand_in.plan.break_after = None
    page.click("#continue")
    page.wait_for_selector("#story[aria-busy=false]")
    assert page.text_content("#error") == ""
    assert stand_in.plan.requests[1]["prompt"] == BEGINNING + " girl named Mia"
    assert story(page) == BEGINNING + " girl named Mia" + CONTINUATION


def test_an_error_in_the_middle_of_the_stream(page: "Page", stand_in: StandIn) -> None:
    stand_in.plan.error_after = 2
    page.click("#write")
    assert error(page) == "The server broke off: out of memory"
    assert story(page) == BEGINNING + " girl named"
    assert page.is_visible("#continue")


@pytest.mark.parametrize(
    ("headers", "when"),
    [({"Retry-After": "7"}, "in 7 seconds"), ({"Retry-After": "1"}, "in 1 second"), ({}, "in a moment")],
)
def test_a_full_queue(page: "Page", stand_in: StandIn, headers: dict[str, str], when: str) -> None:
    write(page)
    stand_in.plan.refusal = (429, "the queue is full", headers)
    page.click("#retry")
    assert error(page) == f"The server is busy with other stories. Try again {when}."
    assert story(page) == BEGINNING + CONTINUATION


def test_a_refused_request_is_told_in_the_servers_words(page: "Page", stand_in: StandIn) -> None:
    stand_in.plan.refusal = (400, "prompt has 900 tokens; at most 512 fit", {})
    page.click("#write")
    assert error(page) == "prompt has 900 tokens; at most 512 fit"


def test_a_key_is_asked_for_kept_in_the_tab_and_sent(open_page: OpenPage, stand_in: StandIn) -> None:
    stand_in.plan.key = "open sesame"
    page = open_page(stand_in.url).page
    assert error(page) == "This server wants an API key."
    assert page.is_visible("#key")
    assert page.evaluate("document.activeElement.id") == "key"
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    until(page, "document.getElementById('error').textContent === 'The server does not accept this key.'")
    page.fill("#key", "open sesame")
    page.keyboard.press("Enter")
    page.wait_for_selector("#tokens .token")
    page.wait_for_selector("#story[aria-busy=false]")
    assert story(page) == BEGINNING + CONTINUATION
    page.reload()
    until(page, "document.getElementById('model').textContent === 'tales'")
    assert page.is_hidden("#key")
    assert "sesame" not in page.evaluate("JSON.stringify(localStorage)")


def test_without_storage_the_page_still_works(open_page: OpenPage, stand_in: StandIn) -> None:
    page = open_page("about:blank").page
    page.add_init_script(
        "for (const s of ['localStorage', 'sessionStorage']) Object.defineProperty(window, s, {get() {"
        " throw new DOMException('blocked', 'SecurityError'); }});"
    )
    page.goto(stand_in.url)
    page.click("#theme")
    write(page)
    assert story(page) == BEGINNING + CONTINUATION


def test_stop_ends_the_wait_for_a_server_that_is_slow_to_begin(page: "Page", stand_in: StandIn) -> None:
    stand_in.plan.hold_after = 0
    page.click("#write")
    until(page, "!document.getElementById('stop').hidden")
    page.keyboard.press("Escape")
    until(page, "document.getElementById('stop').hidden")
    assert stand_in.plan.left.wait(5)
    assert page.text_content("#error") == ""
    stand_in.plan.go.set()
    write(page)
    wait_for_tokens(page, 8)


def test_a_server_that_came_back_with_another_model_is_asked_for_its_name(page: "Page", stand_in: StandIn) -> None:
    until(page, "document.getElementById('model').textContent !== ''")
    stand_in.plan.refusal = (404, "there is no model 'tales'; this server has 'fables'", {})
    page.click("#write")
    assert "this server has 'fables'" in error(page)
    stand_in.plan.refusal = None
    asked = stand_in.plan.paths.count("/v1/models")
    write(page)
    assert story(page) == BEGINNING + CONTINUATION
    assert stand_in.plan.paths.count("/v1/models") == asked + 1
