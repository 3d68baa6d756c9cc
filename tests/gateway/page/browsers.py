"""A headless browser: Debian's Chromium, moved by playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

NAMES: Final = ("chromium", "chromium-browser", "google-chrome")


def find_chromium() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser, until the block ends; skips where there is none."""
    path = find_chromium()
    if path is None:
        pytest.skip("Chromium is not installed: none of " + ", ".join(NAMES) + " is in PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


def troubles_of(page: Page) -> list[str]:
    """What goes wrong on a page from now on: errors of scripts, refusals by the policy, requests to elsewhere."""
    found: list[str] = []
    page.on("pageerror", lambda error: found.append(f"error: {error}"))
    page.on("console", lambda message: found.append(message.text) if _is_trouble(message) else None)
    page.on("dialog", lambda dialog: (found.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: None if _is_near(request.url) else found.append(f"request: {request.url}"))
    return found


def _is_trouble(message: ConsoleMessage) -> bool:
    """Answers that are no success are told to the console too; tests look at what the page makes of them."""
    return message.type in ("error", "warning") and not message.text.startswith("Failed to load resource")


def _is_near(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "data:", "about:", "blob:"))
