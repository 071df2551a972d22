"""TLS and tokens by flags and variables: ``ingress serve`` and ``ingress call`` with the same settings."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
import trio

import ingress

from .certificates import Authority
from .test_cli_processes import run, serving

TOKEN_KEYS = f"k:{'ab' * 32}"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.mark.parametrize(("mutual", "shown"), [(False, "tcp+tls"), (True, "tcp+mtls")], ids=["tls", "mtls"])
def test_a_worker_and_a_call_take_dynamos_variables(
    mutual: bool, shown: str, authority: Authority, tmp_path: Path
) -> None:
    variables = {"DYN_FILE_KV": str(tmp_path / "kv"), **authority.environment(authority.options(mutual=mutual))}
    with serving("echo", "--grace", "0", cwd=tmp_path, **variables) as worker:
        assert re.search(rf"request +{re.escape(shown)} 127\.0\.0\.1:\d+", "\n".join(worker.card))
        called = run("call", "generate", "-d", "[1,2]", cwd=tmp_path, **variables)
        assert (called.returncode, called.stdout) == (0, "[1,2]\n"), called.stderr
        plain = run("call", "generate", cwd=tmp_path, DYN_FILE_KV=str(tmp_path / "kv"))
        assert plain.returncode == 1


def test_a_hangup_reads_the_certificates_again_and_does_not_end_the_worker(
    authority: Authority, tmp_path: Path
) -> None:
    tls = authority.options()
    variables = {"DYN_FILE_KV": str(tmp_path / "kv"), **authority.environment(tls)}
    with serving("echo", "--grace", "0", cwd=tmp_path, **variables) as worker:
        authority.issue("server")
        worker.process.send_signal(signal.SIGHUP)
        while "certificates read again" not in (line := worker.next_line()):
            assert line, "it ended"

        async def call() -> None:
            discovery = ingress.FileDiscovery(tmp_path / "kv")
            async with ingress.open_client(discovery=discovery, tls=tls) as client:
                await client.wait_for_instances("demo.backend.generate")
                async with client.stream("demo.backend.generate", "x") as responses:
                    assert [item async for item in responses] == ["x"]

        trio.run(call)
        assert worker.process.poll() is None


def test_a_worker_that_wants_tokens_takes_calls_with_one_only(tmp_path: Path) -> None:
    kv = str(tmp_path / "kv")
    keys = tmp_path / "keys"
    keys.write_text(TOKEN_KEYS)
    keys.chmod(0o600)
    with serving("echo", "--grace", "0", "--token-keys-path", str(keys), cwd=tmp_path, DYN_FILE_KV=kv):
        good = run("call", "generate", "-d", "1", cwd=tmp_path, DYN_FILE_KV=kv, INGRESS_TOKEN_KEYS=TOKEN_KEYS)
        assert (good.returncode, good.stdout) == (0, "1\n"), good.stderr
        bad = run("call", "generate", cwd=tmp_path, DYN_FILE_KV=kv)
        assert bad.returncode == 1 and "request token refused" in bad.stderr


def test_a_hangup_reads_token_keys_again(tmp_path: Path) -> None:
    kv, other = str(tmp_path / "kv"), f"other:{'cd' * 32}"
    keys = tmp_path / "keys"
    keys.write_text(TOKEN_KEYS)
    keys.chmod(0o600)
    with serving("echo", "--grace", "0", "--token-keys-path", str(keys), cwd=tmp_path, DYN_FILE_KV=kv) as worker:
        keys.write_text(f"{other}\n{TOKEN_KEYS}\n")
        worker.process.send_signal(signal.SIGHUP)
        while "token keys read again" not in (line := worker.next_line()):
            assert line, "it ended"
        for text in (other, TOKEN_KEYS):
            called = run("call", "generate", "-d", "1", cwd=tmp_path, DYN_FILE_KV=kv, INGRESS_TOKEN_KEYS=text)
            assert (called.returncode, called.stdout) == (0, "1\n"), called.stderr


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"DYN_TCP_TLS_CERT_PATH": "cert.pem"}, "come together or not at all"),
        ({"DYN_TCP_TLS_CA_CERT_PATH": "ca.pem"}, "TLS needs a certificate"),
        ({"DYN_TCP_TLS_INSECURE": "true"}, "--tcp-tls-insecure"),
        ({"INGRESS_TOKEN_KEYS": "k:1234"}, "openssl rand -hex 32"),
    ],
    ids=["no key", "no certificate", "insecure alone", "short token key"],
)
def test_what_does_not_fit_together_keeps_a_worker_from_starting(
    variables: dict[str, str], said: str, tmp_path: Path
) -> None:
    ended = run("serve", "echo", cwd=tmp_path, DYN_FILE_KV=str(tmp_path / "kv"), **variables)
    assert ended.returncode == 3
    assert said in ended.stderr and "1234" not in ended.stderr and "Traceback" not in ended.stderr


def test_an_open_door_is_warned_of_by_what_is_open(authority: Authority, tmp_path: Path) -> None:
    variables = {"DYN_FILE_KV": str(tmp_path / "kv"), **authority.environment(authority.options())}
    with serving("echo", "--grace", "0", "--host", "0.0.0.0", cwd=tmp_path, **variables) as worker:
        lines = [line for line in worker.card if "listening on" in line]
    assert len(lines) == 1 and lines[0].endswith("listening on 0.0.0.0: whoever reaches the port can send requests")
