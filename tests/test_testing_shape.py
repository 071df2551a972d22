"""``check_shape``: the built-in shapes pass it, and shapes that are broken in one way fail it and are told how."""

from __future__ import annotations

import gc
import socket
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest
import trio

from ingress import Dialer, Engine, IngressDispatch, ParsedRequest
from ingress.errors import DeserializationError, InvalidMessage
from ingress.testing import (
    Outcome,
    PropertyFailed,
    bidirectional_payload,
    check_shape,
    control_message,
    unary_payload,
)
from ingress.wire.codec import codec_named
from ingress.wire.messages import RequestControlMessage, StreamAddress
from ingress.wire.request_frame import RequestFrameDecoder
from shapes import HeaderAndData, HeaderOnly
from tests import captures

MARK = bytes(8) + b"lines"
FEW = 40
"""Examples a property: enough for every break below, and quick."""


def encode(control: RequestControlMessage, text: str) -> bytes:
    return b"".join((MARK, control.encode(), b"\n", text.encode(), b"\n"))


class Lines(IngressDispatch[str]):
    """A third shape that is no two-part frame: a mark, a line of control message, a line of text."""

    def accepts(self, payload: bytes) -> bool:
        return payload.startswith(MARK)

    def read_control(self, payload: bytes) -> RequestControlMessage:
        return RequestControlMessage.decode(self.split(payload)[0])

    async def parse_and_build_request(
        self, payload: bytes, control: RequestControlMessage, dialer: Dialer
    ) -> ParsedRequest[str]:
        try:
            return ParsedRequest(self.split(payload)[1].decode(), control)
        except UnicodeDecodeError as exc:
            raise DeserializationError(f"not text: {exc}") from exc

    def split(self, payload: bytes) -> tuple[bytes, bytes]:
        lines = payload[len(MARK) :].split(b"\n")
        if len(lines) != 3 or lines[2]:
            raise InvalidMessage(f"expected two lines, got {len(lines) - 1}")
        return lines[0], lines[1]

    def example_payloads(self, control: RequestControlMessage) -> Iterable[bytes]:
        yield encode(control, "hello world")


def failure_of(shape: IngressDispatch[Any], payloads: Any = None, **options: Any) -> PropertyFailed:
    with pytest.raises(PropertyFailed) as caught:
        check_shape(shape, payloads, **{"examples": FEW, **options})
    return caught.value


# -- shapes that pass ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [HeaderAndData(), HeaderOnly(), Lines()], ids=lambda shape: type(shape).__name__)
def test_a_shape_that_keeps_what_the_handler_relies_on_passes(shape: IngressDispatch[Any]) -> None:
    check_shape(shape)


def test_a_mapping_says_which_request_the_engine_should_get() -> None:
    check_shape(Lines(), {encode(control_message(), text): text for text in ("", "grüße")}, examples=FEW)
    check_shape(HeaderAndData(), {unary_payload([1, None]): [1, None]}, examples=FEW)
    frames = [b"1", b'"two"']
    check_shape(HeaderOnly(), {bidirectional_payload(): [1, "two"]}, frames=frames, examples=FEW)
    error = failure_of(Lines(), {encode(control_message(), "one"): "two"})
    assert (error.expected, error.got) == ("the request 'two'", "'one'")


def test_recorded_payloads_will_do_wherever_they_say_to_dial() -> None:
    decoder = RequestFrameDecoder()
    for name in captures.names("request-unary-record"):
        decoder.receive_data(captures.load(name).data)
    check_shape(HeaderAndData(), [frame.payload for frame in decoder], examples=FEW)


def test_a_shape_that_serves_no_engine_cannot_be_checked() -> None:
    class Picky(Lines):
        def can_serve(self, engine: Engine) -> bool:
            return False

    error = failure_of(Picky())
    assert error.property == "can be checked" and "can_serve" in error.expected


def test_a_shape_whose_payloads_have_no_end_is_not_cut() -> None:
    class Rest(Lines):
        def split(self, payload: bytes) -> tuple[bytes, bytes]:
            header, newline, text = payload[len(MARK) :].partition(b"\n")
            if not newline:
                raise InvalidMessage("expected a line")
            return header, text

    error = failure_of(Rest())
    assert error.property == "a payload cut anywhere is refused"
    assert "is_framed=False" in error.expected and error.got.startswith("the request '")
    check_shape(Rest(), is_framed=False, examples=FEW)


