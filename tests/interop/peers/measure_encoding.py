"""Measure how a real worker writes the values of `encoding_cases` on the wire.

    python -m tests.interop.peers.measure_encoding VERSION > table.md

Starts that worker with the `cases` engine, asks for each case in JSON and in
msgpack, and prints a markdown table: the exact bytes of each item's value, or
the error event, or what else was seen. A worker that dies is started anew.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from .encoding_cases import CASES
from .peers import environment, worker_command
from .raw_client import Request, call, find_target

JSON_FRAME = (b'{"data":{"data":', b'},"complete_final":false}')
MSGPACK_FRAME = (bytes.fromhex("82a464617461 81a464617461"), b"\xaecomplete_final\xc2")
ERROR_MESSAGE = re.compile(
    rb'message(?:":"|[\xa0-\xbf]|\xd9.|\xda..)(.+?)(?:","diagnostic|"\}|\xaadiagnostic|\xaecomplete)', re.DOTALL
)
SHOWN_BYTES = 96
SILENCE = 3.0


class Worker:
    """A real worker process serving the cases; started again when it has died."""

    def __init__(self, version: str, directory: str) -> None:
        self._version = version
        self._directory = directory
        self._process: subprocess.Popen[str] | None = None

    def target(self) -> str:
        """Return where to call it, starting it first when it is not running."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        return find_target(self._directory, "demo.cases.generate")

    def exit_code(self) -> int | None:
        """Return how it ended, None while it runs; gives a dying one half a second."""
        assert self._process is not None
        try:
            return self._process.wait(0.5)
        except subprocess.TimeoutExpired:
            return None

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _start(self) -> None:
        for record in Path(self._directory, "v1", "instances").glob("*"):
            record.unlink()
        self._process = subprocess.Popen(
            worker_command(self._version, "demo", "cases", engine="cases"),
            env=environment(self._version, self._directory),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        ready = json.loads(self._process.stdout.readline())
        assert ready["event"] == "ready", ready


def measure(worker: Worker, case: str, codec: str) -> str:
    """Return the table cell for one case: item, or error, or what came instead."""
    request = Request(body={"case": case}, codec=codec, silence=SILENCE)
    try:
        frames = list(call(worker.target(), request))
    except (OSError, EOFError) as error:
        return f"**{error}**"
    items = [frame.payload for frame in frames if frame.kind == "data"]
    shown = " then ".join(_describe(item, codec) for item in items if not _is_final(item))
    ended = any(map(_is_final, items))
    if shown and ended:
        return shown
    code = worker.exit_code()
    trouble = frames[-1].kind if code is None else f"worker died with {code}"
    return f"{shown} **{trouble}{'' if ended else ', no final'}**".strip()


def _is_final(item: bytes) -> bool:
    return item.endswith((b'"complete_final":true}', b"\xaecomplete_final\xc3"))


def _describe(item: bytes, codec: str) -> str:
    head, tail = JSON_FRAME if codec == "json" else MSGPACK_FRAME
    if item.startswith(head) and item.endswith(tail):
        return _quote(item[len(head) : len(item) - len(tail)], codec)
    found = ERROR_MESSAGE.search(item)
    return f"error event: {found[1].decode()}" if found else f"other: {_quote(item, codec)}"


def _quote(value: bytes, codec: str) -> str:
    # What is not plain text is shown as bytes, so that every one can be read off.
    text = value.decode("utf-8", "backslashreplace") if codec == "json" else value.hex(" ")
    if not (text.isascii() and text.isprintable()):
        text = repr(value)
    if len(value) > SHOWN_BYTES:
        edge = SHOWN_BYTES // 4
        text = f"{text[:edge]} … {text[-edge:]} ({len(value)} bytes)"
    return "`" + text.replace("|", "\\|") + "`"


def show_error_event(worker: Worker, codec: str) -> None:
    """Print the whole item which the table abbreviates as *error event*."""
    request = Request(body={"case": "object()"}, codec=codec, silence=SILENCE)
    for frame in call(worker.target(), request):
        if frame.kind == "data" and not _is_final(frame.payload):
            shown = frame.payload.decode() if codec == "json" else repr(frame.payload)
            print(f"*error event* in {codec}, {len(frame.payload)} bytes:\n\n    {shown}\n")


def main(version: str) -> None:
    """Print the table."""
    print(f"Items of a real {version} worker, the value inside the envelope only.\n")
    print("| yielded | JSON | msgpack (hex) |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        worker = Worker(version, directory)
        try:
            for case in CASES:
                cells = [measure(worker, case, codec) for codec in ("json", "msgpack")]
                print(f"| `{case}` | {cells[0]} | {cells[1]} |", flush=True)
            print()
            for codec in ("json", "msgpack"):
                show_error_event(worker, codec)
        finally:
            worker.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
