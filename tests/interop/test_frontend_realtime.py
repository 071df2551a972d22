"""The real OpenAI frontend carries a websocket into a bidirectional engine of ours."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

import ingress

from .frontend import Frontend, behind

pytestmark = pytest.mark.interop


async def test_realtime_events_go_both_ways(frontend: Frontend, model_name: str) -> None:
    seen: list[dict[str, Any]] = []
    ended: list[str] = []
    is_over = trio.Event()

    @ingress.bidirectional
    async def converse(events: AsyncIterator[dict[str, Any]], context: ingress.Context) -> AsyncIterator[Any]:
        try:
            async for event in events:
                seen.append(event)
                kind = event["type"]
                if kind == "session.update":
                    yield {"type": "session.updated", "event_id": "e1", "session": event["session"]}
                elif kind == "response.create":
                    common = {"response_id": "r", "item_id": "i", "output_index": 0, "content_index": 0}
                    for number, word in enumerate(("Hi", " there")):
                        event_id = f"d{number}"
                        yield {"type": "response.output_text.delta", "event_id": event_id, "delta": word, **common}
                    yield {"type": "response.output_text.done", "event_id": "e3", "text": "Hi there", **common}
        finally:
            ended.append(f"stopped={context.is_stopped}")
            is_over.set()

    async with behind(frontend, model_name, converse) as client:
        session = {"type": "realtime", "model": model_name, "instructions": "be brief"}
        events = [{"type": "session.update", "session": session}, {"type": "response.create"}]
        tag = await client.send(op="realtime", model=model_name, events=events, wanted="response.output_text.done")
        outcome = await client.outcome(tag)
        assert outcome["event"] == "end", outcome
        answers = client.items(tag)
        assert [answer["type"] for answer in answers] == [
            "session.created",
            "session.updated",
            "response.output_text.delta",
            "response.output_text.delta",
            "response.output_text.done",
        ]
        assert [answer["delta"] for answer in answers[2:4]] == ["Hi", " there"]
        assert answers[1]["session"]["instructions"] == "be brief"
        # The websocket is closed now: the engine is told.
        with trio.fail_after(20):
            await is_over.wait()
    assert [event["type"] for event in seen] == ["session.update", "response.create"]
    assert seen[0]["session"]["instructions"] == "be brief"
    assert ended == ["stopped=True"]
