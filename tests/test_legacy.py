"""Callers up to 1.2.1 take every ack for success; what refuses the others is told to them on the response stream."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ingress import _legacy
from ingress.wire.request_frame import encode_request_frame
from ingress.wire.two_part import encode_two_part

from .raw_caller import RawResponse, Stage, open_stage, slow_network


async def wait(request: float) -> AsyncIterator[Any]:
    await trio.sleep(request)
    yield "done"


async def push_refused(stage: Stage, *, path: str | None = None, request_id: str = "old") -> RawResponse:
    """Push as a legacy caller what will be refused; the ack says nothing of it."""
    control = stage.caller.control(codec=None, request_id=request_id)
    assert await stage.ask(stage.caller.payload(0, control), path=path) == ""
    return await stage.caller.accept()


def assert_told(response: RawResponse, text: str) -> None:
    said = response.transcript
    assert said.subject == "subject-of-old"
    assert said.prologue_error == text
    assert said.has_sentinel
    assert not said.has_final and said.items == []


async def test_an_unknown_endpoint_is_told_to_legacy_callers_by_an_error_prologue() -> None:
    async with open_stage(wait) as stage:
        response = await push_refused(stage, path="1/nowhere")
        await response.read_until(lambda said: said.has_sentinel)
        assert_told(response, "Server unavailable: unknown endpoint 1/nowhere")
        # The newer ones read it in the ack, and are not dialled.
        assert await stage.ask(stage.caller.payload(), path="1/nowhere") == (
            "Server unavailable: unknown endpoint 1/nowhere"
        )


async def test_a_path_that_is_not_utf8_is_told_to_legacy_callers() -> None:
    async with open_stage(wait) as stage:
        payload = stage.caller.payload(0, stage.caller.control(codec=None, request_id="old"))
        await stage.connection.stream.send_all(b"\0\2\xff\xfe\0\0" + len(payload).to_bytes(4, "big") + payload)
        assert await stage.connection.read_acks() == [""]
        response = await stage.caller.accept()
        await response.read_until(lambda said: said.has_sentinel)
        assert_told(response, "Server unavailable: invalid endpoint path")


async def test_an_overload_is_told_to_legacy_callers(autojump_clock: MockClock) -> None:
    async with open_stage(wait, engine_request_limit=1) as stage:
        running = await stage.call(5)
        response = await push_refused(stage)
        await response.read_until(lambda said: said.has_sentinel)
        assert_told(response, "Server overloaded: worker at capacity")
        assert (await running.read_to_sentinel()).is_whole


async def test_an_overload_is_told_to_legacy_callers_whose_frame_is_too_large_too(autojump_clock: MockClock) -> None:
    async with open_stage(wait, engine_request_limit=1, max_frame_size=10_000) as stage:
        running = await stage.call(5)
        payload = stage.caller.payload("x" * 20_000, stage.caller.control(codec=None, request_id="old"))
        assert await stage.ask(payload) == ""
        response = await stage.caller.accept()
        await response.read_until(lambda said: said.has_sentinel)
        assert_told(response, "Server overloaded: worker at capacity")
        assert (await running.read_to_sentinel()).is_whole


@pytest.mark.parametrize("first", [100, 1500, 100_000])
async def test_an_overload_by_unfinished_frames_is_told_to_legacy_callers(
    first: int, autojump_clock: MockClock
) -> None:
    async with open_stage(wait, max_frame_size=200_000, max_incomplete_bytes=200_000) as stage:
        holder, filler, old, new = [await stage.caller.connect(stage.worker) for _ in range(4)]
        large = encode_request_frame(stage.connection.path, {}, stage.caller.payload("x" * 180_000))
        for connection, sent in ((holder, 150_000), (filler, 49_950)):
            await connection.stream.send_all(large[:sent])
        await wait_all_tasks_blocked()
        payload = stage.caller.payload("x" * 180_000, stage.caller.control(codec=None, request_id="old"))
        whole = encode_request_frame(old.path, {}, payload)
        await old.stream.send_all(whole[:first])  # the control message comes whole, or has to be waited for
        await wait_all_tasks_blocked()
        await old.stream.send_all(whole[first:150_000])
        assert await old.read_acks() == [""]
        response = await stage.caller.accept()
        await response.read_until(lambda said: said.has_sentinel)
        assert_told(response, "Server overloaded: too many bytes of unfinished requests")
        assert await old.stream.receive_some() == b""
        # The newer ones read it in the ack, and are not dialled.
        dialled = len(stage.caller.network.connects)  # type: ignore[attr-defined]
        await new.stream.send_all(large[:100_000])
        assert await new.read_acks() == ["Server overloaded: too many bytes of unfinished requests"]
        assert len(stage.caller.network.connects) == dialled  # type: ignore[attr-defined]
        assert stage.outcomes() == {("refused", "overloaded"): 2}


async def test_l08_a_want_of_memory_is_told_to_legacy_callers(autojump_clock: MockClock) -> None:
    async with open_stage(wait) as stage:
        stage.worker._plane._incomplete._is_short_of_memory = lambda size: True
        payload = stage.caller.payload("x" * 180_000, stage.caller.control(codec=None, request_id="old"))
        assert await stage.ask(payload) == ""
        response = await stage.caller.accept()
        await response.read_until(lambda said: said.has_sentinel)
        assert_told(response, "Server overloaded: worker is short of memory")


async def test_l04_a_want_of_descriptors_is_told_to_legacy_callers(autojump_clock: MockClock) -> None:
    async with open_stage(wait) as stage:
        descriptors = stage.worker._streams.descriptors
        descriptors.set_total(16)  # one of them for refusals
        running = [await stage.call(100) for _ in range(15)]
        response = await push_refused(stage)
        await response.read_until(lambda said: said.has_sentinel)
        assert_told(response, "Server overloaded: worker is short of descriptors")
        assert descriptors.held == 16
        # As long as that one has not closed, there is none for the next: the ack has to do.
        control = stage.caller.control(codec=None, request_id="next")
        assert await stage.ask(stage.caller.payload(0, control)) == "Server overloaded: worker is short of descriptors"
        await response.aclose()
        await wait_all_tasks_blocked()
        assert descriptors.held == 15
        for each in running:
            await each.aclose()
        await wait_all_tasks_blocked()
        assert descriptors.held == 0


async def test_a_draining_worker_tells_legacy_callers(autojump_clock: MockClock) -> None:
    async with open_stage(wait, drain_budget=5) as stage:
        running = await stage.call(3)
        stage.worker.drain()
        await trio.sleep(1)
        response = await push_refused(stage)
        await response.read_until(lambda said: said.has_sentinel)
        assert_told(response, f"Server unavailable: unknown endpoint {stage.connection.path}")
        assert (await running.read_to_sentinel()).is_whole


async def test_a_legacy_request_that_is_accepted_is_answered_like_any(autojump_clock: MockClock) -> None:
    async with open_stage(wait) as stage:
        assert (await stage.tell(1, codec=None)).items == ["done"]
        said = await stage.tell(b"junk", codec=None)
        assert said.is_whole and said.errors[0].kind == "InvalidArgument"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"transport": "quic-response"}, "Server unavailable: response transport quic-response is not supported"),
        ({"info": {"address": "169.254.169.254:80"}}, "Server unavailable: dial-back address refused"),
    ],
)
async def test_a_legacy_caller_that_cannot_be_dialled_gets_the_refusal_ack(changes: Any, text: str) -> None:
    async with open_stage(wait) as stage:
        control = stage.caller.control(codec=None, **changes)
        for path in (None, "1/nowhere"):
            ack = await stage.ask(stage.caller.payload(0, control), path=path)
            assert ack == (text if path is None else "Server unavailable: unknown endpoint 1/nowhere")
        assert stage.caller.network.connects[1:] == []  # type: ignore[attr-defined]


async def test_an_unreadable_control_message_gets_the_refusal_ack_for_that_is_all_there_is() -> None:
    async with open_stage(wait) as stage:
        assert await stage.ask(encode_two_part(b"{}", b"1")) == "Server unavailable: unreadable control message"


async def test_a_legacy_caller_that_cannot_be_reached_or_leaves_harms_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_stage(wait) as stage:
        control = stage.caller.control(codec=None, info={"address": "127.0.0.1:9999"})
        assert await stage.ask(stage.caller.payload(0, control), path="1/nowhere") == ""
        response = await push_refused(stage, path="1/nowhere")
        await response.aclose()
        await wait_all_tasks_blocked()
        await stage.assert_alive(0)
        assert [record for record in caplog.records if record.exc_info] == []


async def test_a_legacy_caller_that_never_reads_is_given_up(autojump_clock: MockClock) -> None:
    async with open_stage(wait, network=slow_network()) as stage:
        response = await push_refused(stage, path="1/nowhere")
        await trio.sleep(59)
        assert stage.worker._switchboard._legacy._pending == 1
        await trio.sleep(2)
        assert stage.worker._switchboard._legacy._pending == 0
        assert (await response.read_to_end()).end == "fin"


async def test_a_flood_of_legacy_refusals_is_no_flood_of_connections(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(_legacy, "MAX_PENDING", 5)
    async with open_stage(wait, network=slow_network()) as stage:
        control = stage.caller.control(codec=None, request_id="old")
        for _ in range(20):
            await stage.connection.send(stage.caller.payload(0, control), path="1/nowhere")
        acks = await stage.connection.read_acks(20)
        assert acks == [""] * 5 + ["Server unavailable: unknown endpoint 1/nowhere"] * 15
        for _ in range(5):
            response = await stage.caller.accept()
            await response.read_until(lambda said: said.has_sentinel)
            await response.aclose()
        await wait_all_tasks_blocked()
        response = await push_refused(stage, path="1/nowhere")  # there is room again
        await response.read_until(lambda said: said.has_sentinel)
