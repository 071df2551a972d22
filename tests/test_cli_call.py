"""``ingress call`` where one of several instances does not take the request."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ingress.wire.request_frame import encode_ack

from .test_cli_processes import run, serving

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")


@contextmanager
def listener_that(refuses_with: str | None) -> Iterator[int]:
    """A port whose listener answers each first frame with that, and closes; None where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        if refuses_with is None:
            listener.close()
            yield port
            return

        def answer() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(encode_ack(refuses_with))

        threading.Thread(target=answer, daemon=True).start()
        yield port
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("refusal", [None, "Server overloaded: full", "Server unavailable: no"])
def test_k01_a_call_that_one_instance_does_not_take_goes_to_the_next(refusal: str | None, tmp_path: Path) -> None:
    """Every call had failed until the record of a dead worker was too old, where its id came first."""
    store = tmp_path / "kv"
    call = ("call", "demo.backend.generate", "-d", "1", "--file-kv", str(store))
    with serving("echo", "--grace", "0", "--file-kv", str(store), cwd=tmp_path), listener_that(refusal) as port:
        (alive,) = (store / "v1" / "instances").iterdir()
        record = json.loads(alive.read_text())
        other = {**record, "instance_id": 1, "transport": {"tcp": f"127.0.0.1:{port}/{1:016x}/backend/generate"}}
        alive.with_name(alive.name.replace(f"{record['instance_id']:x}", "1")).write_text(json.dumps(other))
        for _ in range(2):
            called = run(*call, cwd=tmp_path)
            assert (called.returncode, called.stdout) == (0, "1\n"), called.stderr
        called = run(*call, "--direct", "1", cwd=tmp_path)
        assert called.returncode == 1 and not called.stdout, "only the instance that was named is asked"
