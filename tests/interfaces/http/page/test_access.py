"""The page for everyone: no accessibility rule of axe-core is broken, on a phone, in the dark, without motion."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.interfaces.http.page.acting import OpenPage, missing, wait_for_tokens, write
from tests.interfaces.http.page.stand_in import StandIn, Told

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow
AXE = Path(__file__).parents[4] / ".cache" / "axe" / "package" / "axe.min.js"


@pytest.fixture(scope="module")
def axe() -> str:
    """The source of axe-core, which `make browser` fetches."""
    if not AXE.exists():
        missing("axe-core, which checks accessibility, is not here: make browser fetches it")
    return AXE.read_text(encoding="utf-8")


def violations(page: "Page", axe: str) -> list[str]:
    """Every broken rule, with the elements that break it."""
    page.evaluate(axe)  # through the debugger: the page's own policy would refuse it
    found = page.evaluate("axe.run().then(({violations}) => violations)")
    return [f"{one['id']}: {[node['html'] for node in one['nodes']]}" for one in found]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_no_rule_of_axe_is_broken(open_page: OpenPage, stand_in: StandIn, axe: str, scheme: str, width: int) -> None:
    # every level of surprise, and an end that the server refuses
    stand_in.plan.story = [
        Told(f" word{at}", p, {" other": 0.1}) for at, p in enumerate((0.9, 0.6, 0.3, 0.1, 0.03, 0.001))
    ]
    page = open_page(stand_in.url, color_scheme=scheme, viewport={"width": width, "height": 800}).page
    assert violations(page, axe) == []
    stand_in.plan.hold_after = 3
    page.click("#write")
    wait_for_tokens(page, 3)
    assert violations(page, axe) == []
    stand_in.plan.go.set()
    page.wait_for_selector("#story[aria-busy=false]")
    assert page.text_content("#status") == "Paused, after 6 tokens.", page.text_content("#error")
    assert violations(page, axe) == []
    page.focus("#tokens .token >> nth=5")
    assert violations(page, axe) == []
    stand_in.plan.key = "asked for"
    page.click("#retry")
    page.wait_for_selector("#key")
    assert violations(page, axe) == []


def test_axe_finds_what_is_broken(open_page: OpenPage, stand_in: StandIn, axe: str) -> None:
    page = open_page(stand_in.url).page
    page.evaluate("document.querySelector('label[for=beginning]').remove()")
    assert [found.split(":")[0] for found in violations(page, axe)] == ["label"]


@pytest.mark.parametrize("width", [320, 360, 600])
def test_nothing_is_wider_than_a_phone(open_page: OpenPage, stand_in: StandIn, width: int) -> None:
    stand_in.plan.story = [Told(" short"), Told(" " + "long" * 60, 0.5, {"w" * 90: 0.2})]
    page = open_page(stand_in.url, viewport={"width": width, "height": 740}, is_mobile=True, has_touch=True).page
    fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    assert page.evaluate(fits)
    write(page)
    page.focus("#tokens .token >> nth=1")
    assert page.evaluate(fits)
    # a finger's size: 44 px, or 24 px where WCAG 2.2 asks no more
    for name in ("continue", "retry", "copy"):
        box = page.locator(f"#{name}").bounding_box()
        assert box is not None
        assert box["height"] >= 44


def background(page: "Page") -> str:
    return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))


def test_the_system_chooses_light_or_dark_until_the_reader_does(open_page: OpenPage, stand_in: StandIn) -> None:
    dark_page = open_page(stand_in.url, color_scheme="dark").page
    page = open_page(stand_in.url, color_scheme="light").page
    light, dark = background(page), background(dark_page)
    assert light != dark
    assert dark_page.get_attribute("#theme", "aria-pressed") == "true"
    page.emulate_media(color_scheme="dark")
    assert background(page) == dark
    page.emulate_media(color_scheme="light")
    assert page.get_attribute("#theme", "aria-pressed") == "false"
    page.click("#theme")
    assert background(page) == dark
    page.reload()
    assert background(page) == dark
    page.click("#theme")
    assert background(page) == light
    page.emulate_media(color_scheme="dark")
    assert background(page) == light


def test_nothing_moves_for_whoever_wants_no_motion(open_page: OpenPage, stand_in: StandIn) -> None:
    for motion, animations in (("no-preference", 1), ("reduce", 0)):
        page = open_page(stand_in.url, reduced_motion=motion).page
        stand_in.plan.hold_after = 1
        page.click("#write")
        wait_for_tokens(page, 1)
        assert page.evaluate("document.getAnimations().length") == animations


def test_the_policy_forbids_scripts_in_the_page(open_page: OpenPage, stand_in: StandIn) -> None:
    opened = open_page(stand_in.url)
    opened.page.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'document.title = 1'; document.head.append(s); }"
    )
    assert opened.page.title() == "smallgpt"
    assert "Content Security Policy" in opened.complaints[0]


def test_axe_is_the_version_that_make_fetches(axe: str) -> None:
    makefile = (Path(__file__).parents[4] / "Makefile").read_text(encoding="utf-8")
    (version,) = re.findall(r"^AXE := (.*)$", makefile, flags=re.MULTILINE)
    assert f"axe v{version}" in axe[:200]
