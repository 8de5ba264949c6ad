"""Each token of the story tells how likely it was, what else might have stood there, and how much of a surprise it is."""

from typing import TYPE_CHECKING

import pytest

from tests.interfaces.http.page.acting import OpenPage, until, wait_for_tokens, write
from tests.interfaces.http.page.stand_in import BEGINNING, STORY, StandIn, Told

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow
GIRL = ["␣girl", "70.0 %", "␣boy", "20.0 %", "␣dog", "5.0 %"]


def card(page: "Page") -> list[str]:
    """Names and figures of the open card's rows."""
    assert page.is_visible("#card")
    return [text for text in page.locator("#card th, #card td").all_text_contents() if text]


def focused(page: "Page") -> str:
    return str(page.evaluate("document.activeElement.textContent"))


def test_pointing_at_a_token_shows_its_probability_and_the_alternatives(page: "Page") -> None:
    write(page)
    page.hover("#tokens .token >> nth=0")
    assert card(page) == GIRL
    assert page.text_content("#card-token") == "␣girl"
    assert page.text_content("#card-figures") == "70.0 %, 0.51 bits"
    page.hover("#tokens .token >> nth=2")  # not the likeliest: it stands in its place, marked
    assert card(page) == ["␣Lily", "40.0 %", "␣Anna", "20.0 %", "␣Mia", "10.0 %", "␣Sue", "5.0 %"]
    assert page.locator("#card .taken").all_text_contents() == ["␣Mia10.0 %"]
    page.hover("h1")
    until(page, "document.getElementById('card').hidden")


def test_the_pointer_may_move_onto_the_card_and_escape_closes_it(page: "Page") -> None:
    write(page)
    page.hover("#tokens .token >> nth=0")
    page.hover("#card caption")
    page.wait_for_timeout(300)
    assert card(page) == GIRL
    page.keyboard.press("Escape")
    assert page.is_hidden("#card")


def test_the_keyboard_reaches_every_token_by_one_tab_stop(page: "Page") -> None:
    write(page)
    page.focus("#write")
    page.keyboard.press("Tab")
    assert focused(page) == " girl"
    assert card(page) == GIRL
    for key, reached in [("ArrowRight", " named"), ("End", "."), ("ArrowLeft", " roared"), ("Home", " girl")]:
        page.keyboard.press(key)
        assert focused(page) == reached
    page.keyboard.press("ArrowLeft")  # nothing before the first
    assert focused(page) == " girl"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "continue"
    assert page.is_hidden("#card")
    page.keyboard.press("Shift+Tab")
    assert focused(page) == " named"


def test_up_and_down_go_to_the_token_above_and_below(page: "Page", stand_in: StandIn) -> None:
    stand_in.plan.story = [
        Told(word) for word in ["\n", "one", " two", " three", "\n", "un", " deux", " trois", "\n", "a"]
    ]
    write(page)
    page.focus("#tokens .token >> nth=2")
    page.keyboard.press("ArrowDown")
    assert focused(page) == " deux"
    page.keyboard.press("ArrowDown")
    assert focused(page) == "a"
    page.keyboard.press("ArrowUp")
    assert focused(page) == "un"


def test_the_focused_token_is_described_by_its_card(page: "Page") -> None:
    write(page)
    page.focus("#tokens .token >> nth=6")
    described = page.locator("#tokens [aria-describedby=card]")
    assert described.all_text_contents() == [" roared"]
    assert page.get_attribute("#card", "role") == "tooltip"
    assert page.text_content("#card-figures") == "0.1 %, 9.97 bits"


def test_a_tap_opens_the_card_at_the_lower_edge_of_a_phone(open_page: OpenPage, stand_in: StandIn) -> None:
    page = open_page(stand_in.url, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True).page
    page.tap("#write")
    page.wait_for_selector("#story[aria-busy=false]")
    page.tap("#tokens .token >> nth=0")
    assert card(page) == GIRL
    box = page.locator("#card").bounding_box()
    assert box is not None
    assert (box["x"], box["width"]) == (8, 344)
    assert box["y"] + box["height"] == pytest.approx(732)
    page.tap("h1")
    assert page.is_hidden("#card")


