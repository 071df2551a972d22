"""A caller made of blocking sockets, which shows every frame of one request.

    python raw_client.py FILE_KV NAMESPACE.COMPONENT.ENDPOINT [--body JSON] [options]
    python raw_client.py HOST:PORT/PATH [--body JSON] [options]

Prints one line a frame: seconds since the request, direction, kind, hex, text.

    0.0012 < ack       00000000
    0.0019 < handshake 7b22…  {"subject":…}
    0.0031 < data      7b22…  {"data":{"data":1},"complete_final":false}

It listens, writes the request frame itself, takes the dial-back, and reads until
the worker closes, `"sentinel"` comes, or nothing comes for `--silence` seconds.
The functions serve other scripts too: `call` returns the frames.
"""

import argparse
import json
import socket
import struct
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

if __package__:
    from .packing import pack
else:
    from packing import pack  # type: ignore[import-not-found,no-redef,unused-ignore]  # run as a script

PREFIX = struct.Struct(">QQQ")
SENTINEL = b'"sentinel"'


@dataclass(frozen=True)
class Frame:
    """One thing seen on a socket."""

    kind: str
    """sent, ack, handshake, control, data, both, empty, input, closed or silence."""

    payload: bytes
    seconds: float
    """Since the request was written."""

    def __str__(self) -> str:
        direction = ">" if self.kind in ("sent", "input") else "<"
        text = self.payload.decode("utf-8", "backslashreplace") if self.payload.isascii() else repr(self.payload)
        return f"{self.seconds:.4f} {direction} {self.kind:<9} {self.payload.hex()}  {text}"


@dataclass
class Request:
    """What to ask, and how far to take part."""

    body: Any = None
    codec: str = "json"
    body_bytes: bytes | None = None
    """Instead of `body`, taken as it is."""
    control: dict[str, Any] = field(default_factory=dict)
    """Fields to set in the control header; None removes one."""
    inputs: list[Any] | None = None
    """Makes it a bidirectional request which sends these, then the sentinel."""
    stop_after: int | None = None
    """Send `"stop"` after this many data frames; 0 right after the handshake."""
    kill_after: int | None = None
    silence: float = 5.0
    """Seconds without a byte after which to give up."""
    id: str = field(default_factory=lambda: str(uuid.uuid4()))


def find_target(file_kv: str, endpoint: str) -> str:
    """Return `HOST:PORT/PATH` from the first record of `namespace.component.endpoint`."""
    key = quote("/".join([*endpoint.split("."), ""]), safe="")
    for record in sorted((Path(file_kv) / "v1" / "instances").glob(f"{key}*")):
        return str(json.loads(record.read_text(encoding="utf-8"))["transport"]["tcp"])
    raise LookupError(f"no record of {endpoint} in {file_kv}")


def two_part(header: bytes, body: bytes) -> bytes:
    """Return header and body behind their 24-byte prefix, checksum 0."""
    return PREFIX.pack(len(header), len(body), 0) + header + body


def call(target: str, request: Request) -> Iterator[Frame]:
    """Make one request and yield frames as they are sent and come in."""
    address, _, path = target.partition("/")
    host, _, port = address.rpartition(":")
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection((host.strip("[]"), int(port)), timeout=request.silence) as connection,
    ):
        listener.settimeout(request.silence)
        written = request_frame(path, request, listener.getsockname()[1])
        started = time.perf_counter()
        connection.sendall(written)
        yield Frame("sent", written, 0.0)
        yield from _read_ack(connection, started)
        yield from _serve_dials(listener, request, started)


def request_frame(path: str, request: Request, port: int) -> bytes:
    """Return the whole request frame; the worker is told to dial `port` on loopback.

    | path: u16 + bytes | headers: u16 + JSON | payload: u32 + two-part frame |
    """
    control: dict[str, Any] = {
        "id": request.id,
        "request_type": "single_in" if request.inputs is None else "many_in",
        "response_type": "many_out",
        "payload_codec": request.codec,
        "connection_info": _connection_info(request, port, "response"),
    }
    body = _encode(request.body, request.codec) if request.body_bytes is None else request.body_bytes
    if request.inputs is not None:
        control["request_stream_connection_info"] = _connection_info(request, port, "request")
        body = b""
    control |= request.control
    header = _to_json({name: value for name, value in control.items() if value is not None})
    headers = _to_json({"x-endpoint-path": path, "request-id": request.id})
    payload = two_part(header, body)
    return b"".join(
        (
            *(struct.pack(">H", len(path.encode())), path.encode()),
            *(struct.pack(">H", len(headers)), headers),
            *(struct.pack(">I", len(payload)), payload),
        )
    )


