"""``ingress settings``: every setting of a worker with its value and where that comes from; secrets are not shown."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ingress.cli import main

from .serve_options import known_variables, serve_options


@pytest.fixture(autouse=True)
def clean_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in known_variables() & os.environ.keys():
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():  # what an env file has set
        del os.environ[name]


def settings(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, dict[str, Any]]:
    assert main(["settings", "--json", *arguments]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "ingress.settings/1"
    return {each["name"]: each for each in document["settings"]}


def test_every_flag_and_every_variable_of_serve_is_there_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    found = settings(capsys)
    assert {name for each in found.values() for name in each["variables"]} == known_variables()
    for option in serve_options():
        each = found[option.flags[-1]]
        assert (each["value"], each["origin"]) == (option.default, "default")


def test_an_origin_is_the_flag_the_variable_the_line_of_the_file_or_the_default(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "worker.env"
    file.write_text("DYN_SYSTEM_PORT=9000\nDYN_TCP_RPC_PORT=1\nINGRESS_CLOSE_WAIT=3\n")
    monkeypatch.setenv("DYN_TCP_RPC_PORT", "7000")
    monkeypatch.setenv("DYN_TCP_WORKER_POOL_SIZE", "5")
    found = settings(capsys, "hello.py", "--env-file", str(file), "--close-wait", "4", "--dial-allow", "10.0.0.0/8")
    origins = {name: (each["value"], each["origin"], each["source"]) for name, each in found.items()}
    assert origins["--port"] == (7000, "environment", "DYN_TCP_RPC_PORT")
    assert origins["--engine-request-limit"] == (5, "environment", "DYN_TCP_WORKER_POOL_SIZE")
    assert origins["--status-port"] == (9000, "env file", "DYN_SYSTEM_PORT")
    assert found["--status-port"]["path"] == str(file)
    assert origins["--close-wait"] == (4.0, "flag", "--close-wait")
    assert origins["--dial-allow"] == (["10.0.0.0/8"], "flag", "--dial-allow")
    assert origins["--idle-timeout"] == (None, "default", None)


def test_the_table_says_the_same_in_one_line_a_setting(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYN_TCP_RPC_PORT", "7000")
    assert main(["settings", "--grace", "7"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["setting", "value", "origin"]
    assert ["--port", "7000", "DYN_TCP_RPC_PORT"] in lines
    assert ["--grace", "7", "flag"] in lines
    assert ["--idle-timeout", "-", "default"] in lines
    assert len(lines) == len(serve_options()) + 1 + 6  # and the variables that are no flag's


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["table", "json"])
def test_a_secret_is_a_star(
    form: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INGRESS_TOKEN_KEYS", "key:0123456789abcdef")
    assert main(["settings", *form]) == 0
    shown = capsys.readouterr().out
    assert "0123456789abcdef" not in shown and "INGRESS_TOKEN_KEYS" in shown and "*" in shown


@pytest.mark.parametrize(
    ("arguments", "variables", "said"),
    [
        (["--write-stall-timeout", "0"], {}, "--write-stall-timeout 0 cannot be used"),
        (["--idle-timeout", "0"], {}, "--idle-timeout 0 cannot be used"),
        ([], {"INGRESS_MAX_CONNECTIONS": "0"}, "INGRESS_MAX_CONNECTIONS=0 cannot be used"),
        (["--no-such-thing"], {}, "unknown option --no-such-thing"),
    ],
)
def test_what_serve_would_refuse_is_refused(
    arguments: list[str],
    variables: dict[str, str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["settings", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")


def test_none_is_no_limit(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INGRESS_IDLE_TIMEOUT", "30")
    found = settings(capsys, "--idle-timeout", "none", "--memory-watermark", "none")
    assert (found["--idle-timeout"]["value"], found["--idle-timeout"]["origin"]) == (None, "flag")
    assert found["--memory-watermark"]["value"] is None
