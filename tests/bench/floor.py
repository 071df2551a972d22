"""The floor: pre-encoded frames, each in a non-blocking send from trio, and nothing else.

No metrics, no logs, no cancellation, no limits, no back-pressure. It speaks just enough of the wire to be called by the
same load client as the workers.
"""

from __future__ import annotations

import os
import random
import socket
import time
from pathlib import Path

import msgspec
import trio

from ingress.discovery import FileDiscovery
from ingress.wire.codec import codec_named
from ingress.wire.messages import ConnectionInfo, RequestControlMessage
from ingress.wire.records import EndpointId, InstanceRecord
from ingress.wire.request_frame import RequestFrameDecoder, encode_ack
from ingress.wire.response import ResponseSender
from ingress.wire.two_part import PREFIX, decode_two_part

from .engine import BENCHMARK_TEXT

CODEC = codec_named("json")

PACED = b'{"data":{"data":{"token_ids":[1000],"text":"%s","due":%%r}},"complete_final":false}' % BENCHMARK_TEXT.encode()


async def send(raw: socket.socket, data: bytes) -> None:
    """Send without blocking; wait only where the socket is full."""
    while data:
        try:
            data = data[raw.send(data) :]
        except BlockingIOError:
            await trio.lowlevel.wait_writable(raw)


async def answer(payload: bytes) -> None:
    message = decode_two_part(payload)
    request = msgspec.json.decode(message.body)
    info = ConnectionInfo.from_address(RequestControlMessage.decode(message.header).connection_info)
    host, _, port = info.address.rpartition(":")
    sender = ResponseSender(CODEC)
    with socket.create_connection((host, int(port))) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw.setblocking(False)
        await send(raw, sender.handshake(info.subject) + sender.prologue())
        due = time.monotonic()
        frame = sender.item({"token_ids": [1000], "text": BENCHMARK_TEXT})
        for _ in range(request["n"]):
            if request["mode"] == "awaiting":
                await trio.lowlevel.checkpoint()
            elif request["mode"] == "paced":
                due += request["interval"]
                await trio.sleep(max(0.0, due - time.monotonic()))
                body = PACED % due
                frame = PREFIX.pack(0, len(body), 0) + body
            await send(raw, frame)
        await send(raw, sender.final())
        await trio.lowlevel.wait_readable(raw)  # the caller closes first


async def serve(stream: trio.SocketStream) -> None:
    decoder = RequestFrameDecoder()
    async with stream, trio.open_nursery() as nursery:
        while data := await stream.receive_some(65536):
            decoder.receive_data(data)
            for frame in decoder:
                await stream.send_all(encode_ack())
                nursery.start_soon(answer, frame.payload)


async def main() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    number = random.getrandbits(63)
    record = InstanceRecord(
        EndpointId("demo", "backend", "generate"),
        number,
        {"tcp": f"127.0.0.1:{listener.socket.getsockname()[1]}/{number:x}/demo/backend/generate"},
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(FileDiscovery(Path(os.environ["DYN_FILE_KV"])).serve_records, [record])
        await trio.serve_listeners(serve, [listener])


if __name__ == "__main__":
    trio.run(main)
