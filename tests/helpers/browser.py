"""The gateway's page in a real browser."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Locator, Page, sync_playwright

from gateways import GatewayThread

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EDGES = Path(__file__).resolve().parents[2] / "docs" / "edges.png"
SECONDS = 60.0


@contextmanager
def opened_page(gateway: GatewayThread) -> Iterator[Page]:
    """A new browser at the page, whose errors fail the test, and requests to elsewhere."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened, errors = browser.new_page(viewport={"width": 1280, "height": 800}), []
        opened.on("pageerror", lambda error: errors.append(str(error)))
        opened.on("request", lambda request: errors.append(request.url) if _is_foreign(request.url, gateway) else None)
        opened.goto(gateway.url)
        opened.wait_for_selector("#generate:enabled")
        yield opened
        browser.close()
        assert errors == []


def _is_foreign(url: str, gateway: GatewayThread) -> bool:
    return not url.startswith((gateway.url, "data:", "blob:"))


def wait(page: Page, condition: Callable[[], bool], what: str) -> None:
    """Until it holds; the page's own policy forbids the functions that playwright would have evaluated there."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        page.wait_for_timeout(20)


def says(page: Page, text: str) -> None:
    """Waits for what the page says last: of pictures once the browser has kept them, or deleted them for good."""
    wait(page, lambda: text in page.locator("#status").inner_text(), text)


def pictures(page: Page) -> Locator:
    """Finished ones."""
    return page.locator("#gallery .tile img")
