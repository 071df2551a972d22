"""The doubles of the kit: streams that go wrong on purpose, pipes that fill, a network that counts, a dialer."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock, check_two_way_stream, wait_all_tasks_blocked

from ingress.errors import ResponseStreamError
from ingress.testing import (
    Faults,
    FaultyStream,
    MemoryDialer,
    MemoryNetwork,
    MemoryStream,
    memory_worker,
    pipe_pair,
    pipes,
    with_faults,
)
from ingress.wire.messages import StreamAddress

HELLO = b"hello world"


def faulty(**faults: Any) -> tuple[FaultyStream, trio.abc.Stream]:
    near, far = trio.testing.memory_stream_pair()
    return FaultyStream(near, Faults(**faults)), far


async def read_to_end(stream: trio.abc.ReceiveStream) -> list[bytes]:
    parts = []
    while part := await stream.receive_some():
        parts.append(bytes(part))
    return parts


# -- faults ----------------------------------------------------------------------------------------------------------


async def test_without_faults_a_stream_is_as_it_was() -> None:
    near, far = faulty()
    await near.send_all(HELLO)
    assert await far.receive_some() == HELLO
    await far.send_all(HELLO)
    await far.aclose()
    assert await read_to_end(near) == [HELLO]


async def test_a_delay_comes_before_everything(autojump_clock: MockClock) -> None:
    near, far = faulty(delay=3.0)
    await near.send_all(HELLO)
    assert trio.current_time() == pytest.approx(3)
    await far.send_all(HELLO)
    assert await near.receive_some() == HELLO
    await near.wait_send_all_might_not_block()
    assert trio.current_time() == pytest.approx(9)


async def test_a_trickle_comes_and_goes_in_crumbs() -> None:
    near, far = faulty(trickle=4)
    await far.send_all(HELLO)
    await far.aclose()
    assert await read_to_end(near) == [b"hell", b"o wo", b"rld"]
    near, far = faulty(trickle=4)
    assert await _parts_sent(near, far) == [b"hell", b"o wo", b"rld"]


async def _parts_sent(near: trio.abc.Stream, far: trio.abc.Stream) -> list[bytes]:
    parts: list[bytes] = []
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def read() -> None:
            parts.extend(await read_to_end(far))

        for at in range(0, len(HELLO), 4):
            await near.send_all(HELLO[at : at + 4])
            await wait_all_tasks_blocked()
        await near.aclose()
    return parts


async def test_a_cut_looks_like_the_peers_fin() -> None:
    near, far = faulty(cut_after=5)
    await far.send_all(HELLO)
    assert await read_to_end(near) == [b"hello"]
    assert await near.receive_some() == b""
    await near.send_all(b"still heard")
    assert await far.receive_some() == b"still heard"


async def test_a_reset_ends_both_directions() -> None:
    near, far = faulty(reset_after=5)
    await far.send_all(HELLO)
    assert await near.receive_some() == b"hello"
    for act in (near.receive_some, near.wait_send_all_might_not_block, lambda: near.send_all(b"x")):
        with pytest.raises(trio.BrokenResourceError, match="asked for"):
            await act()


async def test_a_partial_write_delivers_its_beginning() -> None:
    near, far = faulty(partial_write=7)
    with pytest.raises(trio.BrokenResourceError):
        await near.send_all(HELLO)
    await near.aclose()
    assert await read_to_end(far) == [b"hello w"]


async def test_a_stream_that_sends_without_waiting_has_its_faults_there_too() -> None:
    near, far = pipe_pair()
    stream = FaultyStream(near, Faults(trickle=2, partial_write=5))
    assert [stream.send_nowait(HELLO[at:]) for at in (0, 2, 4)] == [2, 2, 1]
    with pytest.raises(trio.BrokenResourceError):
        stream.send_nowait(b"more")
    assert await far.receive_some() == b"hello"
    assert not hasattr(faulty()[0], "send_nowait")


@pytest.mark.parametrize(
    "make_pair",
    [
        with_faults(Faults(trickle=1), accepting=Faults(trickle=3)),
        with_faults(Faults(delay=0.01)),
        pipes(1),
        pipes(100),
        with_faults(Faults(trickle=2), pipes(3)),
    ],
)
async def test_a_worker_answers_over_any_connection_that_delivers(make_pair: Any, autojump_clock: MockClock) -> None:
    async def echo(request: Any) -> Any:
        return request

    network = MemoryNetwork(make_pair)
    # memory_worker takes no network of ours: that is what it is for; the rest is the same.
    from ingress import MemoryDiscovery, open_client, serving

    discovery = MemoryDiscovery()
    async with (
        serving(echo, network=network, discovery=discovery, linger=0.0, drain_budget=5.0),
        open_client(network=network, discovery=discovery) as client,
        client.stream("demo.backend.generate", "x" * 300) as responses,
    ):
        assert [item async for item in responses] == ["x" * 300]
    assert network.open_connections == []


# -- pipes -----------------------------------------------------------------------------------------------------------


async def test_a_pipe_keeps_the_contract_of_a_stream() -> None:
    async def make() -> tuple[trio.abc.Stream, trio.abc.Stream]:
        return pipe_pair()

    async def make_clogged() -> tuple[trio.abc.Stream, trio.abc.Stream]:
        near, far = pipe_pair(1)
        for end in (near, far):
            end.send_nowait(b"x")  # type: ignore[attr-defined]  # what trio's own streams lack
        return near, far

    await check_two_way_stream(make, make_clogged)


async def test_a_full_pipe_takes_nothing_until_it_is_read() -> None:
    near, far = pipe_pair(5)
    assert isinstance(near, trio.abc.Stream)
    assert [near.send_nowait(HELLO), near.send_nowait(HELLO)] == [5, 0]  # type: ignore[attr-defined]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.wait_send_all_might_not_block)
        await wait_all_tasks_blocked()
        assert nursery.child_tasks
        assert await far.receive_some(2) == b"he"
    await far.aclose()
    with pytest.raises(trio.BrokenResourceError):
        near.send_nowait(b"x")  # type: ignore[attr-defined]


# -- the network -----------------------------------------------------------------------------------------------------


async def test_a_network_knows_which_connections_are_open() -> None:
    network = MemoryNetwork()
    async with await network.open_listener("127.0.0.1", 0) as listener:
        first = await network.connect(*listener.address)
        second = await network.connect(*listener.address)
        assert network.open_connections == [listener.address] * 2
        accepted = await listener.accept()
        await accepted.aclose()
        assert network.open_connections == [listener.address] * 2
        await first.aclose()
        assert network.open_connections == [listener.address]
    assert await second.receive_some() == b""  # it was never accepted, and its listener is gone
    await second.aclose()
    assert network.open_connections == []
    assert network.connects == [("127.0.0.1", 40001)] * 2


async def test_a_connection_can_be_reset() -> None:
    network = MemoryNetwork()
    async with await network.open_listener("127.0.0.1", 0) as listener:
        near = await network.connect(*listener.address)
        far = await listener.accept()
        assert isinstance(far, MemoryStream)
        await far.send_all(HELLO)
        await far.reset()
        with pytest.raises(trio.BrokenResourceError, match="reset by peer"):
            await near.receive_some()
        with pytest.raises(trio.BrokenResourceError):
            await near.send_all(HELLO)
        await near.aclose()


async def test_a_reset_wakes_a_reader() -> None:
    network = MemoryNetwork()
    async with await network.open_listener("127.0.0.1", 0) as listener, trio.open_nursery() as nursery:
        near = await network.connect(*listener.address)
        far = await listener.accept()

        @nursery.start_soon
        async def read() -> None:
            with pytest.raises(trio.BrokenResourceError, match="reset by peer"):
                await near.receive_some()

        await wait_all_tasks_blocked()
        assert isinstance(far, MemoryStream)
        await far.reset()


async def test_a_memory_worker_is_gone_when_its_block_is_left() -> None:
    async def echo(request: Any) -> Any:
        return request

    async with memory_worker(echo) as client, client.stream("demo.backend.generate", 1) as responses:
        assert [item async for item in responses] == [1]


# -- the dialer ------------------------------------------------------------------------------------------------------


async def test_a_dialer_gives_the_frames_it_was_given_and_remembers_who_asked() -> None:
    dialer, address = MemoryDialer([b"1", b"22"]), StreamAddress("tcp_server", "{}")
    requests = await dialer.open_request_stream(address, int)
    assert [request async for request in requests] == [1, 22]
    assert dialer.opened == [address]


async def test_a_dialer_can_fail() -> None:
    dialer = MemoryDialer(failure=ResponseStreamError("unreachable"))
    with pytest.raises(ResponseStreamError, match="unreachable"):
        await dialer.open_request_stream(StreamAddress("tcp_server", "{}"), int)
    assert len(dialer.opened) == 1
