"""What a reader does at the page, and how a test waits for what comes of it."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, NoReturn

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page


def missing(what: str) -> NoReturn:
    """Skip; where everything is to be there, fail."""
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)


PATIENCE = 60.0
"""Seconds: beside six busy processes on two cores, Chromium's start took 13 and one test of axe 9."""


@dataclass
class Opened:
    """The page in the browser, what it asked for, and what the browser said against it."""

    page: "Page"
    complaints: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


OpenPage = Callable[..., Opened]


def until(page: "Page", expression: str) -> None:
    """Wait until it holds (playwright's own waiting evaluates text inside the page, which the page's policy forbids)."""
    deadline = monotonic() + PATIENCE
    while monotonic() < deadline:
        if page.evaluate(expression):
            return
        page.wait_for_timeout(25)
    pytest.fail(f"not within {PATIENCE:g} s: {expression}")


def wait_for_tokens(page: "Page", number: int) -> None:
    until(page, f"document.querySelectorAll('#tokens .token').length === {number}")


def story(page: "Page") -> str:
    """What is shown, as the page keeps it."""
    return page.locator("#story").text_content() or ""


def write(page: "Page") -> None:
    """Press Write, and wait for the end."""
    page.click("#write")
    page.wait_for_selector("#story[aria-busy=false]")
