"""Bad request frames and payloads against ``ingress serve`` with default settings, over sockets."""

from __future__ import annotations

import contextlib
import json
import random
import resource
import struct
import sys
from collections.abc import Iterator

import pytest
import trio

from ingress.wire.request_frame import encode_request_frame
from ingress.wire.two_part import encode_two_part

from .reliability.served import PATIENCE, Watch, Worker, open_worker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory and descriptors are read in /proc")

MIB = 1 << 20
LIMIT = 32 * MIB
UNREADABLE = "Server unavailable: unreadable control message"
BAD_PATH = "Server unavailable: invalid endpoint path"


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with open_worker() as running:
        yield running


def framed(worker: Worker, payload: bytes, headers: bytes = b"{}", path: bytes | None = None) -> bytes:
    path = worker.record.tcp_target[1].encode() if path is None else path
    return struct.pack(">H", len(path)) + path + struct.pack(">H", len(headers)) + headers + announced(payload)


def announced(payload: bytes, size: int | None = None) -> bytes:
    return struct.pack(">I", len(payload) if size is None else size) + payload


# -- request frames --------------------------------------------------------------------------------------------------


async def test_f01_twenty_frames_that_announce_4_gib_are_refused_and_cost_nothing(worker: Worker) -> None:
    watch = Watch(worker)
    for _ in range(20):
        frame = framed(worker, b"")[:-4] + b"\xff" * 4
        ((ack,), is_closed) = await worker.ask(frame)
        assert ack == f"Server unavailable: message too large: {len(frame) + 0xFFFFFFFF} bytes (max: {LIMIT} bytes)"
        assert is_closed
    await watch.assert_back(growth=16 * MIB)


async def test_f02_the_largest_frame_is_served_and_one_byte_more_is_told(worker: Worker) -> None:
    async with worker.open_caller() as caller:
        for extra in (0, 1):
            control = caller.control().encode()
            room = LIMIT - len(framed(worker, encode_two_part(control, b'""')))
            frame = framed(worker, encode_two_part(control, b'"' + b"x" * (room + extra) + b'"'))
            assert len(frame) == LIMIT + extra
            assert (await worker.ask(frame))[0] == [""]
            said = await (await caller.accept()).read_to_sentinel()
            assert said.is_whole
            if extra:
                assert said.errors[0].message.startswith(f"message too large: {LIMIT + 1} bytes (max: {LIMIT} bytes)")
            else:
                assert len(said.items[0]) == room
    await worker.assert_alive()


async def test_f02_a_junk_frame_over_the_limit_is_refused_in_the_ack(worker: Worker) -> None:
    frame = framed(worker, b"")[:-4] + announced(bytes(100_000), LIMIT)
    ((ack,), is_closed) = await worker.ask(frame)
    assert ack.startswith("Server unavailable: message too large")
    assert is_closed


async def test_f03_fifty_announcements_of_the_largest_payload_cost_what_was_sent(worker: Worker) -> None:
    watch = Watch(worker)
    streams = [await worker.connect() for _ in range(50)]
    for stream in streams:
        await stream.send_all(framed(worker, b"")[:-4] + announced(b"", LIMIT - 1000))
    await worker.assert_alive()
    assert worker.memory() - watch.memory < 50 * MIB  # 1.6 GiB are announced
    for stream in streams:
        await stream.aclose()
    await watch.assert_back()


@pytest.mark.parametrize(
    ("path", "ack"),
    [
        (b"", "Server unavailable: unknown endpoint "),
        (b"\xff\xfe\xfd", BAD_PATH),
        (b"\xed\xa0\x80", BAD_PATH),
        (b"\xc0\xaf", BAD_PATH),
        (b"../../etc", "Server unavailable: unknown endpoint ../../etc"),
        (b"a\nb\x1b[31m\0", "Server unavailable: unknown endpoint a\\nb\\x1b[31m\\x00"),
        ("\u202egnp".encode(), "Server unavailable: unknown endpoint \\u202egnp"),
        (b"x" * 1024, f"Server unavailable: unknown endpoint {'x' * 200}…(1024 characters)"),
    ],
)
async def test_f04_f06_f07_strange_paths_are_refused_without_a_trace_and_the_connection_kept(
    path: bytes, ack: str, worker: Worker
) -> None:
    before = (await worker.samples()).keys()
    assert await worker.ask(framed(worker, b"x", path=path) * 2, 2) == ([ack, ack], False)
    assert (await worker.samples()).keys() == before
    assert "\x1b" not in worker.log()
    await worker.assert_alive()