# -- three that are broken -------------------------------------------------------------------------------------------


class LeaksStream(Lines):
    """Opens a stream of its own, behind the dialer's back, and keeps it."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    async def parse_and_build_request(
        self, payload: bytes, control: RequestControlMessage, dialer: Dialer
    ) -> ParsedRequest[str]:
        self.kept.append(socket.socketpair())
        return await super().parse_and_build_request(payload, control, dialer)

    def close(self) -> None:
        for pair in self.kept:
            for end in pair:
                end.close()


def test_a_shape_that_leaks_a_stream_is_told_so() -> None:
    shape = LeaksStream()
    error = failure_of(shape)
    shape.close()
    gc.collect()
    assert error.property == "leaves nothing open and keeps nothing of a request"
    assert error.expected == "no socket left open: a shape asks its dialer for streams"
    assert error.got.startswith("2 open: <socket.socket fd=")


class AcceptsAll(Lines):
    """Takes every payload for its own."""

    def accepts(self, payload: bytes) -> bool:
        return True


def test_a_shape_that_accepts_anothers_payload_is_told_whose() -> None:
    error = failure_of(AcceptsAll())
    assert str(error) == (
        "AcceptsAll: is the only shape that accepts its payloads\n"
        "  expected  accepts() to be False for another shape's payloads\n"
        "  got       True for one of HeaderAndData\n"
        "  seed      0"
    )


class Thrower(Lines):
    """Raises what Python raises."""

    def split(self, payload: bytes) -> tuple[bytes, bytes]:
        header, text, rest = payload[len(MARK) :].split(b"\n")
        if rest:
            raise InvalidMessage("too long")
        return header, text


def test_a_shape_that_raises_value_error_on_garbage_is_shown_the_line_and_the_bytes() -> None:
    error = failure_of(Thrower())
    assert error.property == "garbage gives an IngressError and nothing else"
    assert error.expected == "an IngressError or a request"
    assert error.got.startswith("read_control raised ValueError: not enough values to unpack")
    assert "test_testing_shape.py" in error.got and "in split" in error.got
    # The garbage is made smaller as long as it fails in the same way.
    assert error.got.endswith(f", from {MARK!r}")


# -- and more --------------------------------------------------------------------------------------------------------


def test_a_shape_that_answers_for_a_payload_of_an_installed_one_is_told_which() -> None:
    class Twin(HeaderAndData):
        pass

    error = failure_of(Twin())
    assert error.got.startswith("HeaderAndData accepts b'")
    check_shape(Twin(), others=[], examples=FEW)


class Impure(Lines):
    def accepts(self, payload: bytes) -> bool:
        socket.getaddrinfo("127.0.0.1", 80)
        return super().accepts(payload)


class Forgetful(Lines):
    """Gives another answer each time."""

    count = 0

    def read_control(self, payload: bytes) -> RequestControlMessage:
        self.count += 1
        control = super().read_control(payload)
        return RequestControlMessage(f"{self.count}", "single_in", "many_out", control.connection_info)


class NoControl(Lines):
    def read_control(self, payload: bytes) -> Any:
        return None


class Hoarder(HeaderOnly):
    """Keeps its dialer and its stream for later."""

    def __init__(self) -> None:
        super().__init__()
        self.dialers: list[Any] = []

    async def parse_and_build_request(
        self, payload: bytes, control: RequestControlMessage, dialer: Dialer
    ) -> ParsedRequest[AsyncIterable[Any]]:
        self.dialers.append(dialer)
        return await super().parse_and_build_request(payload, control, dialer)


class Unannounced(HeaderOnly):
    """Dials what nobody has checked before the ack."""

    def request_streams(self, control: RequestControlMessage) -> Sequence[StreamAddress]:
        return ()

    async def parse_and_build_request(
        self, payload: bytes, control: RequestControlMessage, dialer: Dialer
    ) -> ParsedRequest[AsyncIterable[Any]]:
        (stream,) = super().request_streams(control)
        return ParsedRequest(await dialer.open_request_stream(stream, codec_named(control.codec_name).decode), control)


class Deaf(HeaderOnly):
    """Takes a request stream that could not be opened for an empty one."""

    async def parse_and_build_request(
        self, payload: bytes, control: RequestControlMessage, dialer: Dialer
    ) -> ParsedRequest[AsyncIterable[Any]]:
        try:
            return await super().parse_and_build_request(payload, control, dialer)
        except Exception:
            return ParsedRequest(nothing(), control)


async def nothing() -> AsyncIterator[Any]:
    return
    yield


class Rude(HeaderOnly):
    """Its decoder raises what Python raises, in the handler's own task."""

    async def parse_and_build_request(
        self, payload: bytes, control: RequestControlMessage, dialer: Dialer
    ) -> ParsedRequest[AsyncIterable[Any]]:
        (stream,) = self.request_streams(control)
        return ParsedRequest(await dialer.open_request_stream(stream, bytes.decode), control)


