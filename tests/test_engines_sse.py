"""Server-sent events: every cut of the bytes gives the same events, and nothing is kept beyond the limit."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engines._sse import ServerSentEvent, SseDecoder
from ingress.errors import GenerateError


def events_of(*pieces: bytes, max_event: int = 1000) -> list[tuple[str, bytes]]:
    decoder, found = SseDecoder(max_event), []
    for piece in pieces:
        decoder.receive_data(piece)
        found += [(event.event, event.data) for event in decoder]
    return found


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\n", [("", b"a")]),
        (b"data:a\r\n\r\ndata: b\r\rdata:  c\n\n", [("", b"a"), ("", b"b"), ("", b" c")]),
        (b"\xef\xbb\xbfdata: a\n\n", [("", b"a")]),
        (b"event: ping\nid: 3\nretry: 5\ndata: a\ndata: b\n\n", [("ping", b"a\nb")]),
        (b": a comment\n\n:\n\ndata: a\n\n", [("", b"a")]),
        (b"event: lost\n\ndata: a\n\n", [("", b"a")]),
        (b"data\n\n", [("", b"")]),
        (b"error: {}\n\n", [("error", b"{}")]),
        (b"data: not ended", []),
        (b"data: a\nunknown: x\nno colon\n\n", [("", b"a")]),
    ],
)
def test_events_are_read_as_the_standard_says(stream: bytes, events: list[tuple[str, bytes]]) -> None:
    assert events_of(stream) == events
    assert events_of(*[bytes([byte]) for byte in stream]) == events


STREAM = '\ufeffdata: {"é": 1}\r\n\r\n: ping\r\revent: error\rdata: x\ndata: y\n\r\n\ndata: [DONE]\n\n'.encode()


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
@example([STREAM.index(b"\r") + 1])
def test_bytes_cut_anywhere_give_the_same_events(cuts: list[int]) -> None:
    bounds = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[start:end] for start, end in itertools.pairwise(bounds)]
    assert events_of(*pieces) == [("", '{"é": 1}'.encode()), ("error", b"x\ny"), ("", b"[DONE]")]


def test_an_event_is_not_held_back_for_the_second_half_of_its_line_end() -> None:
    decoder = SseDecoder()
    decoder.receive_data(b"data: a\r\r")
    assert list(decoder) == [ServerSentEvent("", b"a")]
    decoder.receive_data(b"\ndata: b\n\n")
    assert list(decoder) == [ServerSentEvent("", b"b")]


@given(st.lists(st.binary(max_size=60), max_size=40))
def test_garbage_gives_events_within_the_limit_or_an_error(pieces: list[bytes]) -> None:
    try:
        assert all(len(data) <= 50 for _, data in events_of(*pieces, max_event=50))
    except GenerateError as exc:
        assert "more than 50 bytes" in str(exc)


@pytest.mark.parametrize("piece", [b"data: " + b"x" * 20, b"data: x\n", b"data\n", b": xxxxxxxxxxxxxxxxxxxxxxxxx"])
def test_an_event_that_does_not_end_is_given_up_at_the_limit(piece: bytes) -> None:
    with pytest.raises(GenerateError, match="more than 50 bytes"):
        events_of(*[piece] * 100, max_event=50)
