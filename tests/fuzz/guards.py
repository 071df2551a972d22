"""The guards of request bodies, held against the decoders that they guard: what passes one must not harm the other."""

from __future__ import annotations

import contextlib
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgspec

from ingress.errors import DeserializationError
from ingress.wire.guards import check_json_body, check_msgpack_keys, check_msgpack_size

# What a decoder may take beside its input: an empty container of a byte costs 64.
MEMORY_FACTOR = 64
MEMORY_BASE = 1 << 20


def attack_json_guard(data: bytes) -> object:
    return attack_guard(check_json_body, msgspec.json.decode, data)


def attack_msgpack_guard(data: bytes) -> object:
    return attack_guard(_check_msgpack, msgspec.msgpack.decode, data)


def _check_msgpack(data: bytes) -> None:
    check_msgpack_size(data)
    check_msgpack_keys(data)
    with contextlib.suppress(DeserializationError):  # here inputs are small, and so must be what is too many
        check_msgpack_keys(data, max_keys=len(data) // 8)


def attack_guard(check: Callable[[bytes], object], decode: Callable[[bytes], Any], data: bytes) -> object:
    """Decode what the guard lets pass; it may be no JSON, and neither too deep nor too large for the decoder."""
    check(data)
    tracemalloc.start()
    try:
        decode(data)
        outcome = "decoded"
    except RecursionError:
        raise AssertionError("the guard let pass what is too deep for the decoder") from None
    except (msgspec.MsgspecError, ValueError) as exc:
        outcome = type(exc).__name__
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak <= MEMORY_FACTOR * len(data) + MEMORY_BASE, f"{peak} bytes to decode {len(data)}"
    return outcome
