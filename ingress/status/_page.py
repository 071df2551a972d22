"""The page at ``/``: one static file that shows live what ``/metrics`` says, and may do nothing else.

Its policy allows the two blocks of the file by their hashes, requests to where it came from, and nothing more: no other
origin, no frame, no form, no text that becomes markup.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Mapping
from importlib.resources import files

from attrs import frozen

_STYLE = re.compile(r"<style>(.*?)</style>", re.DOTALL)
_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


@frozen
class Page:
    """A page and the headers it is sent with."""

    body: bytes
    headers: Mapping[str, str]


def load_page(health_path: str) -> Page:
    """Read the page and compute its policy, once for a server."""
    text = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    style, script = (_hash_of(pattern, text) for pattern in (_STYLE, _SCRIPT))
    policy = (
        f"default-src 'none'; script-src '{script}'; style-src '{style}'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return Page(text.replace("{{health_path}}", html.escape(health_path)).encode(), headers)


def _hash_of(pattern: re.Pattern[str], text: str) -> str:
    (block,) = pattern.findall(text)
    return "sha256-" + base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()
