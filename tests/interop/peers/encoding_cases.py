"""Values whose encoding on the wire is worth knowing, by the name of the case."""

import datetime
import decimal
import enum
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class Colour(enum.Enum):
    """A plain member, which is no number and no string."""

    RED = "red"


class Level(enum.IntEnum):
    """A member that is an int too."""

    LOW = 3


class Word(enum.StrEnum):
    """A member that is a str too."""

    A = "a"


@dataclass
class Point:
    """A dataclass, which is not a mapping."""

    x: int
    y: int


class Text(str):
    """A subclass of str."""


class Number(int):
    """A subclass of int."""


class Fraction(float):
    """A subclass of float."""


class Table(dict[str, int]):
    """A subclass of dict."""


def nested(depth: int) -> list[Any]:
    """Return a list in a list, `depth` brackets deep."""
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


def cyclic() -> list[Any]:
    """Return a list that holds itself."""
    value: list[Any] = []
    value.append(value)
    return value


# Functions, so that each request gets a fresh value and a broken one hurts its case alone.
CASES: dict[str, Callable[[], Any]] = {
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "-inf": lambda: float("-inf"),
    "-0.0": lambda: -0.0,
    "1e100": lambda: 1e100,
    "1.0": lambda: 1.0,
    "5e-324": lambda: 5e-324,
    "0.1": lambda: 0.1,
    "1e16": lambda: 1e16,
    "1e15": lambda: 1e15,
    "1e-5": lambda: 1e-5,
    "1e-7": lambda: 1e-7,
    "1.7976931348623157e308": lambda: 1.7976931348623157e308,
    "123456789.125": lambda: 123456789.125,
    'b"\\x00\\xff"': lambda: b"\x00\xff",
    'b""': lambda: b"",
    'bytearray(b"\\x00\\xff")': lambda: bytearray(b"\x00\xff"),
    'memoryview(b"\\x00\\xff")': lambda: memoryview(b"\x00\xff"),
    '{"k": b"\\x01"}': lambda: {"k": b"\x01"},
    '[b"\\x01", b"\\xff"]': lambda: [b"\x01", b"\xff"],
    "(1, 2)": lambda: (1, 2),
    "()": lambda: (),
    "{1, 2}": lambda: {1, 2},
    "frozenset({1, 2})": lambda: frozenset({1, 2}),
    "range(3)": lambda: range(3),
    "generator": lambda: (i for i in range(3)),
    '{1: "a"}': lambda: {1: "a"},
    '{-1: "a"}': lambda: {-1: "a"},
    "{2**64: 1}": lambda: {2**64: 1},
    "{None: 1}": lambda: {None: 1},
    "{True: 1}": lambda: {True: 1},
    "{1.5: 1}": lambda: {1.5: 1},
    "{1.0: 1}": lambda: {1.0: 1},
    "{nan: 1}": lambda: {float("nan"): 1},
    '{b"k": 1}': lambda: {b"k": 1},
    "{(1, 2): 1}": lambda: {(1, 2): 1},
    "{Level.LOW: 1}": lambda: {Level.LOW: 1},
    "{Word.A: 1}": lambda: {Word.A: 1},
    "{Text('k'): 1}": lambda: {Text("k"): 1},
    '{1: "a", "1": "b"}': lambda: {1: "a", "1": "b"},
    "0": lambda: 0,
    "127": lambda: 127,
    "128": lambda: 128,
    "-1": lambda: -1,
    "-33": lambda: -33,
    "65536": lambda: 65536,
    "2**53+1": lambda: 2**53 + 1,
    "2**63-1": lambda: 2**63 - 1,
    "2**63": lambda: 2**63,
    "2**64-1": lambda: 2**64 - 1,
    "2**64": lambda: 2**64,
    "2**70": lambda: 2**70,
    "2**127": lambda: 2**127,
    "2**128": lambda: 2**128,
    "-2**63": lambda: -(2**63),
    "-2**63-1": lambda: -(2**63) - 1,
    "[2**64] in a list": lambda: [2**64],
    r'"\ud800" (lone surrogate)': lambda: "\ud800",
    r'{"\ud800": 1}': lambda: {"\ud800": 1},
    r'"\u2028"': lambda: "\u2028",
    r'"\x00\x1f\x7f"': lambda: "\x00\x1f\x7f",
    r'"\b\t\n\f\r"': lambda: "\b\t\n\f\r",
    r'"\"\\/<>&"': lambda: '"\\/<>&',
    '"tök🙂"': lambda: "tök🙂",
    '""': lambda: "",
    "datetime": lambda: datetime.datetime(2026, 11, 23, 17, 50, tzinfo=datetime.UTC),
    "date": lambda: datetime.date(2026, 11, 23),
    "UUID": lambda: uuid.UUID(int=1),
    'Decimal("1.5")': lambda: decimal.Decimal("1.5"),
    "complex 1j": lambda: 1j,
    "Enum member": lambda: Colour.RED,
    "IntEnum member 3": lambda: Level.LOW,
    'StrEnum member "a"': lambda: Word.A,
    "dataclass": lambda: Point(1, 2),
    "object()": object,
    '{"k": object()}': lambda: {"k": object()},
    "lambda": lambda: nested,
    "class": lambda: Point,
    "Ellipsis": lambda: ...,
    "exception": lambda: ValueError("x"),
    'str subclass "s"': lambda: Text("s"),
    "int subclass 7": lambda: Number(7),
    "float subclass 1.5": lambda: Fraction(1.5),
    "dict subclass": lambda: Table(a=1),
    "mappingproxy": lambda: type("_", (), {}).__dict__,
    "True": lambda: True,
    "False": lambda: False,
    "None": lambda: None,
    "{}": dict,
    "[]": list,
    '{"b": 1, "a": 2}': lambda: {"b": 1, "a": 2},
    "[1, None, 2.5]": lambda: [1, None, 2.5],
    "[nan, inf] in a list": lambda: [float("nan"), float("inf")],
    "nested 100": lambda: nested(100),
    "nested 126": lambda: nested(126),
    "nested 127": lambda: nested(127),
    "nested 128": lambda: nested(128),
    "nested 200": lambda: nested(200),
    "nested 2000": lambda: nested(2000),
    "cyclic list": cyclic,
}
