"""Just enough msgpack to write a request body without a library.

    nil c0 | false c2 | true c3 | f64 cb | i64 d3 | u64 cf | str32 db | bin32 c6 | array32 dd | map32 df

Small non-negative integers and short strings take their one-byte forms; the rest
its widest, which every decoder accepts.  Source: the msgpack specification.
"""

import struct
from typing import Any


def pack(value: Any) -> bytes:
    """Return `value` as msgpack; raises TypeError for what JSON and bytes lack."""
    match value:
        case None:
            return b"\xc0"
        case bool():
            return b"\xc3" if value else b"\xc2"
        case int():
            return _pack_int(value)
        case float():
            return struct.pack(">Bd", 0xCB, value)
        case str():
            text = value.encode()
            return _head(len(text), fix=0xA0, fix_limit=32, wide=0xDB) + text
        case bytes():
            return struct.pack(">BI", 0xC6, len(value)) + value
        case list():
            return _head(len(value), fix=0x90, fix_limit=16, wide=0xDD) + b"".join(map(pack, value))
        case dict():
            pairs = b"".join(pack(key) + pack(item) for key, item in value.items())
            return _head(len(value), fix=0x80, fix_limit=16, wide=0xDF) + pairs
    raise TypeError(f"no msgpack for {type(value).__name__}")


def _pack_int(value: int) -> bytes:
    if 0 <= value < 128:
        return bytes((value,))
    if value < 0:
        return struct.pack(">Bq", 0xD3, value)
    return struct.pack(">BQ", 0xCF, value)


def _head(count: int, *, fix: int, fix_limit: int, wide: int) -> bytes:
    if count < fix_limit:
        return bytes((fix | count,))
    return struct.pack(">BI", wide, count)
