"""The real OpenAI frontend in front of our worker: overload, failures, clients that leave, workers that die."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

import ingress

from .frontend import PATIENCE, Frontend, ask, behind, serve_process, text_of
from .peer_process import PeerProcess

pytestmark = pytest.mark.interop

HELLO = [{"role": "user", "content": "hello"}]
CHAT = "chat.completions.create"


class Held:
    """An engine that yields when it is told to, and remembers how each request ended."""

    def __init__(self) -> None:
        self.gate = trio.Event()
        self.started = 0
        self.ended: list[str] = []
        self._changed = trio.Event()

    async def __call__(self, request: Any, context: ingress.Context) -> AsyncIterator[str]:
        self.started += 1
        self._wake()
        state = "cancelled"
        try:
            yield "begun"
            await self.gate.wait()
            yield " done"
            state = "finished"
        finally:
            self.ended.append(f"{state}, killed={context.is_killed}")
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def wait(self, wanted: Callable[[], bool]) -> None:
        with trio.fail_after(20):
            while not wanted():
                await self._changed.wait()


async def begin(client: PeerProcess, model_name: str, **arguments: Any) -> str:
    """Start a streamed chat and return its tag."""
    return await client.send(
        op="call", method=CHAT, arguments={"model": model_name, "messages": HELLO, "stream": True, **arguments}
    )


async def test_overload_is_529_and_what_runs_ends_well(frontend: Frontend, model_name: str) -> None:
    engine = Held()
    async with behind(frontend, model_name, engine, engine_request_limit=1, request_queue_limit=0) as client:
        running = await begin(client, model_name)
        await client.item_seen(running)
        body = {"model": model_name, "messages": HELLO}
        for stream in (False, True):
            outcome, items = await ask(client, CHAT, **body, stream=stream)
            assert (outcome["event"], outcome["status"], items) == ("error", 529, []), outcome
        answer = await frontend.curl("/v1/chat/completions", body)
        assert answer.status == 529
        assert "overloaded" in answer.body
        assert engine.started == 1
        engine.gate.set()
        assert (await client.outcome(running))["event"] == "end"
        assert text_of(client.items(running)) == "begun done"
        # The instance stays listed; for a second the frontend answers in its name, without asking it.
        with trio.fail_after(20):
            while (outcome := (await ask(client, CHAT, **body))[0])["event"] != "end":
                assert outcome["status"] == 529, json.dumps(outcome)
                await trio.sleep(0.1)
    assert engine.ended == ["finished, killed=False"] * 2


async def test_an_engine_that_fails_in_mid_stream(frontend: Frontend, model_name: str) -> None:
    asked: list[Any] = []

    async def generate(request: Any) -> AsyncIterator[str]:
        asked.append(request)
        yield "one"
        await trio.sleep(0.01)
        yield " two"
        if request.get("seed") != 0:
            raise RuntimeError("the secret of the engine room")

    async with behind(frontend, model_name, generate) as client:
        outcome, chunks = await ask(client, CHAT, model=model_name, messages=HELLO, stream=True)
        assert outcome["event"] == "error"
        assert outcome["body"]["code"] == 500
        assert text_of(chunks) == "one two"
        answer = await frontend.curl(
            "/v1/chat/completions", {"model": model_name, "messages": HELLO, "stream": True, "seed": 1}
        )
        assert answer.status == 200
        *_, error, done = answer.events
        assert (error["error"]["code"], done) == (500, "[DONE]")
        outcome, items = await ask(client, CHAT, model=model_name, messages=HELLO)
        assert (outcome["event"], outcome["status"], items) == ("error", 500, [])
        assert "secret" not in answer.body + json.dumps(outcome)
        # A failed request says nothing about the next one.
        outcome, _ = await ask(client, CHAT, model=model_name, messages=HELLO, seed=0)
        assert outcome["event"] == "end", json.dumps(outcome)
    assert [request.get("seed") for request in asked] == [None, 1, None, 0]


@pytest.mark.parametrize("stream", [True, False])
async def test_the_engine_stops_when_the_client_leaves(frontend: Frontend, model_name: str, stream: bool) -> None:
    engine = Held()
    async with behind(frontend, model_name, engine) as client:
        tag = await begin(client, model_name, stream=stream)
        await engine.wait(lambda: engine.started == 1)
        if stream:
            await client.item_seen(tag)
        await client.send(op="leave", of=tag)
        assert (await client.outcome(tag))["event"] == "dropped"
        await engine.wait(lambda: bool(engine.ended))
        assert engine.ended == ["cancelled, killed=True"]
        engine.gate.set()
        outcome, _ = await ask(client, CHAT, model=model_name, messages=HELLO)
        assert outcome["event"] == "end", json.dumps(outcome)


# -- several workers -------------------------------------------------------------------------------------------------

WORKER = """
import os
import trio

async def generate(request, context):
    with open(__file__ + ".seen", "a") as seen:
        seen.write(f"{os.getpid()}\\n")
    for number in range(request["max_tokens"]):
        await trio.sleep(0.05)
        yield f"{os.getpid()} "
