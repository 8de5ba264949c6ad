"""Chromium without a window, and the page in it."""

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.interfaces.http.page.acting import PATIENCE, Opened, OpenPage, missing
from tests.interfaces.http.page.stand_in import STORY, StandIn, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """For one file's tests: while it is open, playwright keeps this thread's event loop for itself."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        missing("the page is tested in Chromium, which is not here: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    with serving(STORY) as stand_in:
        yield stand_in


@pytest.fixture
def open_page(browser: "Browser") -> Iterator[OpenPage]:
    """Opens an address in a fresh profile; keywords are the context's, such as viewport or color_scheme."""
    contexts = []

    def open_(url: str, **options: Any) -> Opened:
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(1000 * PATIENCE)
        opened = Opened(context.new_page())
        opened.page.on("console", lambda said: opened.complaints.append(said.text) if said.type == "error" else None)
        opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        opened.page.on("request", lambda request: opened.asked.append(request.url))
        opened.page.goto(url)
        return opened

    yield open_
    for context in contexts:
        context.close()


@pytest.fixture
def page(open_page: OpenPage, stand_in: StandIn) -> Iterator["Page"]:
    """The page, which must cause no complaint and ask no other server."""
    opened = open_page(stand_in.url)
    yield opened.page
    assert opened.complaints == []
    assert all(url.startswith(stand_in.url + "/") for url in opened.asked), opened.asked
