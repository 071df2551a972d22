"""Payloads as a caller would push them, for shapes and handlers under test; and what is none."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from msgspec import UNSET

from ..abc import IngressDispatch
from ..wire.codec import codec_named
from ..wire.messages import CodecName, ConnectionInfo, RequestControlMessage
from ..wire.two_part import encode_two_part

KIT_ADDRESS = "127.0.0.1:45001"


def control_message(
    request_id: str = "request-1",
    *,
    codec: CodecName = "json",
    bidirectional: bool = False,
    metadata: Mapping[str, str] | None = None,
    address: str = KIT_ADDRESS,
) -> RequestControlMessage:
    """Build a control message as a released client would: what a shape's payload has to carry in some form.

    Args:
        request_id: the same where not given, so that payloads are the same each time.
        bidirectional: ask for a request stream too.
        address: where the worker shall dial; :func:`check_shape` listens there, in memory.
    """
    response = ConnectionInfo(address, f"{request_id}.response", request_id, "response")
    requests = ConnectionInfo(address, f"{request_id}.requests", request_id, "request")
    return RequestControlMessage(
        request_id,
        "many_in" if bidirectional else "single_in",
        "many_out",
        response.to_address(),
        codec,
        request_stream_connection_info=requests.to_address() if bidirectional else UNSET,
        metadata=UNSET if metadata is None else dict(metadata),
    )


def unary_payload(request: Any, control: RequestControlMessage | None = None) -> bytes:
    """Build the payload of an ordinary request: a two-part frame of a control message and a body."""
    control = control_message() if control is None else control
    return encode_two_part(control.encode(), codec_named(control.codec_name).encode(request))


def bidirectional_payload(control: RequestControlMessage | None = None) -> bytes:
    """Build the payload of a bidirectional request: a two-part frame of a control message alone."""
    return encode_two_part((control_message(bidirectional=True) if control is None else control).encode())


def builtin_payloads() -> list[bytes]:
    """One payload of each built-in kind in each codec."""
    codecs: tuple[CodecName, ...] = ("json", "msgpack")
    return [
        *(unary_payload({"prompt": "hello world", "n": 2}, control_message(codec=codec)) for codec in codecs),
        *(bidirectional_payload(control_message(codec=codec, bidirectional=True)) for codec in codecs),
    ]


def payloads_of(shape: IngressDispatch[Any]) -> list[bytes]:
    """Return examples of a shape's payloads: its own, and those of the built-in kinds that it accepts.

    A shape that is no two-part frame tells its own in a method ``example_payloads(control)``, which returns payloads
    that carry the control message.
    """
    tell: Callable[[RequestControlMessage], Iterable[bytes]] | None = getattr(shape, "example_payloads", None)
    own = [] if tell is None else list(tell(control_message()))
    return own or [payload for payload in builtin_payloads() if shape.accepts(payload)]


# -- garbage ---------------------------------------------------------------------------------------------------------


def garbage(rng: random.Random, payloads: Sequence[bytes], count: int) -> Iterator[bytes]:
    """Yield what is no payload, or only nearly one: noise, lengths that lie, and payloads with a few things changed."""
    yield from (b"", b"\0", b"\xff" * 24, b"\0" * 24, b"{}", b"[]", b"null", b'""')
    for payload in payloads:
        yield from (payload[: len(payload) // 2], payload[:-1], payload[1:], payload + b"\0", payload * 2)
    makers = (_noise, _lying_prefix, *[_mutated] * 6)
    for _ in range(count):
        yield rng.choice(makers)(rng, payloads)


def cuts(rng: random.Random, payload: bytes, count: int) -> list[int]:
    """Where to cut a payload: everywhere, or where it is long at its ends and at random."""
    places = range(len(payload))
    if len(places) <= count:
        return list(places)
    ends = {*places[: count // 4], *places[-count // 4 :]}
    return sorted(ends | set(rng.sample(places, count // 2)))


def smallest(data: bytes, fails: Callable[[bytes], bool], attempts: int = 200) -> bytes:
    """Take away from failing data what it can do without, so that a message shows what matters."""
    size = len(data) // 2
    while size and attempts > 0:
        for start in range(0, len(data), size):
            shorter = data[:start] + data[start + size :]
            attempts -= 1
            if fails(shorter):
                data = shorter
                break
        else:
            size //= 2
    return data


_LENGTHS = (0, 1, 23, 24, 25, 255, 2**16, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1)


def _noise(rng: random.Random, _: Sequence[bytes]) -> bytes:
    return rng.randbytes(rng.randrange(200))


def _lying_prefix(rng: random.Random, _: Sequence[bytes]) -> bytes:
    return struct.pack(">QQQ", *rng.choices(_LENGTHS, k=3)) + rng.randbytes(rng.randrange(100))


def _mutated(rng: random.Random, payloads: Sequence[bytes]) -> bytes:
    if not payloads:
        return _noise(rng, payloads)
    data = bytearray(rng.choice(payloads))
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(data) + 1)
        end = min(at + rng.choice((1, 1, 2, 8, 40)), len(data))
        match rng.randrange(6):
            case 0:  # other bytes
                data[at:end] = rng.randbytes(end - at)
            case 1:  # bytes gone
                del data[at:end]
            case 2:  # bytes more
                data[at:at] = rng.choice((rng.randbytes(3), b"\0", b'"', b"[" * 50, b"9" * 30, "€".encode()))
            case 3:  # another length
                data[at : at + 8] = struct.pack(">Q", rng.choice(_LENGTHS))
            case 4:  # the end of another payload
                data[at:] = rng.choice(payloads)[at:]
            case _:  # one bit
                if at < len(data):
                    data[at] ^= 1 << rng.randrange(8)
    return bytes(data)
