"""Bad control messages, bodies, addresses and words against ``ingress serve`` with default settings, over sockets."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import trio

from ingress._network import TcpStream
from ingress.wire.messages import ControlWord
from ingress.wire.request_frame import encode_request_frame
from ingress.wire.two_part import encode_two_part

from .raw_caller import RawCaller, RawResponse
from .reliability.served import NETWORK, PATIENCE, Watch, Worker, open_worker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory and descriptors are read in /proc")

MIB = 1 << 20
UNREADABLE = "Server unavailable: unreadable control message"
REFUSED = "Server unavailable: dial-back address refused"


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with open_worker() as running:
        yield running


def frame(worker: Worker, payload: bytes) -> bytes:
    return encode_request_frame(worker.record.tcp_target[1], {}, payload)


def changed(caller: RawCaller, **changes: Any) -> bytes:
    """Return a good control message with fields that differ; None takes a field away."""
    fields = {**json.loads(caller.control().encode()), **changes}
    return json.dumps({name: value for name, value in fields.items() if value is not None}).encode()


# -- control messages ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "control",
    [b"no", b'{"id":"x"', '{"id":"x"}'.encode("utf-16"), b"\xef\xbb\xbf{}", b"[]", b"null", b"5", b'{"id":"\xff"}',
     b"{}}{", b"[" * 1_000, b"[" * 100_000, b'{"a":' * 10_000],
    ids=range(12),
)  # fmt: skip
async def test_c01_c08_a_control_message_that_is_none_is_refused(control: bytes, worker: Worker) -> None:
    watch, before = Watch(worker), await worker.errors()
    assert await worker.ask(frame(worker, encode_two_part(control, b"1"))) == ([UNREADABLE], False)
    assert (await worker.errors())["deserialization"] == before.get("deserialization", 0) + 1
    await watch.assert_back()


async def test_c01_bytes_that_are_no_text_in_an_unknown_field_are_refused(worker: Worker) -> None:
    async with worker.open_caller() as caller:
        payload = encode_two_part(b'{"later":"\xff",' + changed(caller)[1:], b"1")
    assert await worker.ask(frame(worker, payload)) == ([UNREADABLE], False)


@pytest.mark.parametrize(
    "changes",
    [{"id": None}, {"id": 5}, {"id": "x" * 1025}, {"id": "x" * 200_000}, {"connection_info": None},
     {"request_type": "x"}, {"payload_codec": "yaml"}, {"metadata": {str(n): "x" for n in range(65)}},
     {"metadata": {"x": "x" * 17_000}}],
    ids=range(9),
)  # fmt: skip
async def test_c02_c03_c04_a_control_message_with_wrong_fields_is_refused(
    changes: dict[str, Any], worker: Worker
) -> None:
    before = await worker.errors()
    async with worker.open_caller() as caller:
        payload = encode_two_part(changed(caller, **changes), b"1")
    assert await worker.ask(frame(worker, payload)) == ([UNREADABLE], False)
    assert (await worker.errors())["deserialization"] == before.get("deserialization", 0) + 1


async def test_c04_c05_unknown_fields_and_fields_that_stand_twice_are_served(worker: Worker) -> None:
    async with worker.open_caller() as caller:
        control = b'{"id":"first","later":[1],' + changed(caller, metadata={"a": "b"})[1:]
        assert (await worker.ask(frame(worker, encode_two_part(control, b"1"))))[0] == [""]
        assert (await (await caller.accept()).read_to_sentinel()).items == [1]


@pytest.mark.parametrize(
    "info",
    [{"address": address} for address in (
        "", "127.0.0.1", "127.0.0.1:99999", "unix:/x", "127.0.0.1:40\n00", "localhost:4000", "0:4000", "0.0.0.0:4000",
        "127.1:4000", "2130706433:4000", "0x7f000001:4000", " 127.0.0.1:4000", "127.0.0.1:4000/x", "u@127.0.0.1:4000",
        "169.254.169.254:80", "127.0.0.1:22", "10.1.2.3:4000", "[::ffff:10.1.2.3]:4000", "[fe80::1%lo]:4000",
    )] + [{"stream_type": "request"}, {"context": "other"}, {"subject": "a\nb"}],
    ids=range(22),
)  # fmt: skip
async def test_c07_d03_dial_backs_that_do_not_fit_are_refused_before_the_ack(
    info: dict[str, str], worker: Worker
) -> None:
    before = await worker.errors()
    async with worker.open_caller() as caller:
        payload = caller.payload(1, caller.control(info=info))
        assert await worker.ask(frame(worker, payload)) == ([REFUSED], False)
        assert await nobody_comes(caller)
    assert (await worker.errors())["response_stream"] == before.get("response_stream", 0) + 1


async def test_c06_a_foreign_response_transport_is_refused_by_its_name(worker: Worker) -> None:
    async with worker.open_caller() as caller:
        payload = caller.payload(1, caller.control(transport="quic-response"))
    ((ack,), _) = await worker.ask(frame(worker, payload))
    assert ack.startswith("Server unavailable: response transport") and "quic-response" in ack


async def nobody_comes(caller: RawCaller) -> bool:
    with trio.move_on_after(0.05) as waiting:
        await caller.accept()
    return waiting.cancelled_caught


# -- bodies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [b"[" * 129 + b"]" * 129, b"[" * 1_000_000, b'{"a":' * 100_000, b"9" * 100_000, b"9" * 4301, b"1e999", b"NaN",
     b"[Infinity]", b'"\\ud800"', b'"\n"', b"{}//", b"{'a':1}", b"[1,]", b"\xff"],
    ids=range(14),
)  # fmt: skip
async def test_c08_to_c12_a_body_that_is_no_json_is_told(body: bytes, worker: Worker) -> None:
    watch, before = Watch(worker), await worker.errors()
    async with worker.open_caller() as caller:
        said = await worker.tell(caller, body)
    assert said.is_whole
    assert [error.kind for error in said.errors] == ["InvalidArgument"]
    assert (await worker.errors())["deserialization"] == before.get("deserialization", 0) + 1
    await watch.assert_back()


@pytest.mark.parametrize(
    "body",
    [b"\xdd\xff\xff\xff\xff", b"\x81\xa1a\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff",
     b"\xc6\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x05", b"\x91" * 100_000, b"\xdc\x00\x01" * 24_000, b"\x81\x90\x00",
     b"\xc1", b"\xd4\x2a\x00", b"\xa1\xff", b"\x01\x02", b'{"a":1}'],
    ids=range(14),
)  # fmt: skip
async def test_c15_c16_msgpack_that_lies_or_is_none_is_told(body: bytes, worker: Worker) -> None:
    watch = Watch(worker)
    async with worker.open_caller() as caller:
        connection = await caller.connect(worker)
        response = await caller.call(connection, body, codec="msgpack")
        said = await response.read_to_sentinel()
    assert said.is_whole
    assert [error.kind for error in said.errors] == ["InvalidArgument"]
    await watch.assert_back(growth=64 * MIB)


async def test_c13_32_mib_of_empty_arrays_cost_others_no_time(worker: Worker) -> None:
    async with worker.open_caller() as caller, trio.open_nursery() as nursery:

        async def attack() -> None:
            for _ in range(3):
                said = await worker.tell(caller, b"[" + b"[]," * (10 * MIB) + b"[]]")
                assert said.is_whole and said.errors[0].kind == "InvalidArgument"
            over.set()

        over = trio.Event()
        nursery.start_soon(attack)
        while not over.is_set():
            await worker.assert_alive()
    assert "event loop blocked" not in worker.log()


async def test_c14_many_keys_and_many_escapes_are_served(worker: Worker) -> None:
    async with worker.open_caller() as caller:
        said = await worker.tell(caller, json.dumps({str(n): n for n in range(200_000)}).encode())
        assert len(said.items[0]) == 200_000
        said = await worker.tell(caller, b'"' + b"\\u0041" * (5 * MIB) + b'"')
        assert said.items == ["A" * (5 * MIB)]


@pytest.mark.parametrize(("body", "item"), [(b"[]", []), (b'"x"', "x"), (b"null", None), (b'{"a":1,"a":2}', {"a": 2})])
async def test_c11_c17_any_json_reaches_the_engine(body: bytes, item: Any, worker: Worker) -> None:
    async with worker.open_caller() as caller:
        said = await worker.tell(caller, body)
        assert said.items == [item]


async def test_c18_two_hundred_requests_with_one_id_are_all_answered(worker: Worker) -> None:
    async with worker.open_caller() as caller:
        connection = await caller.connect(worker)
        victim = await caller.call(connection, {"do": "wait", "seconds": 1}, request_id="same")
        await victim.read_items(1)
        responses = [await caller.call(connection, n, request_id="same") for n in range(200)]
        await responses[7].aclose()
        for n, response in enumerate(responses):
            if n != 7:
                assert (await response.read_to_sentinel()).items == [n]
        assert (await victim.read_to_sentinel()).items == ["begun", "done"]


async def test_c19_two_requests_with_one_subject_are_both_dialled(worker: Worker) -> None:
    async with worker.open_caller() as caller:
        connection = await caller.connect(worker)
        for n in range(2):
            await connection.send(caller.payload(n, caller.control(info={"subject": "same"})))
        assert await connection.read_acks(2) == ["", ""]
        said = [await (await caller.accept()).read_to_sentinel() for _ in range(2)]
        assert {each.subject for each in said} == {"same"}
        assert sorted(each.items[0] for each in said) == [0, 1]


# -- dial-backs ------------------------------------------------------------------------------------------------------


async def test_d01_two_hundred_refused_dial_backs_are_counted_and_not_tried_again(worker: Worker) -> None:
    watch, before = Watch(worker), await worker.sample("ingress_outcome_total", outcome="failed")
    async with worker.open_caller() as caller:
        async with await NETWORK.open_listener("127.0.0.1", 0) as gone:
            address = f"127.0.0.1:{gone.address[1]}"
        connection = await caller.connect(worker)
        texts = []
        for n in range(200):
            texts.append(await connection.ask(caller.payload(n, caller.control(info={"address": address}))))
        # After 64 failures within a second it is not even dialled.
        assert set(texts) <= {"", REFUSED}
    await watch.assert_back()
    refused = texts.count(REFUSED)
    assert await worker.sample("ingress_outcome_total", outcome="failed") - before == 200 - refused


@pytest.mark.parametrize("when", ["at accept", "after the handshake", "after a chunk"])
@pytest.mark.parametrize("how", ["fin", "reset"])
async def test_d06_a_caller_that_leaves_at_any_step_is_counted_once(when: str, how: str, worker: Worker) -> None:
    watch, before = Watch(worker), await _ends(worker)
    async with worker.open_caller() as caller:
        connection = await caller.connect(worker)
        assert await connection.ask(caller.payload({"do": "count", "n": 10**6, "pause": 0.001})) == ""
        response = await caller.accept()
        if when == "after the handshake":
            await response.read_until(lambda said: said.subject)
        elif when == "after a chunk":
            await response.read_items(1)
        await leave(response, how)
        await connection.stream.aclose()
    await watch.assert_back()
    assert await _ends(worker) - before == 1
    assert "Traceback" not in worker.log()


async def _ends(worker: Worker) -> float:
    """Requests that did not end well, however they are counted."""
    return sum([await worker.sample("ingress_outcome_total", outcome=outcome) for outcome in ("failed", "cancelled")])


async def leave(response: RawResponse, how: str) -> None:
    assert isinstance(response.stream, TcpStream)
    if how == "reset":
        response.stream._raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    await response.aclose()


async def test_d07_a_caller_that_never_reads_costs_little(worker: Worker) -> None:
    watch = Watch(worker)
    async with worker.open_caller() as caller:
        connection = await caller.connect(worker)
        await caller.call(connection, {"do": "count", "n": 10**6, "text": "x" * 1000})
        await trio.sleep(0.5)
        assert worker.memory() - watch.memory < 16 * MIB
        await worker.assert_alive()
    await watch.assert_back()


async def test_d11_callers_that_never_close_hold_no_request(worker: Worker) -> None:
    async with worker.open_caller() as caller:
        connection = await caller.connect(worker)
        for n in range(100):
            assert (await (await caller.call(connection, n)).read_to_sentinel()).is_whole
        await trio.sleep(0.05)
        assert await worker.in_flight() == 0


# -- words in mid-stream ---------------------------------------------------------------------------------------------

STOP = encode_two_part(ControlWord.STOP.encode())


@pytest.mark.parametrize(
    "data",
    [encode_two_part(b'"sentinel"'), encode_two_part(b'"shout"'), encode_two_part(b"{}"), encode_two_part(b'"STOP"'),
     encode_two_part(b"no"), encode_two_part(body=b"x"), encode_two_part(b'"stop"', b"x"), bytes(24), b"\xa5" * 100,
     (2**62).to_bytes(8) + bytes(100_000), STOP + STOP + encode_two_part(b'"kill"'), STOP * 50_000],
    ids=range(12),
)  # fmt: skip
async def test_s03_s04_s05_s07_whatever_a_caller_says_ends_its_own_stream_only(data: bytes, worker: Worker) -> None:
    watch, before = Watch(worker), await worker.sample("dynamo_component_cancellation_total")
    async with worker.open_caller() as caller:
        connection = await caller.connect(worker)
        other = await caller.call(connection, {"do": "wait", "seconds": 0.3})
        response = await caller.call(connection, {"do": "wait"})
        await response.read_items(1)
        with contextlib.suppress(trio.BrokenResourceError):
            await response.stream.send_all(data)
        with trio.fail_after(PATIENCE):
            assert not (await response.read_to_end()).has_final
        assert (await other.read_to_sentinel()).items == ["begun", "done"]
    assert await worker.sample("dynamo_component_cancellation_total") == before + 1
    await watch.assert_back(growth=32 * MIB)
    assert "Traceback" not in worker.log()


async def test_s06_half_a_word_is_ignored(worker: Worker) -> None:
    async with worker.open_caller() as caller:
        connection = await caller.connect(worker)
        response = await caller.call(connection, {"do": "wait", "seconds": 0.2})
        await response.stream.send_all(STOP[:20])
        assert (await response.read_to_sentinel()).items == ["begun", "done"]


# -- engines ---------------------------------------------------------------------------------------------------------


async def test_e01_fifty_failing_engines_are_told_in_their_own_words_and_without_a_traceback(worker: Worker) -> None:
    before = await worker.errors()
    async with worker.open_caller() as caller:
        for n in range(50):
            said = await worker.tell(caller, {"do": "raise", "text": f"number {n}"})
            assert said.is_whole and f"number {n}" in said.errors[0].message
    assert (await worker.errors())["generate"] == before.get("generate", 0) + 50
    assert "Traceback" not in worker.log()


async def test_e05_an_engine_that_blocks_the_loop_is_named_and_nothing_is_lost(worker: Worker) -> None:
    async with worker.open_caller() as caller:
        connection = await caller.connect(worker)
        other = await caller.call(connection, {"do": "count", "n": 50, "pause": 0.01})
        await other.read_items(1)
        said = await worker.tell(caller, {"do": "block", "seconds": 1.5})
        assert said.items == ["blocked"]
        assert len((await other.read_to_sentinel()).items) == 50
    assert await worker.sample("ingress_loop_stalls_total") == 1
    assert "event loop blocked" in worker.log() and "engine.py" in worker.log()


async def test_e10_very_many_and_very_large_chunks_are_served_and_one_over_the_limit_is_told(worker: Worker) -> None:
    async with worker.open_caller() as caller:
        assert len((await worker.tell(caller, {"do": "count", "n": 100_000})).items) == 100_000
        assert len((await worker.tell(caller, {"do": "large", "size": 16 * MIB})).items[0]) == 16 * MIB
        said = await worker.tell(caller, {"do": "large", "size": 40 * MIB})
        assert said.is_whole and len(said.errors) == 1


def test_o01_every_line_of_the_log_is_short_and_an_object(worker: Worker) -> None:
    lines = worker.log().splitlines()
    assert len(lines) > 100
    for line in lines:
        assert len(line) <= 1024 and "\x1b" not in line
        assert isinstance(json.loads(line), dict)