@pytest.mark.parametrize(
    "data",
    [
        b"\x04\x01",
        b"\xff\xff",
        b"\x16\x03\x01\x02\0\x01",
        b"GET / HTTP/1.1\r\n\r\n",
        b"*1\r\n$4\r\nPING\r\n",
        b"SSH-2.0-x",
    ],
)
async def test_f05_f17_what_is_no_path_at_all_is_refused_and_the_connection_closed(data: bytes, worker: Worker) -> None:
    assert await worker.ask(data) == ([BAD_PATH], True)
    await worker.assert_alive()


@pytest.mark.parametrize(
    "headers",
    [b"", b"no", b"[]", b"null", b'{"a":1}', b'{"a":{"b":{}}}', b'{"a":"1","a":"2"}', b'{"\xff":""}',
     b" " * 65535, b"[" * 30_000],
    ids=range(10),
)  # fmt: skip
async def test_f08_a_request_with_strange_headers_is_served(headers: bytes, worker: Worker) -> None:
    async with worker.open_caller() as caller:
        assert (await worker.ask(framed(worker, caller.payload(5), headers)))[0] == [""]
        assert (await (await caller.accept()).read_to_sentinel()).items == [5]


async def test_f09_a_frame_cut_anywhere_calls_nothing_and_is_no_error(worker: Worker) -> None:
    watch = Watch(worker)
    requests, errors = await worker.sample("dynamo_component_requests_total"), await worker.errors()
    lines = len(worker.log().splitlines())
    async with worker.open_caller() as caller:
        frame = framed(worker, caller.payload(5))
        for cut in range(len(frame)):
            async with await worker.connect() as stream:
                await stream.send_all(frame[:cut])
    assert len(worker.log().splitlines()) == lines
    assert (await worker.sample("dynamo_component_requests_total"), await worker.errors()) == (requests, errors)
    await watch.assert_back()


async def test_f10_frames_byte_by_byte_are_served(worker: Worker) -> None:
    async with worker.open_caller() as caller:
        stream = await worker.connect()
        for byte in framed(worker, caller.payload(1)) + framed(worker, caller.payload(2)):
            await stream.send_all(bytes([byte]))
        answers = [(await (await caller.accept()).read_to_sentinel()).items for _ in range(2)]
        assert sorted(answers) == [[1], [2]]
        await stream.aclose()


async def test_f11_a_thousand_requests_in_one_write_are_acked_and_answered(worker: Worker) -> None:
    watch = Watch(worker)
    answers: set[int] = set()
    async with worker.open_caller() as caller, trio.open_nursery() as nursery:

        async def take() -> None:
            response = await caller.accept()
            nursery.start_soon(read, response)

        async def read(response: object) -> None:
            said = await response.read_to_sentinel()  # type: ignore[attr-defined]  # a RawResponse
            assert said.is_whole
            answers.update(said.items)
            await response.aclose()  # type: ignore[attr-defined]

        async def accept_all() -> None:
            for _ in range(1000):
                await take()

        nursery.start_soon(accept_all)
        connection = await caller.connect(worker)
        await connection.stream.send_all(b"".join(framed(worker, caller.payload(number)) for number in range(1000)))
        assert await connection.read_acks(1000) == [""] * 1000
    assert answers == set(range(1000))
    await watch.assert_back(growth=256 * MIB)


async def test_f12_a_peer_that_never_reads_its_acks_is_not_read_from_and_costs_little(worker: Worker) -> None:
    watch = Watch(worker)
    stream = await worker.connect()
    refused = framed(worker, b"x", path=b"x" * 1000) * 1000
    with trio.move_on_after(2) as timer:
        for _ in range(400):
            await stream.send_all(refused)
    assert timer.cancelled_caught  # what the kernel holds, and no more
    assert worker.memory() - watch.memory < 80 * MIB
    await worker.assert_alive()
    await stream.aclose()
    await watch.assert_back()


async def test_f13_f14_slow_and_silent_and_idle_connections_cost_little_and_hold_nobody_up(worker: Worker) -> None:
    watch = Watch(worker)
    streams = [await worker.connect() for _ in range(600)]
    for at, stream in enumerate(streams[:400]):
        await stream.send_all(b"\0\x20abc"[: 1 + at % 5])
    await worker.assert_alive()
    for stream in streams[:200]:
        await stream.send_all(b"x")
    await worker.assert_alive()
    assert worker.memory() - watch.memory < 600 * 320 * 1024
    for stream in streams:
        await stream.aclose()
    await watch.assert_back()


