"""The numbered examples, run as their first lines say."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

import ingress

EXAMPLES = Path(__file__).resolve().parent.parent / "docs" / "examples"

ENDPOINT = "demo.backend.generate"

PRINTED = {
    "01_echo.py": """\
{'repetition': 0, 'echo': 'hello'}
{'repetition': 1, 'echo': 'hello'}
{'repetition': 2, 'echo': 'hello'}
""",
    "04_threaded.py": """\
demo.backend.blocking ['one', 'two', 'three']
demo.backend.callback ['ONE', 'TWO', 'THREE']
""",
    "07_typed_requests.py": """\
[{'text': 'typed'}, {'text': 'all'}]
InvalidRequest: required field missing @ request.messages[0].content
InvalidRequest: invalid value for type, expected int @ request.max_words
""",
    "08_bidirectional.py": """\
{'heard': 'both', 'so_far': 1}
{'heard': 'ways', 'so_far': 2}
{'heard': 'at', 'so_far': 3}
{'heard': 'once', 'so_far': 4}
{'summary': 'both ways at once'}
""",
}


def run(name: str) -> str:
    finished = subprocess.run(
        [sys.executable, str(EXAMPLES / name)], capture_output=True, text=True, timeout=60, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.parametrize("name", PRINTED)
def test_an_example_prints_what_it_promises(name: str) -> None:
    assert run(name) == PRINTED[name]


def test_the_text_example_stops_at_its_first_full_stop() -> None:
    text = run("02_text.py").strip()
    assert text.startswith("The sky is ") and text.endswith(".") and text.count(".") == 1


@asynccontextmanager
async def serve(directory: Path, *arguments: str) -> AsyncIterator[ingress.Client]:
    """`ingress serve …` and a client of it."""
    environment = {**os.environ, "DYN_FILE_KV": str(directory), "PYTHONDONTWRITEBYTECODE": "1"}
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "ingress", "serve", *arguments], env=environment, stderr=subprocess.DEVNULL
    )
    try:
        async with ingress.open_client(discovery=ingress.FileDiscovery(directory)) as client:
            await client.wait_for_instances(ENDPOINT, timeout=60)
            yield client
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def collect(client: ingress.Client, request: Any, **options: Any) -> list[Any]:
    async with client.stream(ENDPOINT, request, **options) as responses:
        return [item async for item in responses]


async def test_a_handler_written_for_dynamo_is_served_as_it_is(tmp_path: Path) -> None:
    target = f"{EXAMPLES / '03_asyncio_handler.py'}:generate"
    request = {"prompt": "one two"}
    async with serve(tmp_path, "--asyncio", target, "--endpoint", ENDPOINT) as client:
        answer = [{"text": "one ", "tenant": "nobody"}, {"text": "two ", "tenant": "nobody"}]
        assert await collect(client, request) == answer
        answer = [{**item, "tenant": "acme"} for item in answer]
        assert await collect(client, request, metadata={"tenant": "acme"}) == answer
        async with client.stream(ENDPOINT, {"prompt": "word " * 10_000}) as responses:
            await anext(responses)
        with pytest.raises(ingress.RemoteError, match="KeyError: 'prompt'"):
            await collect(client, {})


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("def generate(request):\n    yield request\n", "blocking generator"),
        ("async def generate():\n    yield 1\n", "takes no request"),
        ("generate = 3\n", "no asyncio handler"),
    ],
)
def test_what_is_no_asyncio_handler_is_refused_in_words(tmp_path: Path, source: str, complaint: str) -> None:
    (tmp_path / "mine.py").write_text(source)
    finished = subprocess.run(
        [sys.executable, "-m", "ingress", "serve", "--asyncio", "mine.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 3
    assert complaint in " ".join(finished.stderr.split())


async def test_handlers_of_one_command_share_their_loop(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(
        "import asyncio\n"
        "async def first(request):\n    yield id(asyncio.get_running_loop())\n"
        "async def second(request):\n    yield id(asyncio.get_running_loop())\n"
    )
    targets = [f"{tmp_path / 'two.py'}:first", f"{tmp_path / 'two.py'}:second"]
    endpoints = ["--endpoint", ENDPOINT, "--endpoint", "demo.backend.other"]
    async with serve(tmp_path / "kv", "--asyncio", *targets, *endpoints) as client:
        await client.wait_for_instances("demo.backend.other")
        async with client.stream("demo.backend.other", None) as responses:
            assert [item async for item in responses] == await collect(client, None)
