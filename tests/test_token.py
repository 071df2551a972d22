"""Request tokens: who holds a key gets in, once; the caller is not told which part of its token failed."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import ingress
from ingress import TokenKeys, _token
from ingress._token import MAX_SEEN, TOKEN_HEADER, WINDOW, TokenGuard
from ingress.abc import Push
from ingress.discovery import MemoryDiscovery
from ingress.errors import NotAccepted, StartupError, TokenRefused
from ingress.testing import MemoryNetwork
from ingress.wire.messages import ConnectionInfo, RequestControlMessage
from ingress.wire.request_frame import AckDecoder, encode_request_frame
from ingress.wire.two_part import encode_two_part

OLD, NEW = "a1" * 32, "b2" * 32
KEYS = TokenKeys.parse(f"old:{OLD}")
PATH = "1/demo/backend/generate"
NOW = 1_800_000_000.0


async def echo_headers(request: Any, context: ingress.Context) -> AsyncIterator[Any]:
    yield sorted(context.headers)


def control(request_id: str = "r-1", address: str = "127.0.0.1:4000") -> RequestControlMessage:
    info = ConnectionInfo(address, "s-1", request_id, "response")
    return RequestControlMessage(request_id, "single_in", "many_out", info.to_address(), "json")


def push(
    token: str | None = None, *, path: str = PATH, body: bytes = b"{}", of: RequestControlMessage | None = None
) -> Push:
    payload = encode_two_part((of or control()).encode(), body)
    if token is None:
        token = KEYS.sign(path, "r-1", "127.0.0.1:4000", payload, now=NOW)
    return Push(path, payload, {TOKEN_HEADER: token})


# -- what passes -----------------------------------------------------------------------------------------------------


def test_the_form_is_that_of_the_documents() -> None:
    token = TokenKeys.parse(f"k1:{'00' * 32}").sign("p", "r", "127.0.0.1:1", b"payload", now=1700000000.9)
    text = f"p|r|127.0.0.1:1|1700000000|{hashlib.sha256(b'payload').hexdigest()}"
    assert token == f"v1.k1.1700000000.{hmac.digest(bytes(32), text.encode(), 'sha256').hex()}"


def test_both_keys_of_a_rotation_are_valid() -> None:
    guard = TokenGuard(TokenKeys.parse(f"new:{NEW}\nold:{OLD}"), clock=lambda: NOW)
    guard.check(push(), control())
    payload = push().payload
    token = TokenKeys.parse(f"new:{NEW}").sign(PATH, "r-1", "127.0.0.1:4000", payload, now=NOW)
    guard.check(Push(PATH, payload, {TOKEN_HEADER: token}), control())


@pytest.mark.parametrize("seconds", [-WINDOW, 0, WINDOW])
def test_clocks_may_differ_by_the_window(seconds: int) -> None:
    TokenGuard(KEYS, clock=lambda: NOW + seconds).check(push(), control())


# -- what does not ---------------------------------------------------------------------------------------------------

GOOD = push().headers[TOKEN_HEADER]


@pytest.mark.parametrize(
    ("bad", "clock"),
    [
        (Push(PATH, push().payload, {}), NOW),
        (push(""), NOW),
        (push("v1.old"), NOW),
        (push(GOOD.replace("v1.", "v2.")), NOW),
        (push(GOOD.replace("old", "unknown")), NOW),
        (push(GOOD.upper()), NOW),
        (push(GOOD + "0"), NOW),
        (push(GOOD[:-1] + ("0" if GOOD[-1] != "0" else "1")), NOW),
        (push(GOOD.replace(str(int(NOW)), str(int(NOW) + 1))), NOW),
        (push(GOOD.replace(str(int(NOW)), "٣" * 10)), NOW),
        (push(GOOD, path="1/demo/backend/other"), NOW),
        (push(GOOD, body=b"[]"), NOW),
        (push(), NOW + WINDOW + 1),
        (push(), NOW - WINDOW - 1),
    ],
    ids=[
        "no header", "empty", "short", "version", "key id", "upper case", "long", "digest", "time", "digits",
        "path", "body", "old", "future",
    ],
)  # fmt: skip
def test_a_bad_token_is_refused(bad: Push, clock: float) -> None:
    with pytest.raises(TokenRefused):
        TokenGuard(KEYS, clock=lambda: clock).check(bad, control())


@pytest.mark.parametrize("other", [control("r-2"), control(address="10.0.0.1:4000")], ids=["id", "address"])
def test_a_token_is_of_one_request_id_and_one_dial_back_address(other: RequestControlMessage) -> None:
    """Nobody can make this worker dial elsewhere with a token that was overheard."""
    with pytest.raises(TokenRefused):
        TokenGuard(KEYS, clock=lambda: NOW).check(push(GOOD, of=other), other)


def test_a_token_is_used_once() -> None:
    guard = TokenGuard(KEYS, clock=lambda: NOW)
    guard.check(push(), control())
    with pytest.raises(TokenRefused, match="used before"):
        guard.check(push(), control())


def test_the_memory_of_used_tokens_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_SEEN == 100_000
    monkeypatch.setattr(_token, "MAX_SEEN", 3)
    guard = TokenGuard(KEYS, clock=lambda: NOW)
    for i in range(10):
        payload = encode_two_part(control().encode(), str(i).encode())
        token = KEYS.sign(PATH, "r-1", "127.0.0.1:4000", payload, now=NOW)
        guard.check(Push(PATH, payload, {TOKEN_HEADER: token}), control())
        assert len(guard._seen) <= 3
    with pytest.raises(TokenRefused):
        guard.check(push("v1.old.1.00"), control())
    assert len(guard._seen) == 3, "what is refused is not remembered"


# -- keys ------------------------------------------------------------------------------------------------------------


def test_keys_are_read_from_a_file_that_others_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# rotated in May\nnew:{NEW}\nold:{OLD}\n")
    path.chmod(0o600)
    keys = TokenKeys.read(path)
    assert list(keys.keys) == ["new", "old"]
    assert NEW not in repr(keys) and str(bytes.fromhex(NEW)) not in repr(keys)
    path.chmod(0o644)
    with pytest.raises(StartupError, match="is open to others"):
        TokenKeys.read(path)
    with pytest.raises(StartupError, match="No such file"):
        TokenKeys.read(tmp_path / "none")


@pytest.mark.parametrize(
    "text", ["", "k", f"k:{'0' * 30}", f"k:{'g' * 64}", f"k:{OLD} k:{NEW}", f"k k:{OLD}", f":{OLD}"]
)
def test_bad_keys_are_refused_and_not_shown(text: str) -> None:
    with pytest.raises(StartupError) as caught:
        TokenKeys.parse(text)
    assert not text or text.rpartition(":")[2] not in str(caught.value) or len(text) < 3


# -- keys that rotate -----------------------------------------------------------------------------------------------


class KeyFile:
    """A file of keys as an operator rotates it: a new one is moved over the old."""

    def __init__(self, directory: Path, text: str) -> None:
        self.path = directory / "keys"
        self.write(text)

    def write(self, text: str, mode: int = 0o600) -> None:
        fresh = self.path.with_name("keys.new")
        fresh.write_text(text)
        fresh.chmod(mode)
        fresh.replace(self.path)


def signed_by(text: str, number: int) -> Push:
    """A push of its own for each number, for a token passes once."""
    payload = encode_two_part(control().encode(), str(number).encode())
    token = TokenKeys.parse(text).sign(PATH, "r-1", "127.0.0.1:4000", payload, now=NOW)
    return Push(PATH, payload, {TOKEN_HEADER: token})


async def test_keys_rotate_with_their_file_and_both_of_a_rotation_are_valid(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    old, new = f"old:{OLD}", f"new:{NEW}"
    file = KeyFile(tmp_path, old)
    guard = TokenGuard(TokenKeys.read(file.path), clock=lambda: NOW)
    guard.check(signed_by(old, 1), control())
    file.write(f"{new}\n{old}\n")
    with pytest.raises(TokenRefused):
        guard.check(signed_by(new, 2), control())  # the file is looked at once a second
    await trio.sleep(1.1)
    guard.check(signed_by(new, 3), control())
    guard.check(signed_by(old, 4), control())
    file.write(new)
    await trio.sleep(1.1)
    guard.check(signed_by(new, 5), control())
    with pytest.raises(TokenRefused, match="not known"):
        guard.check(signed_by(old, 6), control())
    with pytest.raises(TokenRefused, match="used before"):
        guard.check(signed_by(new, 3), control())  # what was seen stays seen


@pytest.mark.parametrize(("text", "mode"), [("junk", 0o600), (f"new:{NEW}", 0o644)], ids=["no keys", "open to others"])
async def test_new_keys_that_cannot_be_used_change_nothing_and_are_told_and_not_shown(
    text: str, mode: int, tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    file = KeyFile(tmp_path, f"old:{OLD}")
    guard = TokenGuard(TokenKeys.read(file.path), clock=lambda: NOW)
    file.write(text, mode)
    await trio.sleep(1.1)
    guard.check(signed_by(f"old:{OLD}", 1), control())
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("token keys cannot be read again, the old ones go on: ")
    assert NEW not in line and "junk" not in line
    file.write(f"new:{NEW}")
    await trio.sleep(1.1)
    guard.check(signed_by(f"new:{NEW}", 2), control())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
async def test_a_fifo_in_the_place_of_the_keys_is_refused_and_not_waited_for(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    file = KeyFile(tmp_path, f"old:{OLD}")
    guard = TokenGuard(TokenKeys.read(file.path), clock=lambda: NOW)
    file.path.unlink()
    os.mkfifo(file.path, 0o600)
    await trio.sleep(1.1)
    guard.check(signed_by(f"old:{OLD}", 1), control())
    assert not guard.keyring.reload()
    assert f"the old ones go on: token keys cannot be used: {file.path} is no regular file" in caplog.text
    with pytest.raises(StartupError, match="is no regular file"):
        TokenKeys.read(file.path)


async def test_a_caller_signs_with_what_its_file_holds_now(tmp_path: Path, autojump_clock: MockClock) -> None:
    """To rotate, workers are given both keys, then callers the new one: neither has to be started again."""
    file = KeyFile(tmp_path, f"old:{OLD}")
    options: dict[str, Any] = {"token_keys": TokenKeys.parse(f"new:{NEW}")}
    async with ingress.testing.memory_worker(
        echo_headers, client_options={"token_keys": TokenKeys.read(file.path), "set_aside": 0.0}, **options
    ) as client:
        with pytest.raises(NotAccepted):
            async with client.stream("demo.backend.generate", {}):
                pass
        file.write(f"new:{NEW}")
        await trio.sleep(1.1)
        async with client.stream("demo.backend.generate", {}) as responses:
            assert "request-id" in await anext(responses)


# -- a worker that wants them ----------------------------------------------------------------------------------------


async def test_a_signing_client_gets_its_answer_and_the_engine_sees_no_token() -> None:
    options: dict[str, Any] = {"token_keys": TokenKeys.parse(f"new:{NEW},old:{OLD}")}
    async with ingress.testing.memory_worker(
        echo_headers, client_options={"token_keys": TokenKeys.parse(f"old:{OLD}")}, **options
    ) as client:
        for _ in range(3):
            async with client.stream("demo.backend.generate", {}) as responses:
                headers = await anext(responses)
                assert "request-id" in headers and TOKEN_HEADER not in headers


@pytest.mark.parametrize("keys", [None, TokenKeys.parse(f"old:{NEW}")], ids=["none", "another key"])
async def test_others_are_refused_before_anything_is_dialled(
    keys: TokenKeys | None, caplog: pytest.LogCaptureFixture
) -> None:
    network, discovery = MemoryNetwork(), MemoryDiscovery()
    async with (
        ingress.serving(
            echo_headers, network=network, discovery=discovery, token_keys=KEYS, linger=0.0, drain_budget=0.0
        ) as worker,
        ingress.open_client(network=network, discovery=discovery, token_keys=keys) as client,
    ):
        with pytest.raises(NotAccepted, match=r"refused the request: Server unavailable: request token refused$"):
            async with client.stream("demo.backend.generate", {}):
                pass
        assert len(network.connects) == 1, "the request connection and no dial-back"
        counted = [
            (sample.labels["outcome"], sample.labels["reason"])
            for family in worker.metrics.registry.collect()
            for sample in family.samples
            if sample.name == "ingress_outcome_total" and sample.value
        ]
        assert counted == [("refused", "token")]
    lines = [record.getMessage() for record in caplog.records if "token" in record.getMessage()]
    assert len(lines) == 1 and OLD not in caplog.text and "v1." not in caplog.text


async def test_a_legacy_caller_without_a_token_is_not_dialled_to_be_told() -> None:
    """Callers up to 1.2.1 learn of refusals by a dial-back, which an address without a token must not cause."""
    network, discovery = MemoryNetwork(), MemoryDiscovery()
    async with ingress.serving(
        echo_headers, network=network, discovery=discovery, token_keys=KEYS, linger=0.0, drain_budget=0.0
    ) as worker:
        host, _, port = worker.address.rpartition(":")
        [record] = worker.records()
        path = record.tcp_target[1]
        legacy = b'{"id":"r-1","request_type":"single_in","response_type":"many_out","connection_info":'
        legacy += b'{"transport":"tcp_server","info":"{\\"address\\":\\"127.0.0.1:4000\\",\\"subject\\":\\"s\\",'
        legacy += b'\\"context\\":\\"r-1\\",\\"stream_type\\":\\"response\\"}"}}'
        stream = await network.connect(host, int(port))
        with trio.fail_after(10):
            await stream.send_all(encode_request_frame(path, {}, encode_two_part(legacy, b"{}")))
            decoder = AckDecoder()
            decoder.receive_data(await stream.receive_some())
        assert list(decoder) == ["Server unavailable: request token refused"]
        assert network.connects == [(host, int(port))]
