"""Take the pictures of docs/images: `python -m tests.interop.screenshots`.

A worker with real callers, its page in a real browser, and `ingress top` as a terminal of 110 columns shows it.
"""

from __future__ import annotations

import io
import re
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import trio
from rich.console import Console

from ingress.cli._scrape import StatusAddress
from ingress.cli._top_screen import live_table
from ingress.cli._watched import WatchedWorker

from . import browser
from .loaded_worker import serving, steady_load

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"

PAGES: dict[str, dict[str, Any]] = {
    "status-page": {"viewport": {"width": 1000, "height": 600}, "color_scheme": "light"},
    "status-page-dark": {"viewport": {"width": 1000, "height": 600}, "color_scheme": "dark"},
    "status-page-phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light", "is_mobile": True},
}

# For charts with something in them.
WATCHED_SECONDS = 30


def main() -> int:
    if (problem := browser.missing()) is not None:
        print(problem, file=sys.stderr)
        return 1
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as directory, serving(Path(directory)) as worker, steady_load(worker.file_kv):
        parts = urlsplit(worker.status_url)
        address = StatusAddress(parts.hostname or "", parts.port or 0)
        with browser.open_browser() as opened:
            pages = {
                name: browser.open_page(opened, worker.status_url, **options)[0] for name, options in PAGES.items()
            }
            (IMAGES / "top.svg").write_text(trio.run(take_top, address), encoding="utf-8")
            for name, page in pages.items():
                page.wait_for_timeout(1500)
                page.screenshot(path=IMAGES / f"{name}.png", full_page=True)
    print("\n".join(str(path.relative_to(Path.cwd())) for path in sorted(IMAGES.iterdir())))
    return 0


async def take_top(address: StatusAddress) -> str:
    """Watch for a while, then return the screen as SVG, without the fonts that rich would fetch from elsewhere."""
    watched = WatchedWorker(address)
    for _ in range(WATCHED_SECONDS):
        await watched.poll()
        await trio.sleep(1)
    console = Console(file=io.StringIO(), record=True, width=110, force_terminal=True)
    console.print(live_table([watched], 110, 20))
    svg = console.export_svg(title="ingress top")
    return re.sub(r"@font-face\s*\{.*?\}", "", svg, flags=re.DOTALL).replace("Fira Code", "ui-monospace")


if __name__ == "__main__":
    sys.exit(main())
