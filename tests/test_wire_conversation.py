"""The response conversation with both ends talking, over a pipe that cuts as it likes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ingress.errors import GenerateError, LocalProtocolError, StreamIncomplete
from ingress.testing import _strategies as wire
from ingress.wire.codec import PayloadCodec, codec_named
from ingress.wire.messages import Annotated, CallHomeHandshake, ErrorEvent, Prologue
from ingress.wire.response import (
    FinalReceived,
    HandshakeReceived,
    ItemReceived,
    PrologueReceived,
    ResponseEvent,
    ResponseReceiver,
    ResponseSender,
    ResponseState,
)

from .test_wire_response import ALLOWED, JSON, SENTINEL, STEPS, receive


class Conversation(RuleBasedStateMachine):
    """A worker and a caller over a pipe that cuts as it likes, beside a model of what the caller must have heard."""

    def __init__(self) -> None:
        super().__init__()
        self.codec: PayloadCodec = JSON
        self.sender = ResponseSender(JSON)
        self.receiver = ResponseReceiver(JSON)
        self.in_flight = bytearray()
        self.sent: list[tuple[int, ResponseEvent | None]] = []
        """For every frame sent: the position of its last byte in the stream, and the event it must cause."""
        self.position = 0
        self.delivered = 0
        self.heard: list[ResponseEvent] = []
        self.is_closed = False

    def send(self, *frames: tuple[bytes, ResponseEvent | None]) -> None:
        for frame, event in frames:
            self.in_flight += frame
            self.position += len(frame)
            self.sent.append((self.position, event))

    def in_state(self, *states: ResponseState) -> bool:
        return self.sender.state in states and not self.is_closed

    @precondition(lambda self: self.in_state(ResponseState.HANDSHAKE))
    @rule(codec_name=wire.codec_names(), subject=wire.texts())
    def shake_hands(self, codec_name: Any, subject: str) -> None:
        self.codec = codec_named(codec_name)
        self.sender = ResponseSender(self.codec)
        self.receiver = ResponseReceiver(self.codec)
        event = HandshakeReceived(CallHomeHandshake(subject, "response"))
        self.send((self.sender.handshake(subject), event))

    @precondition(lambda self: self.in_state(ResponseState.PROLOGUE))
    @rule()
    def accept(self) -> None:
        self.send((self.sender.prologue(), PrologueReceived(Prologue())))

    @precondition(lambda self: self.in_state(ResponseState.PROLOGUE))
    @rule(reason=wire.texts(), error=st.none() | wire.error_events())
    def refuse(self, reason: str, error: ErrorEvent | None) -> None:
        frames = self.sender.error_prologue(reason, error)
        assert frames.endswith(SENTINEL)
        prologue = frames.removesuffix(SENTINEL)
        self.send((prologue, PrologueReceived(Prologue(reason, error))), (SENTINEL, None))

    @precondition(lambda self: self.in_state(ResponseState.ITEMS))
    @rule(item=wire.annotated())
    def yield_an_envelope(self, item: Annotated) -> None:
        self.send((self.sender.item(item), ItemReceived(item)))

    @precondition(lambda self: self.in_state(ResponseState.ITEMS))
    @rule(value=wire.codec_values())
    def yield_a_value(self, value: Any) -> None:
        self.send((self.sender.item(value), ItemReceived(Annotated(data=value))))

    @precondition(lambda self: self.in_state(ResponseState.ITEMS))
    @rule()
    def yield_what_cannot_be_sent(self) -> None:
        with pytest.raises(GenerateError):
            self.sender.item(object())

    @precondition(lambda self: self.in_state(ResponseState.ITEMS))
    @rule()
    def finish(self) -> None:
        frames = self.sender.final()
        final = frames.removesuffix(SENTINEL)
        self.send((final, FinalReceived()), (SENTINEL, None))

    @rule(step=st.sampled_from(sorted(STEPS)))
    def try_what_is_out_of_order(self, step: str) -> None:
        if step not in ALLOWED[self.sender.state]:
            with pytest.raises(LocalProtocolError):
                STEPS[step](self.sender)

    @precondition(lambda self: not self.is_closed)
    @rule(count=st.integers(0, 200))
    def deliver_some(self, count: int) -> None:
        self.deliver(self.in_flight[:count])

    @precondition(lambda self: not self.is_closed)
    @rule()
    def deliver_all(self) -> None:
        self.deliver(self.in_flight[:])

    def deliver(self, segment: bytearray) -> None:
        del self.in_flight[: len(segment)]
        self.delivered += len(segment)
        self.heard += receive(self.receiver, bytes(segment))

    @precondition(lambda self: not self.is_closed)
    @rule()
    def close(self) -> None:
        """The worker's side of the connection ends; what is in flight is lost."""
        self.is_closed = True
        is_whole = any(
            isinstance(event, FinalReceived)
            or (isinstance(event, PrologueReceived) and event.prologue.error is not None)
            for event in self.heard
        )
        if is_whole:
            self.receiver.receive_eof()
        else:
            with pytest.raises(StreamIncomplete):
                self.receiver.receive_eof()

    @invariant()
    def the_caller_has_heard_every_frame_that_arrived_whole_and_nothing_else(self) -> None:
        arrived = [event for end, event in self.sent if end <= self.delivered and event is not None]
        assert self.heard == arrived

    @invariant()
    def the_caller_is_never_ahead_of_the_worker(self) -> None:
        order = list(ResponseState)
        assert order.index(self.receiver.state) <= order.index(self.sender.state)


TestConversation = Conversation.TestCase
