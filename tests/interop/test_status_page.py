"""The page at ``/`` in a real browser, in front of a worker with real callers."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from ingress.cli._readings import EndpointReading, read_metrics

from . import browser, peers
from .loaded_worker import ENDPOINT, ServedWorker, serving, steady_load

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(browser.missing() is not None, reason=browser.missing() or ""),
    pytest.mark.skipif(peers.is_namespaced(), reason="runs in the other half of `make interop`"),
]

CELLS = ("endpoint", "streams", "requests", "requests/s", "chunks", "chunks/s", "p50", "p99", "cancelled", "errors")


@pytest.fixture
def worker(file_kv: Path) -> Iterator[ServedWorker]:
    with serving(file_kv) as served:
        yield served


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser.open_browser() as opened:
        yield opened


def metrics_of(worker: ServedWorker) -> EndpointReading:
    with urllib.request.urlopen(f"{worker.status_url}/metrics", timeout=10) as answer:
        return read_metrics(answer.read().decode(), 0.0).endpoints[ENDPOINT]


def row_of(page: Any) -> dict[str, str]:
    return dict(zip(CELLS, page.locator("#endpoints tr").first.locator("td").all_inner_texts(), strict=True))


def wait_for_more_chunks(page: Any, than: str) -> str:
    browser.wait_until(
        page,
        "than => Number(document.querySelector('#endpoints tr').cells[4].textContent.replaceAll(',', '')) > than",
        arg=int(than.replace(",", "")),
    )
    return row_of(page)["chunks"]


def test_the_page_shows_live_what_metrics_say(chromium: Any, worker: ServedWorker) -> None:
    page, seen = browser.open_page(chromium, worker.status_url)
    page.wait_for_selector("#endpoints tr")
    assert page.inner_text("#phase") == "serving"
    browser.wait_until(page, "() => document.querySelector('#health').textContent === 'ready'")
    assert row_of(page)["endpoint"] == ENDPOINT
    with steady_load(worker.file_kv):
        first = wait_for_more_chunks(page, "0")
        wait_for_more_chunks(page, wait_for_more_chunks(page, first))
        browser.wait_until(page, "() => document.querySelector('[data-name=streams] .value').textContent !== '0'")
        browser.wait_until(page, "() => document.querySelector('[data-name=chunks] .value').textContent !== '0'")
        browser.wait_until(page, "() => document.querySelector('[data-name=request] .value').textContent.endsWith('s')")
        browser.wait_until(page, "() => document.querySelector('[data-name=cancelled] .value').textContent !== '0'")
        charts = page.locator("svg path").evaluate_all("lines => lines.map(line => line.getAttribute('d'))")
        assert sum("L" in line for line in charts) >= 6
    # At rest every figure is comparable.
    browser.wait_until(page, "() => document.querySelector('[data-name=streams] .value').textContent === '0'")
    counted = metrics_of(worker)
    assert (counted.streams, counted.chunks is not None and counted.chunks > 0) == (0, True)
    expected = {
        "streams": counted.streams,
        "requests": counted.requests,
        "chunks": counted.chunks or 0,
        "cancelled": counted.cancelled,
        "errors": counted.errors,
    }
    browser.wait_until(
        page, "n => document.querySelector('#endpoints tr').cells[4].textContent === n", arg=f"{counted.chunks:,.0f}"
    )
    row = row_of(page)
    assert {name: row[name] for name in expected} == {name: f"{value:,.0f}" for name, value in expected.items()}
    assert seen.complaints == []
    assert {"{0.scheme}://{0.netloc}".format(urlsplit(url)) for url in seen.requested if url != "data:,"} == {
        worker.status_url
    }
    page.close()


def test_a_worker_that_vanishes_is_said_to_be_gone(chromium: Any, worker: ServedWorker) -> None:
    page, _ = browser.open_page(chromium, worker.status_url)
    page.wait_for_selector("#endpoints tr")
    worker.process.kill()
    browser.wait_until(page, "() => document.querySelector('#health').textContent === 'no answer'")
    assert row_of(page)["endpoint"] == ENDPOINT, "what was last known stays"
    page.close()


def test_the_page_can_neither_reach_nor_run_anything_else(chromium: Any, worker: ServedWorker, file_kv: Path) -> None:
    with serving(file_kv.parent / "other") as other:
        page, _ = browser.open_page(chromium, worker.status_url)
        page.wait_for_selector("#endpoints tr")
        assert page.evaluate("url => fetch(url).then(() => 'reached', () => 'refused')", other.status_url) == "refused"
        page.evaluate(
            """() => { const script = document.createElement('script');
                       try { script.textContent = 'document.title = "run"'; document.body.append(script) } catch {} }"""
        )
        written = "() => { try { document.body.innerHTML = '<b>x</b>'; return 'written' } catch { return 'refused' } }"
        assert page.evaluate(written) == "refused"
        assert page.title() == "ingress worker"
        page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways(chromium: Any, worker: ServedWorker, scheme: str) -> None:
    page, seen = browser.open_page(
        chromium, worker.status_url, viewport={"width": 360, "height": 740}, color_scheme=scheme, is_mobile=True
    )
    page.wait_for_selector("#endpoints tr")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    brightness = page.evaluate("Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])")
    assert (brightness > 200) == (scheme == "light")
    assert seen.complaints == []
    page.close()
