"""``ingress check``: put an engine or a shape through what a cluster may do to it, one line a property."""

from __future__ import annotations

import logging
import secrets
import shlex
from contextlib import suppress
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Annotated, Any, Literal

from attrs import field, frozen
from cyclopts import Parameter
from rich.text import Text

from .._plugins import installed, load, load_shape
from .._text import printable
from ..abc import IngressDispatch
from ..errors import IngressError, PluginError
from ..testing import Outcome, PropertyFailed, check_engine, check_shape
from ..wire.request_frame import RequestFrameDecoder
from ._decode import read_captures, read_input
from ._errors import EXIT_CLEAN, EXIT_FAILED, EXIT_STARTUP, CommandError, nearest
from ._options import DEFAULT_OUTPUT, AsJson, OutputOptions
from ._payloads import print_document, read_request
from ._screen import program_name
from ._targets import DEFAULT_ATTRIBUTE, attribute_of, checked, module_in_file, module_named

SCHEMA = "ingress.check/1"

Kind = Literal["engine", "shape"]

MAX_SEED = 1_000_000

MAX_SHOWN = 600


@frozen
class Subject:
    """What is to be checked."""

    kind: Kind
    label: str
    target: Any = field(repr=False)


def check(
    target: str,
    /,
    *,
    request: Annotated[list[str] | None, Parameter(name=["-d", "--request"], negative=())] = None,
    payload: Annotated[list[Path] | None, Parameter(negative=())] = None,
    seed: int | None = None,
    kind: Annotated[Kind | None, Parameter(name="--as")] = None,
    as_json: AsJson = False,
    output: OutputOptions = DEFAULT_OUTPUT,
) -> int:
    """Put an engine or a shape through what a cluster may do to it: one line a property.

    It runs in memory, without sockets, and mostly without waiting. Ends with 1 where a property does not hold.

    Parameters
    ----------
    target
        module:attr, file.py:attr (attr is generate if left out), or the name of an installed engine or shape.
    request
        A request that the engine answers: JSON, @FILE, or - for standard input. Give it again for more.
    payload
        A file with a payload of the shape: raw bytes, hex text, or a capture in JSON. Give it again for more.
    seed
        Repeats a check that failed.
    kind
        What the target is, where an engine and a shape have the same name.
    """
    output.set_up_logging(logging.CRITICAL)  # the check provokes whatever the log would tell of
    subject = find_subject(target, kind)
    screen = _Screen(subject, secrets.randbelow(MAX_SEED) if seed is None else seed, target, as_json, output)
    screen.begin()
    if subject.kind == "shape":
        payloads = [read_payload(subject.target, path) for path in payload] if payload else None
        try:
            check_shape(subject.target, payloads, seed=screen.seed, on_outcome=screen.tell)
        except PropertyFailed as exc:  # before any of them: there is nothing to check it with
            raise _unusable(
                f"{target} cannot be checked", f"expected {exc.expected}, got {exc.got}", "--payload FILE"
            ) from exc
    else:
        requests = [read_request(text) for text in request] if request else None
        check_engine(subject.target, requests, seed=screen.seed, on_outcome=screen.tell)
    return screen.end()


# -- finding ----------------------------------------------------------------------------------------------------------


def find_subject(text: str, kind: Kind | None = None) -> Subject:
    """Find and import what is to be checked.

    Raises:
        CommandError: with exit code 3 and the next thing to type.
    """
    place, colon, attribute = text.rpartition(":")
    if not colon and not text.endswith(".py"):
        return _installed(text, kind)
    if not colon:
        place, attribute = text, DEFAULT_ATTRIBUTE
    module = module_in_file(Path(place)) if place.endswith(".py") else module_named(place)
    found = attribute_of(module, attribute, place)
    if isinstance(found, type) and issubclass(found, IngressDispatch):
        try:
            found = found()
        except Exception as exc:
            raise _unusable(f"{text} cannot be made", f"{type(exc).__name__}: {exc}", "name an instance of it") from exc
    if isinstance(found, IngressDispatch):
        return Subject("shape", text, found)
    return Subject("engine", text, checked(found, text).engine)


