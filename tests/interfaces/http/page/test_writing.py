"""The page writes stories: from the first letter typed to the text in the clipboard."""

import re
from typing import TYPE_CHECKING

import pytest

from tests.interfaces.http.page.acting import OpenPage, missing, story, until, wait_for_tokens, write
from tests.interfaces.http.page.stand_in import BEGINNING, CONTINUATION, PAGE, STORY, StandIn, Told

if TYPE_CHECKING:
    from playwright.sync_api import Page


def test_a_beginning_is_typed_and_goes_on_token_by_token(page: "Page", stand_in: StandIn) -> None:
    stand_in.plan.hold_after = 2
    page.fill("#beginning", "One day a")
    page.click("#write")
    wait_for_tokens(page, 2)
    assert story(page) == "One day a girl named"
    assert page.is_visible("#stop")
    assert page.is_hidden("#write")
    stand_in.plan.go.set()
    page.wait_for_selector("#story[aria-busy=false]")
    assert story(page) == "One day a" + CONTINUATION
    assert page.locator("#tokens .token").all_text_contents() == [told.token for told in STORY]
    assert page.text_content("#status") == "Paused, after 8 tokens."
    assert page.text_content("#model") == "tales"


def test_the_figures_tell_the_tokens_their_speed_and_their_mean_surprise(page: "Page", stand_in: StandIn) -> None:
    stand_in.plan.hold_after = 4
    page.click("#write")
    wait_for_tokens(page, 4)
    page.wait_for_timeout(1000)
    stand_in.plan.go.set()
    until(page, "document.getElementById('figures').textContent.startsWith('8 tokens')")
    tokens, speed, bits = (page.text_content("#figures") or "").split(" · ")
    assert tokens == "8 tokens"
    assert 0 < float(speed.removesuffix(" tokens/s")) <= 7  # seven in more than a second
    assert bits == "2.22 bits a token"  # the mean of -log2 of STORY's probabilities


def test_settings_reach_the_request(page: "Page", stand_in: StandIn) -> None:
    page.fill("#temperature", "1.25")
    page.fill("#top-k", "7")
    page.fill("#max-tokens", "33")
    page.fill("#seed", "12")
    assert page.text_content("#temperature-value") == "1.25"
    assert page.text_content("#top-k-value") == "7"
    write(page)
    assert stand_in.plan.requests == [
        {
            "model": "tales",
            "prompt": BEGINNING,
            "max_tokens": 33,
            "temperature": 1.25,
            "top_k": 7,
            "seed": 12,
            "stream": True,
            "logprobs": 5,
        }
    ]


def test_the_right_end_of_top_k_means_every_token_and_no_seed_a_new_one(page: "Page", stand_in: StandIn) -> None:
    page.focus("#top-k")
    page.keyboard.press("End")
    assert page.text_content("#top-k-value") == "all"
    assert page.get_attribute("#top-k", "aria-valuetext") == "all"
    write(page)
    assert not {"top_k", "seed"} & stand_in.plan.requests[0].keys()


@pytest.mark.parametrize(("field", "value"), [("#max-tokens", ""), ("#max-tokens", "0"), ("#seed", "-1")])
def test_a_number_out_of_range_is_not_sent(page: "Page", stand_in: StandIn, field: str, value: str) -> None:
    page.fill(field, value)
    page.click("#write")
    assert page.locator(f"{field}:invalid").count() == 1
    assert page.is_visible("#write")
    assert stand_in.plan.requests == []


@pytest.mark.parametrize("way", ["button", "escape"])
def test_stop_closes_the_connection_and_keeps_the_text(page: "Page", stand_in: StandIn, way: str) -> None:
    stand_in.plan.hold_after = 3
    page.click("#write")
    wait_for_tokens(page, 3)
    if way == "button":
        page.click("#stop")
    else:
        page.keyboard.press("Escape")
    assert stand_in.plan.left.wait(5)
    page.wait_for_selector("#story[aria-busy=false]")
    assert story(page) == BEGINNING + " girl named Mia"
    assert page.text_content("#status") == "Stopped, after 3 tokens."
    assert page.text_content("#error") == ""


def test_retry_begins_the_shown_story_again(page: "Page", stand_in: StandIn) -> None:
    write(page)
    page.fill("#beginning", "Something else")
    stand_in.plan.story = [Told(" cat"), Told("!")]
    page.click("#retry")
    page.wait_for_selector("#story[aria-busy=false]")
    assert story(page) == BEGINNING + " cat!"
    assert page.input_value("#beginning") == BEGINNING
    assert [request["prompt"] for request in stand_in.plan.requests] == [BEGINNING, BEGINNING]


def test_continue_goes_on_from_the_end(page: "Page", stand_in: StandIn) -> None:
    write(page)
    stand_in.plan.story = [Told(" Then"), Told(" she slept.")]
    page.click("#continue")
    page.wait_for_selector("#story[aria-busy=false]")
    assert story(page) == BEGINNING + CONTINUATION + " Then she slept."
    assert stand_in.plan.requests[1]["prompt"] == BEGINNING + CONTINUATION
    assert page.text_content("#status") == "Paused, after 10 tokens."