class LeavesTask(Lines):
    """Has its request looked after by a task that nobody ends."""

    async def parse_and_build_request(
        self, payload: bytes, control: RequestControlMessage, dialer: Dialer
    ) -> ParsedRequest[str]:
        trio.lowlevel.spawn_system_task(trio.sleep_forever, name="looks after it")
        return await super().parse_and_build_request(payload, control, dialer)


class Hanging(Lines):
    async def parse_and_build_request(
        self, payload: bytes, control: RequestControlMessage, dialer: Dialer
    ) -> ParsedRequest[str]:
        await trio.sleep_forever()
        raise AssertionError


class Stubborn(Lines):
    """Loses a cancellation, and with it the rest of the request's life."""

    async def parse_and_build_request(
        self, payload: bytes, control: RequestControlMessage, dialer: Dialer
    ) -> ParsedRequest[str]:
        with trio.CancelScope(shield=True):
            await trio.sleep(3600)
        return await super().parse_and_build_request(payload, control, dialer)


class Wrong(Lines):
    """Returns the request itself."""

    async def parse_and_build_request(self, payload: bytes, control: RequestControlMessage, dialer: Dialer) -> Any:
        return (await super().parse_and_build_request(payload, control, dialer)).request


BROKEN: dict[Callable[[], IngressDispatch[Any]], tuple[str, str]] = {
    Impure: ("reads its control message", "they touch socket.getaddrinfo"),
    Forgetful: ("reads its control message", "id='1'"),
    NoControl: ("reads its control message", "None"),
    Hanging: ("turns each payload into a request", "nothing"),
    Stubborn: ("turns each payload into a request", "nothing"),
    Wrong: ("turns each payload into a request", "AttributeError"),
    Hoarder: ("leaves nothing open", "still holds its WatchedDialer"),
    Unannounced: ("dials what it announces", "it opened [StreamAddress("),
    Deaf: ("dials what it announces", "a request"),
    Rude: ("garbage on a request stream", "UnicodeDecodeError"),
    LeavesTask: ("leaves nothing open", "task looks after it still runs"),
}


@pytest.mark.parametrize("make", BROKEN, ids=lambda make: make.__name__)
def test_a_broken_shape_is_told_what_is_wrong(make: Callable[[], IngressDispatch[Any]]) -> None:
    name, got = BROKEN[make]
    shape = make()
    payloads = [bidirectional_payload()] if isinstance(shape, HeaderOnly) else None
    error = failure_of(shape, payloads, others=[])
    assert error.property.startswith(name), error
    assert got in error.got, error


# -- the check itself ------------------------------------------------------------------------------------------------


def test_without_payloads_there_is_nothing_to_check() -> None:
    class Silent(Lines):
        def example_payloads(self, control: RequestControlMessage) -> Iterator[bytes]:
            return iter(())

    error = failure_of(Silent())
    assert (error.subject, error.property) == ("Silent", "can be checked")
    assert "example_payloads" in error.got


def test_with_on_outcome_every_property_is_told_and_nothing_is_raised() -> None:
    outcomes: list[Outcome] = []
    check_shape(Thrower(), examples=FEW, on_outcome=outcomes.append)
    failed = [outcome.name for outcome in outcomes if outcome.failure is not None]
    assert failed == ["garbage gives an IngressError and nothing else", "a payload cut anywhere is refused"]
    assert len(outcomes) == 13


def test_the_same_seed_fails_in_the_same_way_and_another_may_not() -> None:
    errors = [failure_of(Thrower(), seed=seed).got for seed in (3, 3)]
    assert errors[0] == errors[1]
    assert failure_of(Thrower(), seed=3).seed == 3


async def test_a_check_says_so_when_it_is_called_inside_an_event_loop() -> None:
    with pytest.raises(RuntimeError, match="call it from a plain function, not an async one"):
        check_shape(Lines())