def test_the_card_stays_on_the_screen(page: "Page", stand_in: StandIn) -> None:
    stand_in.plan.story = [Told(f" word{number}", 0.4, {" a" * 80: 0.3}) for number in range(400)]
    write(page)
    for number in (0, 7, 200, 399):
        page.focus(f"#tokens .token >> nth={number}")
        box = page.locator("#card").bounding_box()
        assert box is not None
        assert 0 <= box["x"] <= 1280 - box["width"]
        assert 0 <= box["y"] <= 720 - box["height"]


def test_tokens_are_coloured_by_surprise_as_the_legend_says(page: "Page") -> None:
    write(page)
    levels = page.locator("#tokens .token").evaluate_all("all => all.map((one) => one.className.match(/s\\d/)[0])")
    # -log2 of 0.7, 0.97, 0.1, 0.6, 0.3, 0.9, 0.001, 0.4
    assert levels == ["s1", "s0", "s3", "s1", "s2", "s0", "s5", "s2"]
    colour = "(all) => all.map((one) => getComputedStyle(one).backgroundColor)"
    shown = dict(zip(levels, page.locator("#tokens .token").evaluate_all(colour), strict=True))
    legend = page.locator("#legend .token").evaluate_all(colour)
    assert [legend[level] for level in (0, 1, 2, 3, 5)] == [shown[level] for level in ("s0", "s1", "s2", "s3", "s5")]
    assert len(set(legend)) == 6
    # and without colour: from 4 bits on there is a line below
    line = "(one) => getComputedStyle(one).textDecorationLine"
    assert page.locator("#tokens .s5").evaluate(line) == "underline"
    assert page.locator("#tokens .s3").evaluate(line) == "none"


def test_the_colours_can_be_put_out(page: "Page") -> None:
    write(page)
    colour = "(one) => getComputedStyle(one).backgroundColor"
    assert page.locator("#tokens .s5").evaluate(colour) != "rgba(0, 0, 0, 0)"
    page.uncheck("#colours")
    assert page.locator("#tokens .s5").evaluate(colour) == "rgba(0, 0, 0, 0)"
    page.hover("#tokens .s5")
    assert page.text_content("#card-figures") == "0.1 %, 9.97 bits"


def test_tokens_of_half_a_letter_are_shown_together(page: "Page", stand_in: StandIn) -> None:
    # as the server sends the bytes of é: no text until the letter is whole, each token by its bytes
    stand_in.plan.story = [Told(" caf", 0.5), Told(r"bytes:\xc3", 0.25), Told(r"bytes:\xa9", 0.5), Told(" on", 0.5)]
    stand_in.plan.texts = [" caf", "", "é", " on"]
    write(page)
    assert page.locator("#tokens .token").all_text_contents() == [" caf", "é", " on"]
    page.hover("#tokens .token >> nth=1")
    assert page.text_content("#card-figures") == "12.5 %, 3.00 bits"
    assert page.text_content("#card caption") == "made of 2 tokens"
    assert card(page) == [r"bytes:\xc3", "25.0 %", r"bytes:\xa9", "50.0 %"]


def test_bytes_that_become_no_letter_are_shown_as_such(page: "Page", stand_in: StandIn) -> None:
    # the next token shows that the letter is never finished; the text of both comes with it
    stand_in.plan.story = [Told(r"bytes:\xf0\x9f", 0.5, {r"bytes:\xf0": 0.3}), Told(" on", 0.25)]
    stand_in.plan.texts = ["", "\ufffd on"]
    write(page)
    assert page.locator("#tokens .token").all_text_contents() == ["\ufffd", " on"]
    page.hover("#tokens .token >> nth=0")
    assert card(page) == [r"bytes:\xf0\x9f", "50.0 %", r"bytes:\xf0", "30.0 %"]
    assert page.locator("#card .taken").all_text_contents() == [r"bytes:\xf0\x9f50.0 %"]


def test_a_new_story_closes_the_card_of_the_old_one(page: "Page", stand_in: StandIn) -> None:
    write(page)
    page.focus("#tokens .token >> nth=0")
    stand_in.plan.hold_after = 1
    page.keyboard.press("Control+Enter")
    wait_for_tokens(page, 1)
    assert page.is_hidden("#card")
    assert page.text_content("#story") == BEGINNING + STORY[0].token
