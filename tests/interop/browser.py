"""A real browser, as far as there is one: a Chromium of the system, driven by playwright."""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from attrs import define, field

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# Guards against hanging; the page looks once a second.
PATIENCE_MS = 20_000


def missing() -> str | None:
    """Return what is missing for a browser, None where nothing is."""
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed; `make interop` installs it"
    if _chromium() is None:
        return f"there is no Chromium; looked for {', '.join(CHROMIUMS)}"
    return None


@define
class Sightings:
    """What a page did that it should not have."""

    complaints: list[str] = field(factory=list)
    """Errors and warnings on its console, and exceptions nobody caught."""

    requested: list[str] = field(factory=list)
    """Every URL it asked for."""


@contextmanager
def open_browser() -> Iterator[Any]:
    """Start the browser; its profile is thrown away."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_chromium())
        try:
            yield browser
        finally:
            browser.close()


def open_page(browser: Any, url: str, **options: Any) -> tuple[Any, Sightings]:
    """Open a page in a context of its own and note what it does from its first request on."""
    page = browser.new_page(**options)
    page.set_default_timeout(PATIENCE_MS)
    seen = Sightings()
    page.on("request", lambda request: seen.requested.append(request.url))
    page.on("pageerror", lambda error: seen.complaints.append(f"exception: {error}"))
    page.on(
        "console",
        lambda message: (
            seen.complaints.append(f"{message.type}: {message.text}") if message.type in ("error", "warning") else None
        ),
    )
    page.goto(url)
    return page, seen


def wait_until(page: Any, condition: str, arg: Any = None) -> None:
    """Wait until a function of JavaScript returns something true.

    Playwright's own ``wait_for_function`` evaluates text inside the page, which the page's policy forbids.
    """
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while not page.evaluate(condition, arg):
        assert time.monotonic() < deadline, f"not seen within {PATIENCE_MS} ms: {condition}, {arg!r}"
        page.wait_for_timeout(50)


def _chromium() -> str | None:
    return next(filter(None, map(shutil.which, CHROMIUMS)), None)
