"""The page at ``/``: its policy, and that the file keeps to it. What it shows is seen in a browser (tests/interop)."""

from __future__ import annotations

import base64
import hashlib
import re

import httpx2
import pytest

from ingress.status._page import load_page

from .test_status_server import made, served


@pytest.fixture(scope="module")
def text() -> str:
    return load_page("/health").body.decode()


async def test_the_page_is_served_with_a_policy_that_allows_its_own_blocks_only() -> None:
    async with served(made()) as client:
        answer = await client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    directives = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert directives["default-src"] == "'none'"
    assert directives["connect-src"] == "'self'"
    assert directives["frame-ancestors"] == directives["base-uri"] == directives["form-action"] == "'none'"
    assert directives["require-trusted-types-for"] == "'script'"
    for kind in ("script", "style"):
        (block,) = re.findall(rf"<{kind}>(.*?)</{kind}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()
        assert directives[f"{kind}-src"] == f"'sha256-{digest}'"


async def test_the_page_answers_to_reading_only() -> None:
    async with served(made()) as client:
        answers: list[httpx2.Response] = [await client.request(method, "/") for method in ("HEAD", "POST", "PUT")]
    assert [answer.status_code for answer in answers] == [200, 405, 405]
    assert answers[0].content == b""


def test_no_value_can_become_markup_and_no_other_place_is_named(text: str) -> None:
    assert re.findall(r"\bsrc=|@import|url\(|\son\w+=|style=", text) == []
    assert set(re.findall(r"https?://[^\"'\s<]+", text)) == {"http://www.w3.org/2000/svg"}, "a name, never fetched"
    script = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)[0]
    assert (
        re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(|setAttribute\(.on", script)
        == []
    )


def test_the_page_asks_for_readiness_where_the_server_has_it() -> None:
    page = load_page('/ready"><b>').body.decode()
    assert '<body data-health="/ready&quot;&gt;&lt;b&gt;">' in page