def _installed(name: str, kind: Kind | None) -> Subject:
    known: dict[Kind, list[EntryPoint]] = {"engine": installed("engines"), "shape": installed("shapes")}
    wanted: tuple[Kind, ...] = ("engine", "shape") if kind is None else (kind,)
    kinds = [each for each in wanted if any(point.name == name for point in known[each])]
    if not kinds:
        names = sorted({point.name for points in known.values() for point in points})
        guess = nearest(name, names)
        raise _unusable(
            f"no {kind or 'engine and no shape'} is named {name!r}",
            f"installed are {', '.join(names) or 'none'}",
            f"ingress check {guess}" if guess else f"module:attr or file.py:attr, e.g. {name}.py:{DEFAULT_ATTRIBUTE}",
        )
    if len(kinds) > 1:
        raise _unusable(f"{name!r} is an engine and a shape", "both are installed", f"ingress check {name} --as shape")
    try:
        target = load_shape(name) if kinds[0] == "shape" else load("engines", name)
    except PluginError as exc:
        raise _unusable(f"{kinds[0]} {name!r} cannot be used", str(exc), "ingress plugins") from exc
    return Subject(kinds[0], name, target)


def read_payload(shape: IngressDispatch[Any], path: Path) -> bytes:
    """Read a payload from a file: as it is, or from inside the request frame in which it was captured."""
    data = b"".join(capture.data for capture in read_captures(read_input(str(path))))
    decoder = RequestFrameDecoder()
    decoder.receive_data(data)
    with suppress(IngressError):
        for frame in decoder:
            if _reads(shape, frame.payload) and not _reads(shape, data):
                return frame.payload
    return data


def _reads(shape: IngressDispatch[Any], payload: bytes) -> bool:
    try:
        return shape.accepts(payload) and bool(shape.read_control(payload))
    except Exception:  # what is wrong with it is the check's to say
        return False


def _unusable(what: str, why: str, remedy: str) -> CommandError:
    return CommandError(what, why, remedy, exit_code=EXIT_STARTUP)


# -- telling ----------------------------------------------------------------------------------------------------------


class _Screen:
    """One line a property while they are checked, or one document at the end."""

    def __init__(self, subject: Subject, seed: int, target: str, as_json: bool, output: OutputOptions) -> None:
        self.seed = seed
        self._subject = subject
        self._target = target
        self._as_json = as_json
        self._is_quiet = output.quiet
        self._console = output.stdout()
        self._outcomes: list[Outcome] = []

    def begin(self) -> None:
        if not (self._as_json or self._is_quiet):
            self._print(f"{self._subject.kind} {self._subject.label} · seed {self.seed}\n")

    def tell(self, outcome: Outcome) -> None:
        self._outcomes.append(outcome)
        failure = outcome.failure
        if self._as_json or (self._is_quiet and failure is None):
            return
        took = (f"  {outcome.seconds * 1000:,.0f} ms", "dim")
        self._print(("ok    ", "green") if failure is None else ("FAIL  ", "bold red"), outcome.name, took)
        if failure is not None:
            self._print(f"      expected  {printable(failure.expected, MAX_SHOWN)}")
            self._print(f"      got       {printable(failure.got, MAX_SHOWN)}")

    def end(self) -> int:
        """Sum up, and return the exit code."""
        failed = sum(outcome.failure is not None for outcome in self._outcomes)
        if self._as_json:
            print_document(self._document())
        elif failed:
            again = f"{program_name()} check {shlex.quote(self._target)} --seed {self.seed}"
            self._print(f"\n{len(self._outcomes) - failed} hold, {failed} do not; again: {again}")
        elif not self._is_quiet:
            self._print(f"\nall {len(self._outcomes)} hold")
        return EXIT_FAILED if failed else EXIT_CLEAN

    def _print(self, *pieces: str | tuple[str, str]) -> None:
        self._console.print(Text.assemble(*pieces), soft_wrap=True)

    def _document(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "kind": self._subject.kind,
            "target": self._subject.label,
            "seed": self.seed,
            "properties": [
                {
                    "name": outcome.name,
                    "holds": outcome.failure is None,
                    "seconds": round(outcome.seconds, 6),
                    "expected": outcome.failure and outcome.failure.expected,
                    "got": outcome.failure and outcome.failure.got,
                }
                for outcome in self._outcomes
            ],
        }