async def test_f03_f13_partial_frames_of_the_largest_size_are_held_only_as_far_as_the_budget_goes() -> None:
    """Forty of them held 1.35 GB."""
    with open_worker("--max-incomplete-bytes", str(64 << 20)) as worker:
        watch = Watch(worker)
        part = encode_request_frame(worker.record.tcp_target[1], {}, bytes((32 << 20) - 200))[: 31 << 20]
        streams = [await worker.connect() for _ in range(12)]
        for stream in streams:
            with contextlib.suppress(trio.BrokenResourceError), trio.move_on_after(PATIENCE):
                await stream.send_all(part)
        assert worker.memory() - watch.memory < 128 << 20
        assert worker.peak_memory() - watch.memory < 160 << 20
        assert await worker.sample("ingress_frames_refused_total", reason="overloaded") >= 10
        await worker.assert_alive()
        for stream in streams:
            stream.close_nowait()
        await watch.assert_back(growth=160 << 20)


async def test_f15_five_thousand_connections_are_held_and_given_back(worker: Worker) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 13_600  # of the worker, for so many connections of one peer
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"{needed:,} descriptors are needed, {hard:,} may be had")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 5200), hard))
    watch = Watch(worker)
    streams = [await worker.connect() for _ in range(5000)]
    await worker.assert_alive()
    assert worker.memory() - watch.memory < 5000 * 320 * 1024
    for stream in streams:
        stream.close_nowait()
    for _ in range(5000):
        (await worker.connect()).close_nowait()
    await watch.assert_back()


async def test_f16_three_thousand_mutated_frames_harm_nobody(worker: Worker) -> None:
    watch = Watch(worker)
    dice = random.Random(1)
    async with worker.open_caller() as caller:
        good = framed(worker, caller.payload({"do": "count", "n": 3}))
        for _ in range(3000):
            frame = bytearray(good)
            for _ in range(dice.randrange(1, 6)):
                frame[dice.randrange(len(frame))] = dice.randrange(256)
            stream = await worker.connect()
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(frame)
            stream.close_nowait()
        # Those that were still requests were dialled back, and nobody answers.
        await caller.listener.aclose()
    await watch.assert_back(growth=160 * MIB)


# -- two-part frames -------------------------------------------------------------------------------------------------


def lengths(header: int, body: int) -> bytes:
    return struct.pack(">QQQ", header % 2**64, body % 2**64, 0)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        bytes(23),
        bytes(24),
        encode_two_part(b'{"id":"x"}'),
        encode_two_part(body=b"{}"),
        lengths(1000, 0),
        lengths(0, 1000),
        lengths(2**63, 2**63),
        lengths(2**64 - 1, 25),
        lengths(2**64 - 24, 24),
        lengths(2**62, 2) + b"{}",
    ],
    ids=range(11),
)
async def test_p01_p02_p03_a_payload_that_lies_about_its_parts_is_refused(payload: bytes, worker: Worker) -> None:
    watch, before = Watch(worker), await worker.errors()
    assert await worker.ask(framed(worker, payload)) == ([UNREADABLE], False)
    assert (await worker.errors())["invalid_message"] == before.get("invalid_message", 0) + 1
    await watch.assert_back(growth=16 * MIB)


async def test_p04_a_header_length_that_swallows_the_body_is_refused(worker: Worker) -> None:
    async with worker.open_caller() as caller:
        control = caller.control().encode()
    before = await worker.errors()
    payload = lengths(len(control) + 2, 1) + control + b"{}5"
    assert await worker.ask(framed(worker, payload)) == ([UNREADABLE], False)
    assert (await worker.errors())["deserialization"] == before.get("deserialization", 0) + 1


@pytest.mark.parametrize("tail", [b"", b"\0" * 50])
@pytest.mark.parametrize("checksum", [0, 1, 2**64 - 1])
async def test_p05_p06_bytes_after_the_body_and_any_checksum_are_ignored(
    tail: bytes, checksum: int, worker: Worker
) -> None:
    async with worker.open_caller() as caller:
        payload = bytearray(caller.payload(7) + tail)
        payload[16:24] = struct.pack(">Q", checksum)
        assert (await worker.ask(framed(worker, bytes(payload))))[0] == [""]
        assert (await (await caller.accept()).read_to_sentinel()).items == [7]


async def test_k11_a_stale_record_that_leads_to_another_worker_is_refused_by_its_path(worker: Worker) -> None:
    """Addresses are given again; the path has the instance's id."""
    instance, _, rest = worker.record.tcp_target[1].partition("/")
    stale = f"{int(instance, 16) ^ 1:x}/{rest}"
    frame = encode_request_frame(stale, {}, b"x")
    assert await worker.ask(frame) == ([f"Server unavailable: unknown endpoint {stale}"], False)


def test_o01_every_line_of_the_log_is_short_and_an_object(worker: Worker) -> None:

    for line in worker.log().splitlines():
        assert len(line) <= 1024
        assert isinstance(json.loads(line), dict)
