"""The real HTTP frontend as a child process, and the ways in which tests knock at its door."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import trio
from attrs import field, frozen

import ingress
from ingress.models import ModelCard

from . import peers
from .peer_process import PeerProcess, open_process

# Guards against hanging; it starts in 2 to 4 s.
START_TIMEOUT = 60.0
CURL_TIMEOUT = 60.0
PATIENCE = 60.0


@frozen
class CurlAnswer:
    """What curl got."""

    status: int
    body: str = field(repr=True)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The server-sent events of a stream; the closing ``[DONE]`` as a string."""
        lines = [line.removeprefix("data: ") for line in self.body.splitlines() if line.startswith("data: ")]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]


@frozen
class Frontend:
    """A running frontend."""

    port: int
    file_kv: Path
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def models(self) -> list[str]:
        """The ids that ``/v1/models`` lists; blocks."""
        with urllib.request.urlopen(f"{self.url}/v1/models", timeout=10) as answer:
            return sorted(model["id"] for model in json.load(answer)["data"])

    async def wait_listed(self, name: str, *, listed: bool = True) -> None:
        """Wait until a model is listed, or is not."""
        with trio.move_on_after(20):
            while (name in await trio.to_thread.run_sync(self.models)) is not listed:
                await trio.sleep(0.05)
            return
        raise AssertionError(f"{name} {'not ' if listed else 'still '}listed; log: {self.log.read_text()[-3000:]}")

    async def curl(self, path: str, body: object | None = None) -> CurlAnswer:
        """Get a page, or post JSON to it, with curl."""
        command = ["curl", "-sS", "-N", "--max-time", str(CURL_TIMEOUT), "-w", "\n%{http_code}", self.url + path]
        if body is not None:
            command += ["-H", "content-type: application/json", "-d", json.dumps(body)]
        finished = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
        assert finished.returncode == 0, finished.stderr.decode()
        text, _, status = finished.stdout.decode().rpartition("\n")
        return CurlAnswer(int(status), text)

    @asynccontextmanager
    async def open_client(self) -> AsyncIterator[PeerProcess]:
        """Start the official client."""
        command = peers.openai_command(f"{self.url}/v1")
        async with open_process(peers.FRONTEND, command, peers.environment(peers.FRONTEND, self.file_kv)) as client:
            yield client


@asynccontextmanager
async def behind(
    frontend: Frontend, model_name: str, engine: Any, *, card: ModelCard | None = None, **options: Any
) -> AsyncIterator[PeerProcess]:
    """A worker of ours that the frontend lists, and the official client."""
    with trio.fail_after(PATIENCE):
        async with ingress.serving(
            engine,
            endpoint=f"{model_name}.backend.generate",
            discovery=ingress.FileDiscovery(frontend.file_kv),
            model=card or model_name,
            **{"linger": 0.0, "drain_budget": 5.0, **options},
        ):
            await frontend.wait_listed(model_name)
            async with frontend.open_client() as client:
                yield client
        await frontend.wait_listed(model_name, listed=False)


async def ask(client: PeerProcess, method: str, **arguments: Any) -> tuple[dict[str, Any], list[Any]]:
    """Make one call of the official client; return its outcome and what came before."""
    tag = await client.send(op="call", method=method, arguments=arguments)
    return await client.outcome(tag), client.items(tag)


def text_of(chunks: list[Any]) -> str:
    """The text of a streamed chat answer."""
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


@asynccontextmanager
async def serve_process(frontend: Frontend, program: Path, model_name: str, *flags: str) -> AsyncIterator[trio.Process]:
    """``ingress serve`` of a file's ``generate``, as a process that can be killed or drained; announced on entry."""
    endpoint = f"{model_name}.backend.generate"
    cards = frontend.file_kv / "v1" / "mdc"
    before = set(cards.glob("*")) if cards.exists() else set()
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "ingress", "serve", str(program), "--endpoint", endpoint, "--model", model_name, *flags],
        env={**os.environ, "DYN_FILE_KV": str(frontend.file_kv)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with trio.fail_after(START_TIMEOUT):
            while not any(path.name.startswith(model_name) for path in set(cards.glob("*")) - before):
                await trio.sleep(0.05)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


@contextmanager
def running_frontend(directory: Path) -> Iterator[Frontend]:
    """Start a frontend on a free loopback port; its cache and its log stay in the directory."""
    frontend = Frontend(_free_port(), directory / "kv", directory / "frontend.log")
    environment = peers.environment(
        peers.FRONTEND,
        frontend.file_kv,
        HOME=str(directory),
        XDG_CACHE_HOME=str(directory / "cache"),
        HF_HUB_OFFLINE="1",
        DYN_LOG="warn",
    )
    frontend.file_kv.mkdir(parents=True)
    with frontend.log.open("wb") as log:
        process = subprocess.Popen(
            peers.frontend_command(frontend.port), env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=directory
        )
    try:
        _wait_listening(frontend, process)
        yield frontend
    finally:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_listening(frontend: Frontend, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline and process.poll() is None:
        try:
            frontend.models()
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
        else:
            return
    raise AssertionError(f"the frontend did not start: {frontend.log.read_text()[-3000:]}")
