"""How failures are told, and that no engine's failure reaches beyond its own request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

import ingress
from ingress._failures import describe_failure, error_event_of, is_cancellation, refusal_text
from ingress.abc import Arrival, Dialer, Load, ParsedRequest
from ingress.errors import (
    DeserializationError,
    DialBackRefused,
    InvalidMessage,
    Overloaded,
    Unavailable,
    UnsupportedTransport,
)
from ingress.wire.messages import ControlWord, RequestControlMessage
from shapes import HeaderAndData

from .raw_caller import NETWORKS, open_stage, slow_network

# -- texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (Overloaded("worker at capacity"), "Server overloaded: worker at capacity"),
        (Unavailable("unknown endpoint x"), "Server unavailable: unknown endpoint x"),
        (DialBackRefused("10.0.0.1 is secret"), "Server unavailable: dial-back address refused"),
        (
            UnsupportedTransport("response transport quic-response is not supported"),
            "Server unavailable: response transport quic-response is not supported",
        ),
        (
            UnsupportedTransport("\x1b\n" * 200),
            "Server unavailable: " + "\\x1b\\n" * 33 + "\\x…(400 characters)",
        ),
        (DeserializationError("secret"), "Server unavailable: unreadable control message"),
        (InvalidMessage("secret"), "Server unavailable: unreadable control message"),
    ],
)
def test_refusals_have_the_texts_that_callers_understand(error: Any, text: str) -> None:
    assert refusal_text(error) == text


def test_an_overload_within_an_engine_has_the_one_form_that_frontends_answer_with_529() -> None:
    assert error_event_of(Overloaded("no room")).to_wire() == {
        "error_type": "ResourceExhausted",
        "class": "CapacityExhausted",
        "message": "no room",
        "diagnostic": "no room",
    }


def test_a_failure_is_described_in_one_short_line_with_its_place() -> None:
    def fail(text: str) -> BaseException:
        try:
            raise ValueError(text)
        except ValueError as exc:
            return exc

    assert describe_failure(KeyError("k")) == "KeyError: 'k'"
    line = describe_failure(fail("bad\ntext\x1b"))
    assert line.startswith("ValueError: bad\\ntext\\x1b (test_failures.py:")
    assert line.endswith(" in fail)")
    assert len(describe_failure(fail("\U0010ffff" * 10_000))) < 700


def test_what_an_engines_own_nursery_raises_is_told_without_its_groups() -> None:
    def fail(text: str) -> ExceptionGroup[ValueError]:
        try:
            raise ValueError(text)
        except ValueError as exc:
            return ExceptionGroup("g", [exc])

    line = describe_failure(ExceptionGroup("outer", [fail("model-x")]))
    assert line.startswith("ValueError: model-x (test_failures.py:") and line.endswith(" in fail)")
    both = ExceptionGroup("two", [fail("first"), *[OSError(f"{n}") for n in range(2, 6)], KeyError("x" * 10**6)])
    expected = "ExceptionGroup: two (6 sub-exceptions): ValueError: first; OSError: 2; OSError: 3"
    assert describe_failure(both) == error_event_of(both).message == expected


def test_groups_are_engine_failures_unless_a_cancellation_is_in_them() -> None:
    nested = BaseExceptionGroup("g", [ExceptionGroup("h", [ValueError()]), SystemExit(1)])
    assert not is_cancellation(nested)
    assert not is_cancellation(BaseExceptionGroup("g", [ValueError(), KeyboardInterrupt()]))


# -- every exception at every point ----------------------------------------------------------------------------------

POINTS = ("call", "first await", "between chunks", "after the last chunk", "cleanup", "nursery", "child task")

RAISED: list[type[BaseException]] = [
    ValueError,
    KeyError,
    OSError,
    TimeoutError,
    ConnectionResetError,
    StopIteration,
    StopAsyncIteration,
    AssertionError,
    RecursionError,
    MemoryError,
    UnicodeError,
    GeneratorExit,
    SystemExit,
    asyncio.CancelledError,
    trio.TooSlowError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    trio.EndOfChannel,
    trio.WouldBlock,
    trio.BusyResourceError,
]


async def fragile(request: tuple[int, str]) -> AsyncIterator[Any]:
    """Raises what the request says, where it says so."""
    error, point = RAISED[request[0]], request[1]

    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise error()

    if point == "first await":
        await fail()
    try:
        yield 1
        if point == "between chunks":
            raise error()
        if point == "nursery":
            async with trio.open_nursery():
                raise error()
        if point == "child task":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail)
        await trio.lowlevel.checkpoint()
        yield 2
        if point == "after the last chunk":
            raise error()
    finally:
        if point == "cleanup":
            raise error()


def breaks_at_call(request: Any) -> Any:
    raise RAISED[request[0]]()


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, len(RAISED) - 1), st.sampled_from(POINTS), st.booleans()), max_size=6))
def test_every_exception_at_every_point_ends_its_own_request_only(requests: list[tuple[int, str, bool]]) -> None:
    async def scenario() -> None:
        engines = {"demo.backend.fragile": fragile, "demo.backend.call": breaks_at_call, "demo.backend.ok": _one}
        async with open_stage(engines) as stage:
            paths = [record.tcp_target[1] for record in stage.worker.records()]
            bystander = await _call(stage, paths[2], "slow")
            for index, point, kill in requests:
                response = await _call(stage, paths[1 if point == "call" else 0], [index, point])
                if kill:
                    await response.send_word(ControlWord.KILL)
                    await response.read_to_end()
                else:
                    said = await response.read_to_sentinel()
                    assert said.is_whole and len(said.errors) == 1
                await response.aclose()
            await wait_all_tasks_blocked()
            assert sum(stage.counted_ends().values()) <= 2 * len(requests)
            assert stage.sample("inflight_requests") == 1
            assert (await (await _call(stage, paths[2], "quick")).read_to_sentinel()).items == ["ok"]
            go_on.set()
            assert (await bystander.read_to_sentinel()).items == ["ok"]

    go_on = trio.Event()

    async def _one(request: Any) -> AsyncIterator[Any]:
        if request == "slow":
            await go_on.wait()
        yield "ok"

    trio.run(scenario)


async def _call(stage: Any, path: str, body: Any) -> Any:
    assert await stage.ask(stage.caller.payload(body), path=path) == ""
    return await stage.caller.accept()


class Panic(BaseException):
    """What extensions raise that want nobody to catch it."""


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, Panic])
async def test_e06_no_exception_of_an_engine_ends_more_than_its_request(kind: type[BaseException]) -> None:
    async def engine(request: Any) -> AsyncIterator[Any]:
        yield trio.lowlevel.currently_ki_protected()
        if request == "fail":
            raise kind("boom")

    def blocking(request: Any) -> Iterator[Any]:
        yield 1
        raise kind("boom")

    async with open_stage({"demo.backend.generate": engine, "demo.backend.blocking": blocking}) as stage:
        said = await stage.tell("fail")
        assert said.items == [True], "a real Ctrl-C is not raised inside an engine"
        assert "boom" in said.errors[0].message
        assert said.is_whole
        said = await (await _call(stage, stage.connection.path.replace("generate", "blocking"), 0)).read_to_sentinel()
        assert said.items == [1] and len(said.errors) == 1 and said.is_whole
        await stage.assert_alive()
        assert set(stage.errors()) == {"generate"}


class OddText(str):
    __slots__ = ()

    def __len__(self) -> int:
        raise Panic("of its length")


class OddlyShown(Exception):
    def __str__(self) -> str:
        return OddText("boom")


class WithoutTraceback(Exception):
    def _fail(self, *value: object) -> Any:
        raise Panic("of its own attributes")

    __traceback__ = __context__ = __cause__ = property(_fail)


class OddGroup(ExceptionGroup[Exception]):
    @property
    def exceptions(self) -> Any:
        raise SystemExit("of its members")


class Lying(Exception):
    def _fail(self, *value: object) -> Any:
        raise Panic("of its class")

    __class__ = property(_fail)


def shared(depth: int) -> Exception:
    """A group of 2 ** depth exceptions, for whoever walks it as a tree."""
    failure: Exception = ValueError("boom")
    for _ in range(depth):
        failure = ExceptionGroup("deep", [failure, failure])
    return failure


def nested(depth: int) -> Exception:
    failure: Exception = ValueError("boom")
    for _ in range(depth):
        failure = ExceptionGroup("deep", [failure])
    return failure


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (OddlyShown, "OddlyShown: boom"),
        (lambda: WithoutTraceback("boom"), "WithoutTraceback: boom"),
        (lambda: nested(3000), "ValueError: boom"),
        (lambda: shared(900), "ExceptionGroup: deep (2 sub-exceptions): "),
        (lambda: OddGroup("odd", [ValueError("boom")]), "ValueError: boom"),
        (lambda: Lying("boom"), "Lying: boom"),
        (
            lambda: ExceptionGroup("two", [nested(3000), KeyError(1)]),
            "ExceptionGroup: two (2 sub-exceptions): ValueError: boom; ",
        ),
    ],
    ids=["text", "traceback", "nested", "shared", "group", "class", "both"],
)
async def test_e01_an_exception_that_is_odd_itself_is_told(make: Callable[[], Exception], told: str) -> None:
    async def engine(request: Any) -> AsyncIterator[Any]:
        yield 1
        raise make()

    async with open_stage(engine) as stage:
        said = await stage.tell("any")
        assert said.items == [1] and said.is_whole
        assert [error.message[: len(told)] for error in said.errors] == [told]
        assert stage.errors() == {"generate": 1}


# -- engines that do not let go --------------------------------------------------------------------------------------


async def test_fin_does_not_wait_for_an_engine_that_cleans_up(autojump_clock: MockClock) -> None:
    """A released worker sends its FIN at once; ours cleans up beside that."""

    async def engine(request: Any) -> AsyncIterator[Any]:
        try:
            yield 1
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(3)

    async with open_stage(engine) as stage:
        response = await stage.call()
        await response.read_items(1)
        await response.send_word(ControlWord.STOP)
        assert (await response.read_to_end()).end == "fin"
        assert trio.current_time() < 1
        assert stage.worker.admission.running == 1, "what the engine holds is still in use"
        await trio.sleep(3.1)
        stage.assert_nothing_left()


async def flood(request: Any) -> AsyncIterator[Any]:
    """An engine that is at its yield when it is ended: the pump waits for a slow caller."""
    try:
        while True:
            yield "x" * 100_000
    finally:
        await trio.sleep(request)
        if request == 1:
            raise ValueError("cleanup failed")


@pytest.mark.parametrize("how", ["stop grace", "write stall"])
async def test_fin_does_not_wait_either_where_time_and_not_the_caller_ends_the_request(
    how: str, autojump_clock: MockClock
) -> None:
    options = {"stop_grace": 2.0} if how == "stop grace" else {"write_stall_timeout": 2.0}
    async with open_stage(flood, network=NETWORKS["pipes"](), **options) as stage:
        response = await stage.call(3)
        await wait_all_tasks_blocked()
        if how == "stop grace":
            await response.send_word(ControlWord.STOP)
        await trio.sleep(2.1)
        assert (await response.read_to_end()).end == "fin"
        assert trio.current_time() == pytest.approx(2.1)
        assert stage.worker.admission.running == 1, "what the engine holds is still in use"
        await trio.sleep(3)
        stage.assert_nothing_left()


@pytest.mark.parametrize(
    ("cleanup", "log"), [(0, []), (1, ["engine failed while cleaning up: ValueError"]), (60, ["cleanup cut after 5 s"])]
)
async def test_e07_cleanup_is_shielded_for_five_seconds_then_cut_and_logged_once(
    cleanup: int, log: list[str], autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_stage(flood, network=slow_network()) as stage:
        response = await stage.call(cleanup)
        await wait_all_tasks_blocked()
        await response.send_word(ControlWord.KILL)
        await trio.sleep(min(cleanup, 5) - 0.1 if cleanup else 0.1)
        assert stage.sample("inflight_requests") == (cleanup > 0)
        await trio.sleep(0.2)
        stage.assert_nothing_left()
        assert stage.counted_ends() == {"cancellation": 1}
        assert [line in record.getMessage() for line, record in zip(log, caplog.records, strict=True)] == [True] * len(
            log
        )


async def test_e06_a_nursery_left_open_at_a_yield_by_an_engine_whose_cleanup_is_cut_spares_the_worker(
    autojump_clock: MockClock,
) -> None:
    async def inner() -> AsyncIterator[Any]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            while True:
                yield "x" * 100_000

    kept: list[Any] = []

    async def engine(request: Any) -> AsyncIterator[Any]:
        if request == "alive?":
            return
        kept.append(inner())
        try:
            async for chunk in kept[-1]:
                yield chunk
        finally:
            await trio.sleep(60)

    async with open_stage(engine, network=slow_network()) as stage:
        response = await stage.call(0)
        await wait_all_tasks_blocked()
        await response.send_word(ControlWord.KILL)
        await trio.sleep(10)
        stage.assert_nothing_left()
        await stage.assert_alive()


async def test_e07_what_a_cleanup_raises_where_the_engine_was_cancelled_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def engine(request: Any) -> AsyncIterator[Any]:
        try:
            yield 1
            await trio.sleep_forever()
        finally:
            raise ValueError("cleanup failed")

    async with open_stage(engine) as stage:
        response = await stage.call()
        await response.read_items(1)
        await response.send_word(ControlWord.KILL)
        await response.read_to_end()
        await wait_all_tasks_blocked()
        assert stage.counted_ends() == {"cancellation": 1}
    assert ["engine failed while cleaning up: ValueError: cleanup failed" in line for line in caplog.messages] == [True]


async def test_e06_an_engine_that_swallows_its_cancellation_is_ended_all_the_same() -> None:
    yielded = 0

    async def engine(request: Any) -> AsyncIterator[Any]:
        nonlocal yielded
        for i in range(3):
            await trio.lowlevel.checkpoint()
            yield i
        while True:
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                yielded += 1
            yield "more"

    async with open_stage(engine) as stage:
        response = await stage.call()
        await response.read_items(3)
        await response.send_word(ControlWord.STOP)
        said = await response.read_to_end()
        assert (said.items, said.has_final) == ([0, 1, 2], False)
        await wait_all_tasks_blocked()
        assert stage.counted_ends() == {"cancellation": 1}
        stage.assert_nothing_left()
        assert yielded < 100


async def test_e06_an_engine_that_ends_cleanly_when_cancelled_sends_no_final() -> None:
    async def engine(request: Any) -> AsyncIterator[Any]:
        yield 1
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            return

    async with open_stage(engine) as stage:
        response = await stage.call()
        await response.read_items(1)
        await response.send_word(ControlWord.STOP)
        assert (await response.read_to_end()).has_final is False
        await wait_all_tasks_blocked()
        assert stage.counted_ends() == {"cancellation": 1}


@pytest.mark.parametrize("at_yield", [True, False])
async def test_an_engine_whose_own_nursery_fails_across_a_yield_is_told_and_spares_the_worker(at_yield: bool) -> None:
    """A nursery that is open across a yield cancels whatever the pump waits for (PEP 789)."""

    async def fail() -> None:
        await failing.wait()
        raise ValueError("producer failed")

    async def engine(request: Any) -> AsyncIterator[Any]:
        if request == "alive?":
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            while at_yield:
                yield "x" * 100_000
            yield 1
            await trio.sleep_forever()

    failing = trio.Event()
    async with open_stage(engine, network=slow_network()) as stage:
        response = await stage.call(0)
        await wait_all_tasks_blocked()
        failing.set()
        await wait_all_tasks_blocked()
        said = await response.read_to_sentinel()
        assert said.is_whole
        assert said.errors[0].message == "ValueError: producer failed"
        assert stage.counted_ends() == {"generate": 1}
        await stage.assert_alive()


async def test_an_engine_with_a_nursery_across_its_yields_can_be_killed(caplog: pytest.LogCaptureFixture) -> None:
    async def engine(request: Any) -> AsyncIterator[Any]:
        if request == "alive?":
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            while True:
                yield "x" * 100_000

    async with open_stage(engine, network=slow_network()) as stage:
        response = await stage.call(0)
        await wait_all_tasks_blocked()
        await response.send_word(ControlWord.KILL)
        await wait_all_tasks_blocked()
        assert stage.counted_ends() == {"cancellation": 1}
        stage.assert_nothing_left()
        await stage.assert_alive()
        assert caplog.records == []


@pytest.mark.parametrize("is_awaiting", [False, True])
@pytest.mark.parametrize("ending", ["returns", "raises", "is killed", "has a task that fails", "cancels it"])
@pytest.mark.parametrize("left", ["nursery", "cancel scope", "both"])
async def test_e06_what_an_engine_enters_and_never_leaves_ends_with_its_request(
    left: str, ending: str, is_awaiting: bool
) -> None:
    children = 0

    async def child() -> None:
        nonlocal children
        children += 1
        try:
            if ending == "has a task that fails":
                raise ValueError("of a child")
            await trio.sleep_forever()
        finally:
            children -= 1

    async def engine(request: Any) -> AsyncIterator[Any]:
        if request == "alive?":
            return
        scope = trio.CancelScope()
        if left != "nursery":
            scope.__enter__()
        if left != "cancel scope":
            nursery = await trio.open_nursery().__aenter__()
            nursery.start_soon(child)
            nursery.start_soon(trio.sleep_forever)
            scope = nursery.cancel_scope
        try:
            yield 1
            if ending == "raises":
                raise ValueError("of the engine")
            if ending == "is killed":
                await trio.sleep_forever()
            if ending == "cancels it":
                scope.cancel()
                await trio.sleep(1)
            if ending == "has a task that fails" and is_awaiting:
                yield "x" * 100_000
        finally:
            if is_awaiting:
                await trio.lowlevel.checkpoint()

    async with open_stage(engine) as stage:
        response = await stage.call(0)
        if ending == "is killed":
            await response.read_items(1)
            await response.send_word(ControlWord.KILL)
            await response.read_to_end()
            await wait_all_tasks_blocked()
            assert stage.counted_ends() == {"cancellation": 1}
        else:
            said = await response.read_to_sentinel()
            assert said.is_whole
            assert (said.items[:1], len(said.errors)) == ([1], 1)
            if ending == "has a task that fails" and left != "cancel scope":
                assert "ValueError: of a child" in said.errors[0].message
            assert stage.counted_ends() == {"generate": 1}
        assert children == 0
        await wait_all_tasks_blocked()
        stage.assert_nothing_left()
        await stage.assert_alive()


async def test_e06_an_engine_that_is_woken_as_the_worker_leaves_is_not_blamed(caplog: pytest.LogCaptureFixture) -> None:
    woken = trio.Event()

    async def engine(request: Any) -> AsyncIterator[Any]:
        yield 1
        await woken.wait()
        yield 2

    async with open_stage(engine) as stage:
        response = await stage.call()
        await response.read_items(1)
        woken.set()
        for context in stage.worker.open_requests:
            context.shut_down()
        assert [error.kind for error in (await response.read_to_end()).errors] == ["EngineShutdown"]
        await wait_all_tasks_blocked()
    assert [line for line in caplog.messages if "engine failed" in line] == []


# -- plug-ins --------------------------------------------------------------------------------------------------------


class PanicException(BaseException):
    """What extensions in Rust raise when they panic; no Exception, so that nobody takes it for one."""


class Unshowable(Exception):
    """One whose own bug shows only as it is told of."""

    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


class UnshowableRefusal(DeserializationError, Unshowable):
    __str__ = __repr__ = Unshowable.__str__


class Panicking(HeaderAndData, ingress.AdmissionPolicy):
    """Panics at one place, for one request."""

    def __init__(self, place: str, kind: type[BaseException]) -> None:
        super().__init__()
        self._place = place
        self._kind = kind

    def _pass(self, place: str, request_id: str) -> None:
        if (place, request_id) == (self._place, "evil"):
            raise self._kind("of a plug-in")

    def read_control(self, payload: bytes) -> RequestControlMessage:
        control = super().read_control(payload)
        self._pass("read_control", control.id)
        return control

    async def parse_and_build_request(
        self, payload: bytes, control: RequestControlMessage, dialer: Dialer
    ) -> ParsedRequest[Any]:
        self._pass("parse", control.id)
        return await super().parse_and_build_request(payload, control, dialer)

    def admit(self, arrival: Arrival, load: Load) -> None:
        self._pass("admit", arrival.control.id)

    def release(self, arrival: Arrival) -> None:
        self._pass("release", arrival.control.id)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (PanicException, "PanicException: of a plug-in"),
        (Unshowable, "Unshowable: (its text cannot be shown)"),
        (UnshowableRefusal, "(its text cannot be shown)"),
    ],
)
@pytest.mark.parametrize(
    ("place", "ack"),
    [
        ("read_control", "Server unavailable: unreadable control message"),
        ("admit", "Server unavailable: admission policy failed"),
        ("parse", ""),
        ("release", ""),
    ],
)
async def test_e06_whatever_a_plug_in_raises_ends_its_request_only(
    place: str, ack: str, kind: type[BaseException], told: str
) -> None:
    """A panic in a policy or shape had ended the worker, and one while parsing had left the caller without a word.

    One that cannot be shown had ended the connection, and with it the acks of other requests.
    """
    plug_in = Panicking(place, kind)
    async with open_stage(answer_one, shapes=[plug_in], admission=plug_in) as stage:
        assert await stage.ask(stage.caller.payload("x", stage.caller.control(request_id="evil"))) == ack
        if not ack:
            with trio.fail_after(5):
                said = await (await stage.caller.accept()).read_to_sentinel()
            assert [error.message for error in said.errors] == [told] * (place == "parse")
        await stage.assert_alive()
        stage.assert_nothing_left()


async def answer_one(request: Any) -> AsyncIterator[Any]:
    yield 1