def test_the_keyboard_is_enough_to_write_stop_and_go_on(page: "Page", stand_in: StandIn) -> None:
    stand_in.plan.hold_after = 1
    page.focus("#beginning")
    page.keyboard.press("Control+a")
    page.keyboard.type("A fox")
    page.keyboard.press("Control+Enter")
    wait_for_tokens(page, 1)
    assert page.evaluate("document.activeElement.id") == "beginning"
    page.keyboard.press("Escape")
    page.wait_for_selector("#story[aria-busy=false]")
    stand_in.plan.go.set()
    page.focus("#continue")
    page.keyboard.press("Enter")
    page.wait_for_selector("#story[aria-busy=false]")
    assert page.evaluate("document.activeElement.id") in ("continue", "stop")
    assert stand_in.plan.requests[1]["prompt"] == "A fox girl"


def test_the_keyboard_keeps_its_place_when_a_button_goes(page: "Page", stand_in: StandIn) -> None:
    stand_in.plan.hold_after = 1
    page.focus("#write")
    page.keyboard.press("Enter")
    until(page, "document.activeElement.id === 'stop'")
    wait_for_tokens(page, 1)  # without any, there is nothing to continue
    page.keyboard.press("Enter")
    until(page, "document.activeElement.id === 'continue'")


def test_a_second_start_waits_for_the_end_of_the_first(page: "Page", stand_in: StandIn) -> None:
    stand_in.plan.hold_after = 1
    page.focus("#beginning")
    for _ in range(3):
        page.keyboard.press("Control+Enter")
    wait_for_tokens(page, 1)
    stand_in.plan.go.set()
    page.wait_for_selector("#story[aria-busy=false]")
    assert len(stand_in.plan.requests) == 1


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("cut", [1, 64])
def test_events_may_be_cut_anywhere(page: "Page", stand_in: StandIn, cut: int, newline: str) -> None:
    stand_in.plan.story = [Told(" née"), Told(" 🐉"), Told("データ: ")]
    stand_in.plan.cut, stand_in.plan.newline = cut, newline
    write(page)
    assert story(page) == BEGINNING + " née 🐉データ: "
    assert page.text_content("#error") == ""


def test_copy_takes_the_beginning_and_what_follows(open_page: OpenPage, stand_in: StandIn) -> None:
    page = open_page(stand_in.url, permissions=["clipboard-read", "clipboard-write"]).page
    write(page)
    page.click("#copy")
    until(page, "document.getElementById('copy').textContent === 'Copied'")
    assert page.evaluate("navigator.clipboard.readText()") == BEGINNING + CONTINUATION


def test_where_the_clipboard_is_closed_the_text_is_selected(page: "Page", stand_in: StandIn) -> None:
    write(page)
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('no')); }")
    page.click("#copy")
    until(page, "document.getElementById('status').textContent.includes('selected')")
    assert page.evaluate("getSelection().toString().trim()").startswith(BEGINNING)


def test_text_is_never_markup(page: "Page", stand_in: StandIn) -> None:
    bad = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
    stand_in.plan.story = [Told(bad, 0.5, {"<b>bold</b>": 0.2})]
    page.fill("#beginning", "<i>a</i>")
    write(page)
    page.hover("#tokens .token")
    assert story(page) == "<i>a</i>" + bad
    assert "<b>bold</b>" in (page.text_content("#card") or "")
    assert page.locator("#story img, #story script, #story i, #card b").count() == 0
    assert page.title() == "smallgpt"


def test_an_error_is_text_too(open_page: OpenPage, stand_in: StandIn) -> None:
    page = open_page(stand_in.url).page
    stand_in.plan.refusal = (400, "<b>too long</b>", {})
    page.click("#write")
    until(page, "document.getElementById('error').textContent === '<b>too long</b>'")


def test_a_long_story_stays_in_view_until_the_reader_scrolls(page: "Page", stand_in: StandIn) -> None:
    stand_in.plan.story = [Told(f" line {number}\n") for number in range(90)]
    stand_in.plan.hold_after = 60
    page.click("#write")
    wait_for_tokens(page, 60)
    end_is_seen = "document.getElementById('tokens').getBoundingClientRect().bottom < innerHeight"
    until(page, end_is_seen)
    assert page.locator("#stop").bounding_box() is not None
    page.mouse.wheel(0, -600)
    until(page, f"!({end_is_seen})")
    stand_in.plan.go.set()
    page.wait_for_selector("#story[aria-busy=false]")
    assert not page.evaluate(end_is_seen)


def test_the_page_is_small_and_whole() -> None:
    files = sorted(path.name for path in PAGE.iterdir())
    assert files == ["index.html", "page.css", "page.js"]
    assert sum((PAGE / name).stat().st_size for name in files) < 30_000
    markup = (PAGE / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'(?:src|href)="(?!data:)([^"]*)"', markup) == ["page.css", "page.js", "docs"]


def test_what_is_missing_skips_a_test_and_fails_it_where_everything_is_to_be_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no browser"):
        missing("no browser")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no browser"):
        missing("no browser")
