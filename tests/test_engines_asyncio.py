"""asyncio handlers behind the bridge."""

from __future__ import annotations

import asyncio
import contextvars
import errno
import logging
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import ingress
from engines import asyncio_bridge, asyncio_loop
from engines.asyncio_bridge import AsyncioEngine, bridge_all
from engines.asyncio_loop import AsyncioLoop
from engines.dynamo_context import DynamoContext
from ingress.errors import EngineShutdown, StartupError
from ingress.handover import DEFAULT_MAX_CHUNKS
from ingress.testing import check_engine, memory_worker
from ingress.wire.messages import ControlWord

from .raw_caller import Stage, Transcript, open_stage, slow_network

ANYTHING: Any = SimpleNamespace(id="r", metadata={}, headers={})

ENDPOINT = "demo.backend.generate"


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> AsyncioLoop:
    if request.param:
        pytest.importorskip("uvloop")
    return AsyncioLoop(use_uvloop=bool(request.param))


async def ask(client: ingress.Client, request: Any = None, **options: Any) -> list[Any]:
    async with client.stream(ENDPOINT, request, **options) as responses:
        return [item async for item in responses]


async def counts(request: Any, context: Any) -> AsyncIterator[Any]:
    for i in range(request["n"]):
        await asyncio.sleep(request.get("delay", 0))
        yield {"i": i, "id": context.id()}


async def polls(request: Any, context: Any) -> AsyncIterator[Any]:
    for i in range(request["n"]):
        await asyncio.sleep(0.001)
        if context.is_stopped():
            return
        yield i


async def never_waits(request: Any) -> AsyncIterator[Any]:
    for i in range(request["n"]):
        yield i


@pytest.mark.parametrize("handler", [counts, polls, never_waits])
def test_a_bridged_engine_behaves(handler: Any, loop: AsyncioLoop) -> None:
    check_engine(AsyncioEngine(handler, loop=loop), [{"n": 20, "delay": 0.001}, {"n": 3}], examples=15)


async def test_everything_comes_in_order_from_many_at_once(loop: AsyncioLoop) -> None:
    async with memory_worker(AsyncioEngine(counts, loop=loop)) as client, trio.open_nursery() as nursery:

        async def check(count: int) -> None:
            items = await ask(client, {"n": count}, request_id=f"r{count}")
            assert items == [{"i": i, "id": f"r{count}"} for i in range(count)]

        for count in (0, 1, 2, 100, DEFAULT_MAX_CHUNKS, 3000):
            nursery.start_soon(check, count)


# -- how a handler is called -----------------------------------------------------------------------------------------


