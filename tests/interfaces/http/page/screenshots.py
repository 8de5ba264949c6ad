"""Write docs/images/page-*.png: the page of a running server, after a story.

Try:
  smallgpt serve runs/demo
  python -m tests.interfaces.http.page.screenshots http://127.0.0.1:8000
"""

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tests.interfaces.http.page.acting import write

if TYPE_CHECKING:
    from playwright.sync_api import Browser

IMAGES = Path(__file__).parents[4] / "docs" / "images"


def take(
    browser: "Browser", url: str, args: argparse.Namespace, name: str, width: int, height: int, scheme: str
) -> None:
    """One picture, with the card of a surprising token open."""
    phone = width < 600
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if scheme == "dark" else "light",
        device_scale_factor=2 if phone else 1,
        is_mobile=phone,
        has_touch=phone,
    )
    page = context.new_page()
    page.goto(url)
    page.fill("#beginning", args.beginning)
    page.fill("#max-tokens", str(args.tokens))
    page.fill("#seed", str(args.seed))
    write(page)
    page.locator("#tokens .s3, #tokens .s4, #tokens .s5").nth(args.token).focus()
    page.wait_for_timeout(300)
    IMAGES.mkdir(exist_ok=True)
    page.screenshot(path=IMAGES / f"page-{name}.png")
    context.close()


def main() -> None:
    """Take both pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="address of a server that runs")
    parser.add_argument("--beginning", default="Once upon a time, there was a little")
    parser.add_argument("--tokens", type=int, default=90)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--token", type=int, default=5, help="which of the tokens of 2 bits and more has its card open")
    args = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        take(browser, args.url, args, "desktop", 920, 1100, "light")
        take(browser, args.url, args, "phone", 360, 740, "dark")
        browser.close()


if __name__ == "__main__":
    main()