"""

STEPS = 30


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "worker.py"
    path.write_text(WORKER)
    return path


def seen_by(program: Path) -> Counter[int]:
    """How many requests each process was asked."""
    lines = Path(f"{program}.seen").read_text().splitlines()
    return Counter(map(int, lines))


def servers(client: PeerProcess, tag: str) -> list[int]:
    """Which process each chunk of an answer came from."""
    return [int(word) for word in text_of(client.items(tag)).split()]


async def both_serve(client: PeerProcess, model_name: str) -> None:
    """Wait until requests reach two workers."""
    with trio.fail_after(20):
        seen: set[int] = set()
        while len(seen) < 2:
            tag = await begin(client, model_name, max_tokens=1)
            assert (await client.outcome(tag))["event"] == "end"
            seen.update(servers(client, tag))


async def test_one_of_two_workers_is_killed(frontend: Frontend, model_name: str, program: Path) -> None:
    with trio.fail_after(PATIENCE):
        async with (
            serve_process(frontend, program, model_name) as doomed,
            serve_process(frontend, program, model_name) as other,
            frontend.open_client() as client,
        ):
            await frontend.wait_listed(model_name)
            await both_serve(client, model_name)
            tags = [await begin(client, model_name, max_tokens=STEPS) for _ in range(8)]
            for tag in tags:
                await client.item_seen(tag, 2)
            on_doomed = [tag for tag in tags if servers(client, tag)[0] == doomed.pid]
            assert 0 < len(on_doomed) < len(tags)
            doomed.kill()
            for tag in tags:
                outcome = await client.outcome(tag)
                if tag in on_doomed:
                    # Cut short, and the client is told so: text cannot be carried on by another worker.
                    assert outcome["event"] == "error", outcome
                    assert 0 < len(servers(client, tag)) < STEPS
                else:
                    assert outcome["event"] == "end", json.dumps(outcome)
                    assert servers(client, tag) == [other.pid] * STEPS
            # Its records stay for 10 s. One request may still be sent to it, and be refused; then it is set aside.
            statuses = []
            for _ in range(8):
                outcome, answers = await ask(client, CHAT, model=model_name, messages=HELLO, max_tokens=1)
                statuses.append(outcome.get("status"))
                assert all(a["choices"][0]["message"]["content"].split() == [str(other.pid)] for a in answers)
            assert sorted(statuses, key=str) in ([503, *[None] * 7], [None] * 8)
            assert model_name in await trio.to_thread.run_sync(frontend.models)
    assert seen_by(program)[doomed.pid] >= len(on_doomed)


async def test_one_of_two_workers_drains_under_load_and_nothing_is_lost(
    frontend: Frontend, model_name: str, program: Path
) -> None:
    outcomes: list[tuple[dict[str, Any], list[int]]] = []
    with trio.fail_after(PATIENCE):
        async with (
            serve_process(frontend, program, model_name, "--grace", "1") as leaving,
            serve_process(frontend, program, model_name, "--grace", "1") as other,
            frontend.open_client() as client,
        ):
            await frontend.wait_listed(model_name)
            await both_serve(client, model_name)
            is_drained = trio.Event()

            async def keep_asking() -> None:
                while not is_drained.is_set():
                    tag = await begin(client, model_name, max_tokens=STEPS)
                    outcomes.append((await client.outcome(tag), servers(client, tag)))

            async with trio.open_nursery() as nursery:
                for number in range(8):
                    nursery.start_soon(keep_asking)
                    await trio.sleep(0.01 * number)
                await trio.sleep(1)
                leaving.send_signal(signal.SIGTERM)
                assert await leaving.wait() == 0
                await trio.sleep(0.5)
                is_drained.set()
            outcome, (whole,) = await ask(client, CHAT, model=model_name, messages=HELLO, max_tokens=1)
            assert outcome["event"] == "end", json.dumps(outcome)
            assert whole["choices"][0]["message"]["content"].split() == [str(other.pid)]
    assert Counter(outcome["event"] for outcome, _ in outcomes) == {"end": len(outcomes)}
    assert all(len(pids) == STEPS and len(set(pids)) == 1 for _, pids in outcomes)
    assert {pids[0] for _, pids in outcomes} == {leaving.pid, other.pid}


async def test_the_only_worker_drains_and_its_streams_end_well(
    frontend: Frontend, model_name: str, program: Path
) -> None:
    """Without its card the model is gone for new requests; those that run are not touched."""
    with trio.fail_after(PATIENCE):
        async with (
            serve_process(frontend, program, model_name, "--grace", "0.5") as leaving,
            frontend.open_client() as client,
        ):
            await frontend.wait_listed(model_name)
            tags = [await begin(client, model_name, max_tokens=STEPS) for _ in range(8)]
            for tag in tags:
                await client.item_seen(tag, 2)
            leaving.send_signal(signal.SIGTERM)
            await frontend.wait_listed(model_name, listed=False)
            outcome, _ = await ask(client, CHAT, model=model_name, messages=HELLO, max_tokens=1)
            assert (outcome["event"], outcome["status"]) in (("error", 404), ("error", 503)), outcome
            for tag in tags:
                assert (await client.outcome(tag))["event"] == "end"
                assert servers(client, tag) == [leaving.pid] * STEPS
            assert await leaving.wait() == 0
    assert seen_by(program)[leaving.pid] == len(tags)