class Kinds:
    async def method(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield context.id()

    async def __call__(self, request: Any) -> AsyncIterator[Any]:
        yield request


async def any_names(prompt: Any, ctx: Any) -> AsyncIterator[Any]:
    yield ctx.id()


async def by_keyword(request: Any, *, context: Any) -> AsyncIterator[Any]:
    yield context.id()


async def by_default(request: Any, context: Any = None) -> AsyncIterator[Any]:
    yield context.id()


async def catches_all(request: Any, **more: Any) -> AsyncIterator[Any]:
    yield sorted(more)


async def one_answer(request: Any) -> Any:
    await asyncio.sleep(0)
    return {"answer": request}


def made_elsewhere(request: Any, context: Any) -> Any:
    return any_names(request, context)


async def made_elsewhere_later(request: Any, context: Any) -> Any:
    return any_names(request, context)


@pytest.mark.parametrize(
    ("handler", "answer"),
    [
        (any_names, ["the-id"]),
        (by_keyword, ["the-id"]),
        (by_default, ["the-id"]),
        (catches_all, [[]]),
        (Kinds().method, ["the-id"]),
        (Kinds(), [7]),
        (one_answer, [{"answer": 7}]),
        (made_elsewhere, ["the-id"]),
        (made_elsewhere_later, ["the-id"]),
    ],
)
async def test_handlers_of_every_kind_are_called_as_they_want(handler: Any, answer: list[Any]) -> None:
    async with memory_worker(AsyncioEngine(handler)) as client:
        assert await ask(client, 7, request_id="the-id") == answer


def blocking(request: Any) -> Any:
    yield request


async def takes_nothing() -> AsyncIterator[Any]:
    yield 1


@pytest.mark.parametrize(
    ("handler", "complaint"),
    [(blocking, "blocking generator"), (takes_nothing, "takes no request"), (Kinds, "no asyncio handler"), (3, "no")],
)
def test_what_can_be_no_handler_is_refused_at_start(handler: Any, complaint: str) -> None:
    with pytest.raises(StartupError, match=complaint):
        AsyncioEngine(handler)


async def test_a_handler_that_returns_no_iterable_fails_its_request() -> None:
    async with memory_worker(AsyncioEngine(lambda request: 5)) as client:
        with pytest.raises(ingress.RemoteError, match="returned int, expected an async iterable"):
            await ask(client)


async def test_engines_that_are_bridged_together_share_one_loop() -> None:
    loops = []

    async def notes(request: Any) -> AsyncIterator[Any]:
        loops.append((asyncio.get_running_loop(), threading.current_thread()))
        yield 1

    engines = dict(zip(("demo.backend.generate", "demo.backend.other"), bridge_all([notes, notes]), strict=True))
    async with memory_worker(engines) as client:
        for endpoint in engines:
            async with client.stream(endpoint, None) as responses:
                assert [item async for item in responses] == [1]
    assert loops[0] == loops[1] and loops[0][1] is not threading.main_thread()
    assert not loops[0][1].is_alive()


# -- how it ends -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("boom"), "InvalidArgument"),
        (TimeoutError("boom"), "ConnectionTimeout"),
        (ConnectionRefusedError("boom"), "CannotConnect"),
        (asyncio.CancelledError("boom"), "Cancelled"),
        (ingress.InvalidArgument("boom"), "InvalidArgument"),
        (SystemExit("boom"), "Unknown"),
        (KeyboardInterrupt("boom"), "Unknown"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else value,
)
async def test_exceptions_cross_with_their_types_and_end_one_request(
    error: BaseException, kind: str, loop: AsyncioLoop
) -> None:
    async def fails(request: Any) -> AsyncIterator[Any]:
        yield 1
        if request:
            raise error

    async with memory_worker(AsyncioEngine(fails, loop=loop)) as client:
        got = []
        with pytest.raises(ingress.RemoteError, match="boom") as caught:
            async with client.stream(ENDPOINT, True) as responses:
                async for item in responses:
                    got.append(item)
        assert (got, caught.value.kind) == ([1], kind)
        assert await ask(client, False) == [1], "the loop goes on"


class InvalidArgument(Exception):
    """Stands for the class of that name in Dynamo's wheel."""

    __module__ = "dynamo._core"


async def test_dynamos_own_exceptions_keep_their_kind_and_text() -> None:
    async def fails(request: Any) -> AsyncIterator[Any]:
        if request is None:
            raise InvalidArgument("max_tokens is too large")
        yield

    async with memory_worker(AsyncioEngine(fails)) as client:
        with pytest.raises(ingress.RemoteError) as caught:
            await ask(client)
    assert (caught.value.kind, caught.value.message) == ("InvalidArgument", "max_tokens is too large")


class Fate:
    """What became of a handler."""

    def __init__(self) -> None:
        self.ending: str | None = None
        self.over = threading.Event()

    async def wait(self) -> str | None:
        assert await trio.to_thread.run_sync(self.over.wait, 5)
        return self.ending

    def note(self, error: BaseException | None = None) -> None:
        self.ending = type(error).__name__ if error else "returned"
        self.over.set()


async def test_a_stop_cancels_the_task_where_it_waits_and_waits_for_its_cleanup() -> None:
    fate, is_cleaned = Fate(), False

    async def sleeps(request: Any) -> AsyncIterator[Any]:
        nonlocal is_cleaned
        yield 1
        try:
            await asyncio.sleep(3600)
        except BaseException as exc:
            await asyncio.sleep(0.02)
            is_cleaned = True
            fate.note(exc)
            raise

    engine = AsyncioEngine(sleeps)
    async with open_stage(engine) as stage:
        response = await stage.call()
        await response.read_items(1)
        await response.send_word(ControlWord.STOP)
        assert not (await response.read_to_end()).has_final
        assert await fate.wait() == "CancelledError"
        assert is_cleaned


async def test_a_handler_that_is_held_at_its_yield_ends_there() -> None:
    fate, made = Fate(), 0

    async def floods(request: Any) -> AsyncIterator[Any]:
        nonlocal made
        try:
            while True:
                made += 1
                yield "x" * 10_000
        except BaseException as exc:
            fate.note(exc)
            raise

    engine = AsyncioEngine(floods)
    async with open_stage(engine, network=slow_network()) as stage:
        response = await stage.call()
        for _ in range(20):
            await trio.sleep(0.005)
        # 256 KiB wait in the bridge, and as many with the pump.
        assert 20 < made < 80
        await response.send_word(ControlWord.KILL)
        assert await fate.wait() == "GeneratorExit"


async def test_one_that_asks_whether_it_is_stopped_ends_by_itself() -> None:
    fate, polled = Fate(), threading.Event()

    async def asks(request: Any, context: DynamoContext) -> AsyncIterator[Any]:
        try:
            while not context.is_stopped():
                yield 1
                polled.set()
                await asyncio.sleep(0.01)
            fate.note()
        except BaseException as exc:
            fate.note(exc)
            raise

    async with memory_worker(AsyncioEngine(asks, wind_down=30)) as client:
        async with client.stream(ENDPOINT, None) as responses:
            await anext(responses)
            assert await trio.to_thread.run_sync(polled.wait, 5)
        assert await fate.wait() == "returned"


async def test_one_that_asks_and_goes_on_is_cancelled_after_its_time() -> None:
    fate = Fate()

    async def asks_in_vain(request: Any, context: DynamoContext) -> AsyncIterator[Any]:
        context.is_stopped()
        yield 1
        try:
            await asyncio.sleep(3600)
        except BaseException as exc:
            fate.note(exc)
            raise

    async with memory_worker(AsyncioEngine(asks_in_vain, wind_down=0.01)) as client:
        async with client.stream(ENDPOINT, None) as responses:
            await anext(responses)
        assert await fate.wait() == "CancelledError"


async def test_a_stop_with_a_grace_is_told_and_the_last_chunks_leave() -> None:
    async def says_goodbye(request: Any, context: DynamoContext) -> AsyncIterator[Any]:
        yield "hello"
        assert await context.async_killed_or_stopped()
        yield {"killed": context.is_killed()}

    async with (
        memory_worker(AsyncioEngine(says_goodbye), stop_grace=5.0) as client,
        client.stream(ENDPOINT, None) as responses,
    ):
        assert await anext(responses) == "hello"
        await responses.stop()
        assert [item async for item in responses] == [{"killed": False}]


async def test_a_task_that_swallows_its_cancellation_is_left_behind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(asyncio_bridge, "CANCEL_TIMEOUT", 0.05)
    let_go = threading.Event()

    async def clings(request: Any) -> AsyncIterator[Any]:
        yield 1
        while not let_go.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                continue

    async with memory_worker(AsyncioEngine(clings)) as client:
        async with client.stream(ENDPOINT, None) as responses:
            await anext(responses)
        with trio.fail_after(5):
            while "left behind" not in caplog.text:
                await trio.sleep(0.01)
        let_go.set()


async def test_a_loop_that_is_blocked_is_told_to_every_request(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(asyncio_loop, "BLOCKED_WARNING", 0.05)
    monkeypatch.setattr(asyncio_loop, "_PING_INTERVAL", 0.02)
    go_on = threading.Event()

    async def blocks(request: Any) -> AsyncIterator[Any]:
        yield 1
        await asyncio.sleep(0.01)
        go_on.wait(20)
        await asyncio.sleep(0)
        yield 2

    async with open_stage(AsyncioEngine(blocks, loop=AsyncioLoop(blocked_timeout=0.1))) as stage:
        [error] = (await stage.tell()).errors
        assert error.kind == "EngineShutdown" and "has been blocked for" in error.message
        assert "threading.py" in caplog.text, "the log names the line that blocks"
        go_on.set()
        with trio.fail_after(5):
            while (await stage.tell()).errors:  # it goes on as soon as the loop does
                await trio.sleep(0.05)


async def test_a_loop_that_does_not_end_is_left_behind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(asyncio_loop, "SHUTDOWN_TIMEOUT", 0.05)
    monkeypatch.setattr(asyncio_bridge, "CANCEL_TIMEOUT", 0.05)
    go_on, blocked = threading.Event(), threading.Event()

    async def blocks(request: Any) -> AsyncIterator[Any]:
        yield 1
        blocked.set()
        go_on.wait(20)

    async with memory_worker(AsyncioEngine(blocks), drain_budget=0) as client, client.stream(ENDPOINT, None) as items:
        await anext(items)
        assert await trio.to_thread.run_sync(blocked.wait, 5)
    assert "has not ended within 0.05 s" in caplog.text
    go_on.set()


# -- when its loop dies ----------------------------------------------------------------------------------------------


def exit_in_a_task() -> None:
    async def exits() -> None:
        sys.exit(3)

    asyncio.create_task(exits()).add_done_callback(asyncio.Task.exception)


def interrupt_in_a_task() -> None:
    async def interrupts() -> None:
        raise KeyboardInterrupt

    asyncio.create_task(interrupts()).add_done_callback(asyncio.Task.exception)


def exit_in_a_callback() -> None:
    asyncio.get_running_loop().call_soon(sys.exit, 3)


def stop_the_loop() -> None:
    asyncio.get_running_loop().stop()


class Mortal:
    """A handler whose loop dies when it is asked to."""

    def __init__(self, die: Callable[[], object] = exit_in_a_callback) -> None:
        self.threads: list[threading.Thread] = []
        """One for each request."""
        self._die = die

    async def __call__(self, request: Any) -> AsyncIterator[Any]:
        self.threads.append(threading.current_thread())
        yield request
        if request == "die":
            self._die()
        if request != "pass":
            await asyncio.sleep(3600)


async def tell_until_served(stage: Stage) -> None:
    """Ask until the loop has been started again; who asks too early is told."""
    with trio.fail_after(30):
        while (said := await stage.tell("pass")).errors:
            assert_told_of_death(said)
            await trio.sleep(0.01)
    assert said.is_whole and said.items == ["pass"]


def assert_told_of_death(said: Transcript, why: str = "") -> None:
    assert said.is_whole
    assert [error.kind for error in said.errors] == ["EngineShutdown"]
    assert f"asyncio loop of this engine has died: {why}" in said.errors[0].message


async def die_beside_another(stage: Stage) -> list[Transcript]:
    """Have the loop die; return what its request was told, and one beside it."""
    responses = []
    for request in ("wait", "die"):
        responses.append(await stage.call(request))
        await responses[-1].read_items(1)
    said = [await response.read_to_sentinel() for response in responses]
    for response in responses:
        await response.aclose()
    return said


@pytest.mark.parametrize(
    ("die", "why"),
    [
        (exit_in_a_task, "SystemExit(3)"),
        (interrupt_in_a_task, "KeyboardInterrupt()"),
        (exit_in_a_callback, "SystemExit(3)"),
        (stop_the_loop, "RuntimeError('Event loop stopped before Future completed.')"),
    ],
)
async def test_e08_a_loop_that_dies_is_told_to_every_request_and_started_again_once(
    die: Callable[[], object], why: str, loop: AsyncioLoop, caplog: pytest.LogCaptureFixture
) -> None:
    handler = Mortal(die)
    async with open_stage(AsyncioEngine(handler, loop=loop)) as stage:
        health = stage.worker.status.health
        for said in await die_beside_another(stage):
            assert_told_of_death(said, why)
        assert health.is_ready
        await tell_until_served(stage)
        assert health.is_ready
        assert caplog.text.count("has been started again, as happens once") == 1

        for said in [*await die_beside_another(stage), await stage.tell("pass")]:
            assert_told_of_death(said, why)
        assert not health.is_ready
        reasons = health.reasons()
        assert reasons == {f"engine of {ENDPOINT}": f"the asyncio loop of this engine has died: {why}"}
    assert caplog.text.count("the asyncio loop has died, and with it") == 2
    assert "for the second time and stays dead" in caplog.text
    assert len(set(handler.threads)) == 2 and not any(thread.is_alive() for thread in handler.threads)


async def test_e08_a_handler_that_cancels_all_tasks_ends_requests_and_not_the_loop(
    loop: AsyncioLoop, caplog: pytest.LogCaptureFixture
) -> None:
    def cancel_all() -> None:
        for task in asyncio.all_tasks():
            task.cancel()

    handler = Mortal(cancel_all)
    async with open_stage(AsyncioEngine(handler, loop=loop)) as stage:
        for _ in range(3):
            for said in await die_beside_another(stage):
                assert said.is_whole and [error.kind for error in said.errors] == ["Cancelled"]
            assert (await stage.tell("pass")).items == ["pass"]
        assert stage.worker.status.health.is_ready
    assert len(set(handler.threads)) == 1 and not handler.threads[0].is_alive()
    assert "has died" not in caplog.text


@pytest.mark.parametrize("order", ["begun", "queued"])
@pytest.mark.parametrize("ends", [True, False], ids=["ends", "does not end"])
async def test_e08_a_request_whose_start_meets_the_death_is_told(
    order: str, ends: bool, loop: AsyncioLoop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its task has been made and has not taken a step, or its start is in line; the old thread ends late, or never."""
    monkeypatch.setattr(asyncio_loop, "SHUTDOWN_TIMEOUT", 5 if ends else 0.05)
    is_in_line, let_go = threading.Event(), threading.Event()
    threads = []

    async def blocks(request: Any) -> AsyncIterator[Any]:
        threads.append(threading.current_thread())
        if request == "in line":  # uvloop ends a step later than asyncio
            await asyncio.sleep(3600)
        yield request
        if request == "pass":
            return
        if order == "queued":
            exit_in_a_callback()
        is_in_line.wait(20)
        if order == "begun":
            exit_in_a_callback()
        try:
            await asyncio.sleep(3600)
        finally:
            let_go.wait(20)

    async with open_stage(AsyncioEngine(blocks, loop=loop)) as stage:
        dies = await stage.call("die")
        await dies.read_items(1)
        in_line = await stage.call("in line")
        await wait_all_tasks_blocked()
        is_in_line.set()
        for response in (dies, in_line):
            assert_told_of_death(await response.read_to_sentinel(), "SystemExit(3)")
            await response.aclose()
        if ends:
            assert_told_of_death(await stage.tell("pass"), "SystemExit(3)")
            let_go.set()
        await tell_until_served(stage)
        assert ("has not ended within" in caplog.text) is not ends
        let_go.set()
    for thread in threads:
        await trio.to_thread.run_sync(thread.join, 5)
        assert not thread.is_alive()


async def test_e08_a_task_that_is_cancelled_before_its_first_step_tells_its_caller() -> None:
    is_in_line = threading.Event()

    async def cancels(request: Any) -> AsyncIterator[Any]:
        yield request
        if request == "cancel":
            is_in_line.wait(20)
            asyncio.get_running_loop().call_soon(lambda: [task.cancel() for task in asyncio.all_tasks()])
            await asyncio.sleep(3600)

    async with open_stage(AsyncioEngine(cancels)) as stage:
        responses = [await stage.call("cancel")]
        await responses[0].read_items(1)
        responses.append(await stage.call("in line"))
        await wait_all_tasks_blocked()
        is_in_line.set()
        for response in responses:
            said = await response.read_to_sentinel()
            assert said.is_whole and [error.kind for error in said.errors] == ["Cancelled"]
            await response.aclose()
        assert "in line" not in said.items


async def test_e08_a_request_that_winds_up_ends_with_its_loop(caplog: pytest.LogCaptureFixture) -> None:
    async def dies_late(request: Any) -> AsyncIterator[Any]:
        yield request
        if request == "pass":
            return
        try:
            await asyncio.sleep(3600)
        finally:
            exit_in_a_callback()
            await asyncio.sleep(3600)

    async with open_stage(AsyncioEngine(dies_late)) as stage:
        response = await stage.call("die")
        await response.read_items(1)
        await response.send_word(ControlWord.STOP)
        await response.read_to_end()
        with trio.fail_after(5):
            while "has been started again" not in caplog.text:
                await trio.sleep(0.01)
        await tell_until_served(stage)
    assert "left behind" not in caplog.text


async def test_e08_engines_that_share_a_loop_are_restarted_and_lost_together() -> None:
    handlers = [Mortal(), Mortal()]
    names = (ENDPOINT, "demo.backend.other")
    async with open_stage(dict(zip(names, bridge_all(handlers), strict=True))) as stage:
        other = await stage.caller.connect(stage.worker, endpoint=1)
        for is_last in (False, True):
            beside = await stage.caller.call(other, "wait")
            await beside.read_items(1)
            assert_told_of_death(await stage.tell("die"))
            assert_told_of_death(await beside.read_to_sentinel())
            await beside.aclose()
            if not is_last:
                await tell_until_served(stage)
        assert stage.worker.status.health.reasons().keys() == {f"engine of {name}" for name in names}
    assert len({*handlers[0].threads, *handlers[1].threads}) == 2


async def test_e08_a_loop_that_cannot_be_started_again_stays_dead(
    loop: AsyncioLoop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def has_no_descriptors() -> asyncio.AbstractEventLoop:
        raise OSError(errno.EMFILE, "Too many open files")

    async with open_stage(AsyncioEngine(Mortal(), loop=loop)) as stage:
        monkeypatch.setattr(loop, "_new_loop", has_no_descriptors)
        assert_told_of_death(await stage.tell("die"))
        with trio.fail_after(5):
            while stage.worker.status.health.is_ready:
                await trio.sleep(0.01)
        assert_told_of_death(await stage.tell("pass"))
    assert "cannot be started again: OSError" in caplog.text


async def test_e08_the_next_lifespan_begins_anew(loop: AsyncioLoop) -> None:
    engine = AsyncioEngine(Mortal(), loop=loop)
    for _ in range(2):
        async with open_stage(engine) as stage:
            assert_told_of_death(await stage.tell("die"))
            await tell_until_served(stage)
            assert_told_of_death(await stage.tell("die"))
            assert engine.trouble() is not None
        assert engine.trouble() is None


# -- what a handler knows --------------------------------------------------------------------------------------------


async def test_contextvars_and_the_ids_of_log_lines_cross() -> None:
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name")
    seen = []

    class Ids(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            from ingress._logging import request_id_in

            seen.append((record.getMessage(), request_id_in(contextvars.copy_context())))
            return True

    async def logs(request: Any) -> AsyncIterator[Any]:
        log.warning("in the handler")
        asyncio.get_running_loop().call_soon(log.warning, "in a callback")
        await asyncio.sleep(0.01)
        yield name.get("unset")

    log = logging.getLogger("handler of a test")
    log.addFilter(Ids())
    name.set("of the worker")
    async with memory_worker(AsyncioEngine(logs)) as client:
        assert await ask(client, request_id="r1") == ["of the worker"]
    assert seen == [("in the handler", "r1"), ("in a callback", "r1")]


async def test_the_context_has_the_callers_facts() -> None:
    async def tells(request: Any, context: DynamoContext) -> AsyncIterator[Any]:
        yield [context.id(), context.metadata.copy(), context.trace_id, context.span_id, context.trace_headers()]

    trace = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "x=y"}
    async with memory_worker(AsyncioEngine(tells)) as client:
        [[request_id, metadata, trace_id, span_id, headers]] = await ask(
            client, request_id="r1", metadata={"k": "v"}, headers=trace
        )
        assert (request_id, metadata, trace_id, span_id) == ("r1", {"k": "v"}, "a" * 32, "b" * 16)
        assert headers.items() >= trace.items()
        assert (await ask(client))[0][2:] == [None, None, None]


async def test_who_waits_anew_for_each_chunk_is_woken_and_forgotten() -> None:
    async def waits(request: Any, context: DynamoContext) -> AsyncIterator[Any]:
        for i in range(1000):
            waiting = context.async_killed_or_stopped()
            waiting.cancel()
            yield i
        kept = context._stop._waiting or []
        yield len(kept) < 100
        last = context.async_killed_or_stopped()
        context.stop_generating()
        assert await last is True
        yield "to nobody"

    async with memory_worker(AsyncioEngine(waits)) as client:
        got = []
        with pytest.raises(ingress.IngressError):  # a handler that stops itself leaves the answer without its final
            async with client.stream(ENDPOINT, None) as responses:
                async for item in responses:
                    got.append(item)
    assert got[:1000] == list(range(1000))[: len(got)] and "to nobody" not in got


async def test_a_handler_may_use_timeouts_tasks_and_threads_of_asyncio(loop: AsyncioLoop) -> None:
    async def uses(request: Any) -> AsyncIterator[Any]:
        yield await asyncio.to_thread(time.sleep, 0)
        async with asyncio.timeout(5):
            async with asyncio.TaskGroup() as group:
                task = group.create_task(asyncio.sleep(0, "done"))
        yield task.result()
        yield asyncio.get_running_loop().__class__.__module__.partition(".")[0]

    expected = "uvloop" if loop._new_loop is not asyncio.new_event_loop else "asyncio"
    async with memory_worker(AsyncioEngine(uses, loop=loop)) as client:
        assert await ask(client) == [None, "done", expected]


async def test_the_engine_needs_its_lifespan() -> None:
    with pytest.raises(EngineShutdown, match="lifespan"):
        await anext(aiter(AsyncioEngine(counts).generate({}, ANYTHING)))
