"""TCP over loopback: the few things that memory streams cannot show."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import random
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked

from ingress._hosts import join_host_port, routable_host
from ingress._network import TcpNetwork, TcpStream
from ingress._stream_limits import DEFAULT_WRITE_STALL_TIMEOUT
from ingress.discovery import MemoryDiscovery
from ingress.errors import StartupError
from ingress.wire.messages import ControlWord

from .raw_caller import Stage, open_stage

NETWORK = TcpNetwork()


@asynccontextmanager
async def open_connection(host: str = "127.0.0.1") -> AsyncIterator[tuple[TcpStream, TcpStream]]:
    async with await NETWORK.open_listener(host, 0) as listener:
        ours = await NETWORK.connect(host, listener.address[1])
        theirs = await listener.accept()
        async with ours, theirs:
            yield ours, theirs


@asynccontextmanager
async def open_tcp_stage(engine: Any, **options: Any) -> AsyncIterator[Stage]:
    with trio.fail_after(60):
        async with open_stage(engine, network=NETWORK, discovery=MemoryDiscovery(), **options) as stage:
            yield stage


# -- streams ---------------------------------------------------------------------------------------------------------


async def test_a_send_that_never_waits_sends_what_fits_and_goes_on_when_there_is_room() -> None:
    """Fifty megabytes through ``send_nowait`` to a reader that comes late arrive whole and in order."""
    data = random.Random(50).randbytes(50_000_000)
    received = bytearray()
    partial = refused = 0

    async def read() -> None:
        await trio.sleep(0.05)
        async for chunk in theirs:
            received.extend(chunk)

    async with open_connection() as (ours, theirs), trio.open_nursery() as nursery:
        nursery.start_soon(read)
        view, at = memoryview(data), 0
        while at < len(data):
            sent = ours.send_nowait(view[at:])
            partial += 0 < sent < len(data) - at
            if sent == 0:
                refused += 1
                await ours.wait_send_all_might_not_block()
            at += sent
        await ours.send_eof()
    assert received == data
    assert partial > 0 and refused > 0


async def test_sending_to_a_closed_or_reset_connection_is_a_broken_resource() -> None:
    async with open_connection() as (ours, theirs):
        await theirs.aclose()
        with pytest.raises(trio.BrokenResourceError):
            while True:
                ours.send_nowait(b"x" * 1000)
                await trio.sleep(0.001)
        await ours.aclose()
        with pytest.raises(trio.BrokenResourceError):
            ours.send_nowait(b"x")


async def test_whether_bytes_wait_is_told_without_reading_them_and_an_end_is_no_bytes() -> None:
    async with open_connection() as (ours, theirs):
        told = [ours.has_unread]
        await theirs.send_all(b"xy")
        await trio.lowlevel.wait_readable(ours)
        told += [ours.has_unread, ours.has_unread]
        assert await ours.receive_some() == b"xy"
        told.append(ours.has_unread)
        await theirs.aclose()
        await trio.lowlevel.wait_readable(ours)
        told.append(ours.has_unread)
        await ours.aclose()
        told.append(ours.has_unread)
    assert told == [False, True, True, False, False, False]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0", "::"])
async def test_peers_are_known_by_their_addresses_and_mapped_ones_by_their_ipv4(host: str) -> None:
    try:
        listener = await NETWORK.open_listener(host, 0)
    except StartupError:
        pytest.skip(f"no {host} here")
    async with listener:
        dialled = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}.get(host, host)
        async with await NETWORK.connect(dialled, listener.address[1]) as ours:
            async with await listener.accept() as theirs:
                assert NETWORK.peer_host(theirs) == dialled
                assert NETWORK.local_address(listener) == listener.address
                await ours.send_all(b"x")
                assert await theirs.receive_some(10) == b"x"
            assert NETWORK.peer_host(ours) in (dialled, None)


@pytest.mark.skipif(sys.platform != "linux", reason="the options have these names on Linux")
async def test_d13_connections_have_keepalive_user_timeout_and_no_delay() -> None:
    async with open_connection() as pair:
        for stream in pair:
            raw = stream._raw
            assert raw.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
            assert (
                raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
                == 63_000
                > DEFAULT_WRITE_STALL_TIMEOUT * 1000
            )
            assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert not os.get_inheritable(raw.fileno())


# -- listening and connecting ----------------------------------------------------------------------------------------


async def test_r09_an_address_that_is_taken_or_not_ours_is_named_in_the_refusal() -> None:
    async with await NETWORK.open_listener("127.0.0.1", 0) as listener:
        port = listener.address[1]
        with pytest.raises(StartupError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            await NETWORK.open_listener("127.0.0.1", port)
    with pytest.raises(StartupError, match=r"cannot listen on 192\.0\.2\.1:5000"):
        await NETWORK.open_listener("192.0.2.1", 5000)
    with pytest.raises(StartupError, match=r"cannot listen on no such host\.invalid"):
        await NETWORK.open_listener("no such host.invalid", 0)


async def test_a_connect_that_fails_or_is_cancelled_leaves_no_socket() -> None:
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("descriptors cannot be counted here")
    async with await NETWORK.open_listener("127.0.0.1", 0) as listener:
        port = listener.address[1]
    gc.collect()
    before = len(list(descriptors.iterdir()))
    with pytest.raises(ConnectionRefusedError):
        await NETWORK.connect("127.0.0.1", port)
    with trio.move_on_after(0.01), contextlib.suppress(OSError):
        await NETWORK.connect("192.0.2.1", 5000)
    with trio.move_on_after(0):
        await NETWORK.connect("127.0.0.1", port)
    assert len(list(descriptors.iterdir())) == before


async def test_patience_that_no_kernel_has_is_no_reason_to_refuse_a_connection() -> None:
    network = TcpNetwork(user_timeout=1e12)
    async with (
        await network.open_listener("127.0.0.1", 0) as listener,
        await network.connect(*listener.address) as ours,
        await listener.accept() as theirs,
    ):
        await ours.send_all(b"x")
        assert await theirs.receive_some() == b"x"


async def test_a_name_is_looked_up_while_others_run_and_its_addresses_are_tried_in_order() -> None:
    let_go, asked = trio.Event(), list[object]()

    class Resolver(trio.abc.HostnameResolver):
        async def getaddrinfo(self, host: object, port: object, *others: object) -> Any:
            asked.append(host)
            await let_go.wait()
            return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (each, port)) for each in ("127.0.0.9", "127.0.0.1")]

        async def getnameinfo(self, sockaddr: object, flags: int) -> Any:
            raise AssertionError("nobody asks for a name")

    trio.socket.set_custom_hostname_resolver(Resolver())
    async with await NETWORK.open_listener("127.0.0.1", 0) as listener, trio.open_nursery() as nursery:

        async def connect() -> None:
            async with await NETWORK.connect("worker.example", listener.address[1]):
                asked.append("connected")

        nursery.start_soon(connect)
        await wait_all_tasks_blocked()
        assert asked == [b"worker.example"]
        let_go.set()
    assert asked == [b"worker.example", "connected"]


async def test_accept_on_a_closed_listener_says_so() -> None:
    listener = await NETWORK.open_listener("127.0.0.1", 0)
    await listener.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()
    with pytest.raises(TypeError, match="expected a listener of this network"):
        NETWORK.local_address(object())  # type: ignore[arg-type]  # the wrong type is the test


async def test_accepting_ends_with_the_listener() -> None:
    listener = await NETWORK.open_listener("127.0.0.1", 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.aclose)
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()
    with pytest.raises(trio.ClosedResourceError):
        listener.accept_nowait()


async def test_connections_that_are_there_are_accepted_without_a_wait_and_none_is_invented() -> None:
    async with await NETWORK.open_listener("127.0.0.1", 0) as listener, AsyncExitStack() as stack:
        assert listener.accept_nowait() is None
        ours = [await stack.enter_async_context(await NETWORK.connect(*listener.address)) for _ in range(3)]
        with trio.testing.assert_no_checkpoints():
            theirs = [listener.accept_nowait() for _ in range(3)]
        assert listener.accept_nowait() is None
        for stream, accepted in zip(ours, theirs, strict=True):
            assert accepted is not None
            await stack.enter_async_context(accepted)
            assert accepted._raw.getpeername() == stream._raw.getsockname()
            assert accepted._raw.gettimeout() == 0


async def test_an_accept_that_fails_at_once_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def accept(self) -> None:
            raise OSError(errno.EMFILE, "too many open files")

    async with await NETWORK.open_listener("127.0.0.1", 0) as listener:
        with monkeypatch.context() as patch, pytest.raises(OSError, match="too many open files") as caught:
            patch.setattr(listener, "_raw", Failing())
            listener.accept_nowait()
        assert caught.value.errno == errno.EMFILE


def test_addresses_are_joined_as_they_are_written() -> None:
    assert join_host_port("10.0.0.1", 5) == "10.0.0.1:5"
    assert join_host_port("::1", 5) == "[::1]:5"
    assert routable_host() not in ("0.0.0.0", "::")


# -- a worker over loopback ------------------------------------------------------------------------------------------


async def test_an_answer_over_sockets_is_whole_and_the_caller_closes_first() -> None:
    async def engine(request: Any) -> AsyncIterator[Any]:
        for i in range(request):
            yield i

    async with open_tcp_stage(engine) as stage:
        for count in (0, 1, 10_000):
            said = await stage.tell(count)
            assert said.is_whole and said.items == list(range(count))
        await trio.sleep(0.05)
        assert stage.counted_ends() == {}
        stage.assert_nothing_left()


async def test_a_reader_that_comes_late_gets_fifty_megabytes_whole_and_in_order() -> None:
    blocks = [random.Random(i).randbytes(375_000).hex() for i in range(8)]

    async def engine(request: Any) -> AsyncIterator[Any]:
        for i in range(request):
            yield [i, blocks[i % 8]]

    async with open_tcp_stage(engine) as stage:
        response = await stage.call(67)
        await trio.sleep(0.1)
        await stage.assert_alive(1)
        said = await response.read_to_sentinel()
        assert [item[0] for item in said.items] == list(range(67))
        assert all(block == blocks[i % 8] for i, block in said.items)


async def test_d08_readers_that_never_read_hold_little_and_harm_nobody() -> None:
    made = 0

    async def engine(request: Any) -> AsyncIterator[Any]:
        nonlocal made
        for _ in range(request):
            made += 1
            yield "x" * 10_000

    async with open_tcp_stage(engine) as stage:
        for _ in range(20):
            await stage.call(10**6)
        await trio.sleep(0.2)
        first = made
        await trio.sleep(0.2)
        assert made == first  # all are held back: what the kernel took, and 256 KiB each
        await stage.assert_alive(1)


@pytest.mark.parametrize("how", ["stop", "kill", "fin", "reset"])
async def test_s01_s02_d10_a_running_stream_ends_at_once_over_sockets(how: str) -> None:
    ended = trio.Event()

    async def engine(request: Any) -> AsyncIterator[Any]:
        try:
            yield 1
            await trio.sleep_forever()
        finally:
            ended.set()

    async with open_tcp_stage(engine) as stage:
        response = await stage.call()
        await response.read_items(1)
        assert isinstance(response.stream, TcpStream)
        if how in ("stop", "kill"):
            await response.send_word(ControlWord(how))
        elif how == "fin":
            await response.stream.send_eof()
        else:
            response.stream._raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            await response.aclose()
        with trio.fail_after(5):
            await ended.wait()
            if how != "reset":
                said = await response.read_to_end()
                assert (said.end, said.has_final) == ("fin", False)
        await trio.sleep(0.02)
        assert stage.counted_ends() == {"cancellation": 1}
        stage.assert_nothing_left()
