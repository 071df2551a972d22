"""Forked children: what they have in the place of our sockets, and where they end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import signal
import socket
import stat
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Mapping

import pytest
import trio
import trio.testing

from ingress import Handover
from ingress._forks import EXIT_FORKED, guard_run, hide_from_children
from ingress._network import TcpNetwork, TcpStream

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


def exit_code_of_child(work: Callable[[], object]) -> int:
    """Fork, do the work in the child alone, and return how it ended; 0 where it came to the end of its work."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def is_socket(number: int) -> bool:
    return stat.S_ISSOCK(os.fstat(number).st_mode)


def test_r10_a_child_has_the_null_device_in_the_place_of_a_socket_that_is_open() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        hide_from_children(ours)

        def look() -> None:
            assert not is_socket(ours.fileno()) and is_socket(theirs.fileno())
            assert not os.get_inheritable(ours.fileno())
            with pytest.raises(OSError):
                ours.send(b"from the child")

        assert exit_code_of_child(look) == 0
        assert is_socket(ours.fileno())
        ours.close()
        assert theirs.recv(1) == b""


@pytest.mark.parametrize("end", ["closed", "detached", "collected"])
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_r10_a_number_that_is_somebody_elses_by_now_is_left_alone(end: str) -> None:
    ours: socket.socket | None
    ours, theirs = socket.socketpair()
    number = ours.fileno()
    hide_from_children(ours)
    if end == "closed":
        ours.close()
    elif end == "detached":
        os.close(ours.detach())
    else:
        ours = None
        gc.collect()
    os.dup2(theirs.fileno(), number)
    try:
        assert exit_code_of_child(lambda: _assert_socket(number)) == 0
    finally:
        os.close(number)
        theirs.close()


def _assert_socket(number: int) -> None:
    assert is_socket(number)


def test_r10_a_child_without_a_free_descriptor_has_none_of_them_either() -> None:
    pairs = [socket.socketpair() for _ in range(3)]
    for ours, _ in pairs:
        hide_from_children(ours)

    def look() -> None:
        assert not any(is_socket(ours.fileno()) for ours, _ in pairs)

    def fork_without_descriptors() -> None:
        again = [socket.socketpair() for _ in range(3)]
        for ours, _ in again:
            hide_from_children(ours)
        highest = max(theirs.fileno() for _, theirs in again)
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, highest + 1))
        with contextlib.suppress(OSError):
            while True:
                os.dup(0)
        pairs[:] = again
        assert exit_code_of_child(look) == 0

    assert exit_code_of_child(fork_without_descriptors) == 0
    for pair in pairs:
        for each in pair:
            each.close()


async def test_r10_what_a_child_closes_is_heard_by_its_parent_all_the_same() -> None:
    """They share an epoll descriptor."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    heard = []

    async def hear() -> None:
        async with TcpStream(ours) as stream:
            streams.append(stream)
            heard.append(await stream.receive_some())

    streams: list[TcpStream] = []
    with theirs, trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hear)
            await trio.testing.wait_all_tasks_blocked()
            assert exit_code_of_child(streams[0].close_nowait) == 0
            theirs.send(b"word")
    assert heard == [b"word"]


# -- coming back -----------------------------------------------------------------------------------------------------


async def test_r10_a_child_that_comes_back_into_a_run_with_sockets_ends() -> None:
    async with await TcpNetwork().open_listener("127.0.0.1", 0):
        child = os.fork()
        if child == 0:
            await trio.lowlevel.checkpoint()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == EXIT_FORKED


@pytest.mark.parametrize("is_guarded", [False, True])
def test_r10_a_run_that_has_no_socket_yet_is_guarded_for_a_worker_only(is_guarded: bool) -> None:
    gc.collect()

    async def main() -> None:
        if is_guarded:
            guard_run()
        child = os.fork()
        if child == 0:
            await trio.sleep(0)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (EXIT_FORKED if is_guarded else 0)

    trio.run(main)


async def test_r10_a_child_that_sends_before_it_waits_ends() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        async with TcpStream(ours) as stream:
            assert exit_code_of_child(lambda: stream.send_nowait(b"from the child")) == EXIT_FORKED
        assert theirs.recv(1) == b""


@pytest.mark.parametrize("module", ["asyncio", "uvloop"])
@pytest.mark.parametrize("awaited", ["a turn", "a future", "a task", "nothing"])
def test_r10_a_child_that_comes_back_into_a_loop_of_asyncio_ends_within_its_step(module: str, awaited: str) -> None:
    """A loop that looked for what has happened would take that away from the parent's."""
    new_loop = pytest.importorskip(module).new_event_loop
    ours, theirs = socket.socketpair()
    reading, writing = os.pipe()

    async def main() -> None:
        hide_from_children(ours)
        loop = asyncio.get_running_loop()
        task = loop.create_task(asyncio.sleep(60))
        await asyncio.sleep(0)
        waits: Mapping[str, Awaitable[object]] = {
            "a turn": asyncio.sleep(0),
            "a future": loop.create_future(),
            "a task": task,
        }
        loop.call_soon(os.write, writing, b"another step")
        child = os.fork()
        if child == 0:
            if awaited in waits:
                await waits[awaited]
                os._exit(0)
            return
        await waits["a turn"]
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == EXIT_FORKED
        assert os.read(reading, 100) == b"another step"  # of the parent

    with ours, theirs, asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
        os.close(reading)
        os.close(writing)


def test_r10_a_child_that_comes_back_from_a_callback_of_asyncio_ends() -> None:
    ours, theirs = socket.socketpair()
    codes: list[int] = []

    def call() -> None:
        if (child := os.fork()) == 0:
            return
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    async def main() -> None:
        hide_from_children(ours)
        asyncio.get_running_loop().call_soon(call)
        await asyncio.sleep(0)

    with ours, theirs:
        asyncio.run(main())
    assert codes == [EXIT_FORKED]


async def test_r10_a_child_that_hands_a_chunk_over_ends_and_its_own_handover_works() -> None:
    handover: Handover = Handover()
    codes: list[int] = []

    def produce() -> None:
        codes.extend(exit_code_of_child(work) for work in (lambda: handover.put("from the child"), handover.finish))
        codes.append(exit_code_of_child(serve_in_child))
        handover.put("from the parent")
        handover.finish()

    async def use_own() -> None:
        own: Handover = Handover()
        own.put("own")
        own.finish()
        assert await own.take() == ["own"]
        async with await TcpNetwork().open_listener("127.0.0.1", 0) as listener:
            stream = await TcpNetwork().connect(*listener.address)
            await stream.send_all(b"word")
            assert await (await listener.accept()).receive_some() == b"word"

    def serve_in_child() -> None:
        signal.set_wakeup_fd(-1)  # trio warns of its parent's
        trio.run(use_own)

    thread = threading.Thread(target=produce)
    thread.start()
    assert await handover.take() == ["from the parent"]
    assert await handover.take() == []
    await trio.to_thread.run_sync(thread.join)
    assert codes == [EXIT_FORKED, EXIT_FORKED, 0]