def _connection_info(request: Request, port: int, stream_type: str) -> dict[str, str]:
    info = {
        "address": f"127.0.0.1:{port}",
        "subject": f"{stream_type}-{request.id}",
        "context": request.id,
        "stream_type": stream_type,
    }
    return {"transport": "tcp_server", "info": _to_json(info).decode()}


def _encode(value: Any, codec: str) -> bytes:
    return pack(value) if codec == "msgpack" else _to_json(value)


def _to_json(value: Any) -> bytes:
    # Compact, as real clients write it.
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _read_ack(connection: socket.socket, started: float) -> Iterator[Frame]:
    try:
        size = _read_exactly(connection, 4)
        text = _read_exactly(connection, int.from_bytes(size))
    except TimeoutError:
        yield Frame("silence", b"", time.perf_counter() - started)
    except (EOFError, OSError) as error:
        yield Frame("closed", str(error).encode(), time.perf_counter() - started)
    else:
        yield Frame("ack", size + text, time.perf_counter() - started)


def _serve_dials(listener: socket.socket, request: Request, started: float) -> Iterator[Frame]:
    """Take the dial-back; for a bidirectional request, first the one that reads inputs."""
    dials = 1 if request.inputs is None else 2
    open_sockets: list[socket.socket] = []
    try:
        for _ in range(dials):
            try:
                dialled, _ = listener.accept()
            except TimeoutError:
                yield Frame("silence", b"", time.perf_counter() - started)
                return
            open_sockets.append(dialled)
            dialled.settimeout(request.silence)
            _, header, _ = _read_two_part(dialled)
            yield Frame("handshake", header, time.perf_counter() - started)
            if b'"stream_type":"request"' in header:
                yield from _send_inputs(dialled, request, started)
            else:
                yield from _read_response(dialled, request, started)
    finally:
        for dialled in open_sockets:
            dialled.close()


def _send_inputs(dialled: socket.socket, request: Request, started: float) -> Iterator[Frame]:
    for value in request.inputs or []:
        body = _encode(value, request.codec)
        dialled.sendall(two_part(b"", body))
        yield Frame("input", body, time.perf_counter() - started)
    dialled.sendall(two_part(SENTINEL, b""))
    yield Frame("input", SENTINEL, time.perf_counter() - started)


def _read_response(dialled: socket.socket, request: Request, started: float) -> Iterator[Frame]:
    data_frames = 0
    while True:
        for word, moment in ((b'"stop"', request.stop_after), (b'"kill"', request.kill_after)):
            if moment == data_frames:
                dialled.sendall(two_part(word, b""))
                yield Frame("sent", word, time.perf_counter() - started)
        try:
            kind, header, body = _read_two_part(dialled)
        except TimeoutError:
            yield Frame("silence", b"", time.perf_counter() - started)
            return
        except (EOFError, OSError) as error:
            yield Frame("closed", str(error).encode(), time.perf_counter() - started)
            return
        yield Frame(kind, header + body, time.perf_counter() - started)
        data_frames += kind == "data"
        if header == SENTINEL:
            return


def _read_two_part(source: socket.socket) -> tuple[str, bytes, bytes]:
    header_size, body_size, _ = PREFIX.unpack(_read_exactly(source, PREFIX.size))
    header, body = _read_exactly(source, header_size), _read_exactly(source, body_size)
    kind = {(True, False): "control", (False, True): "data", (True, True): "both"}
    return kind.get((bool(header), bool(body)), "empty"), header, body


def _read_exactly(source: socket.socket, size: int) -> bytes:
    parts: list[bytes] = []
    while size:
        part = source.recv(min(size, 1 << 20))
        if not part:
            raise EOFError("end of stream")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def main() -> None:
    """Parse the command line, make the call, print the frames."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="+", help="FILE_KV NAMESPACE.COMPONENT.ENDPOINT, or HOST:PORT/PATH")
    parser.add_argument("--body", type=json.loads, help="JSON, encoded as --codec says")
    parser.add_argument("--body-hex", type=bytes.fromhex, dest="body_bytes", help="exact body bytes")
    parser.add_argument("--codec", choices=["json", "msgpack"], default="json")
    parser.add_argument("--control", type=json.loads, default={}, help="control fields to set; null removes one")
    parser.add_argument("--inputs", type=json.loads, help="JSON array: a bidirectional request")
    parser.add_argument("--stop-after", type=int, help='data frames before "stop"')
    parser.add_argument("--kill-after", type=int, help='data frames before "kill"')
    parser.add_argument("--silence", type=float, default=5.0, help="seconds without a byte before giving up")
    options = vars(parser.parse_args())
    target = options.pop("target")
    address = target[0] if len(target) == 1 else find_target(*target)
    for frame in call(address, Request(**options)):
        print(frame, flush=True)


if __name__ == "__main__":
    main()
