"""Counting the items of an answer says what reading them says."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingress.client._counting_receiver import CountingReceiver
from ingress.errors import IngressError, MessageTooLarge, RemoteError, StreamIncomplete, Unavailable
from ingress.testing.strategies import codec_values
from ingress.wire.codec import codec_named
from ingress.wire.messages import Annotated, ErrorEvent
from ingress.wire.response import ResponseSender
from ingress.wire.two_part import encode_two_part

Codec = Literal["json", "msgpack"]
CODECS: tuple[Codec, ...] = ("json", "msgpack")


def answer(codec: str, items: list[Any], *, is_ended: bool = True) -> bytes:
    sender = ResponseSender(codec_named(codec))
    sent = sender.handshake("subject") + sender.prologue() + b"".join(map(sender.item, items))
    return sent + (sender.final() if is_ended else b"")


def feed(receiver: CountingReceiver, data: bytes, size: int) -> int:
    return sum(receiver.receive_data(data[i : i + size]) for i in range(0, len(data), size))


@given(st.sampled_from(CODECS), st.lists(codec_values(), max_size=8), st.integers(1, 90))
def test_every_item_is_counted_however_the_bytes_are_cut(codec: Codec, items: list[Any], size: int) -> None:
    receiver = CountingReceiver(codec)
    assert feed(receiver, answer(codec, items), size) == len(items)
    assert receiver.is_whole and receiver.is_done and receiver.failure is None


@pytest.mark.parametrize("codec", CODECS)
def test_an_item_with_more_than_data_is_counted_and_an_error_is_told(codec: Codec) -> None:
    error = Annotated.from_error(ErrorEvent("boom", "InvalidArgument"))
    items = [1, Annotated(data=2, id="7", comment=["x"]), Annotated(event="note"), error]
    receiver = CountingReceiver(codec)
    assert receiver.receive_data(answer(codec, items)) == 3
    assert isinstance(receiver.failure, RemoteError) and receiver.failure.kind == "InvalidArgument"
    assert receiver.is_done


def test_an_answer_that_breaks_off_is_not_whole() -> None:
    receiver = CountingReceiver("json")
    assert receiver.receive_data(answer("json", [1, 2], is_ended=False)) == 2
    assert not receiver.is_whole and not receiver.is_done


def test_a_refusal_in_the_prologue_is_a_failure() -> None:
    sender = ResponseSender(codec_named("json"))
    receiver = CountingReceiver("json")
    assert receiver.receive_data(sender.handshake("s") + sender.error_prologue("no room")) == 0
    assert isinstance(receiver.failure, Unavailable)


def test_a_sentinel_before_the_final_frame_is_refused() -> None:
    with pytest.raises(StreamIncomplete):
        CountingReceiver("json").receive_data(answer("json", [1], is_ended=False) + encode_two_part(b'"sentinel"'))


def test_a_frame_above_the_limit_is_refused_by_its_prefix() -> None:
    receiver = CountingReceiver("json", max_message_size=1000)
    with pytest.raises(MessageTooLarge):
        receiver.receive_data(answer("json", ["x" * 2000], is_ended=False)[:200])


@given(st.sampled_from(CODECS), st.binary(max_size=200))
def test_any_bytes_are_counted_or_refused(codec: Codec, garbage: bytes) -> None:
    receiver = CountingReceiver(codec)
    beginning = answer(codec, [], is_ended=False)
    with suppress(IngressError):
        assert receiver.receive_data(beginning + garbage) <= len(garbage) // 24
