"""``ingress check`` in process: what it finds, what it prints, and its exit codes."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingress.cli import main
from ingress.testing import control_message, unary_payload
from tests import captures

ENGINES = """
import trio
import ingress
from shapes import HeaderAndData

async def generate(request):
    for word in str(request).split():
        yield word

async def picky(request):
    yield request["secret"]

async def keys(request):
    yield {1: 2}

class Mine(HeaderAndData):
    def accepts(self, payload):
        if len(payload) == 1:
            raise ValueError("one byte")
        return super().accepts(payload)

class Needy(HeaderAndData):
    def __init__(self, size):
        pass

class Shy(HeaderAndData):
    def accepts(self, payload):
        return False

made = Mine()
"""


@pytest.fixture(autouse=True)
def clean_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checked.py").write_text(ENGINES)
    root = logging.getLogger()
    before = root.handlers[:], root.level, logging.getLogger("ingress").level
    yield
    root.handlers[:], level, ours = before
    root.setLevel(level)
    logging.getLogger("ingress").setLevel(ours)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str], list[str]]:
    code = main(["check", *arguments])
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err.splitlines()


def test_an_engine_that_behaves_gets_one_line_a_property(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "checked.py", "--seed", "7")
    assert (code, err) == (0, [])
    assert out[0] == "engine checked.py · seed 7"
    assert all(re.fullmatch(r"ok    [^ ].*  [\d,]+ ms", line) for line in out[2:-2])
    assert out[-1] == f"all {len(out) - 4} hold"
    assert len(out) - 4 == 15


def test_a_failure_says_what_was_expected_what_came_and_how_to_see_it_again(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "checked.py:keys", "-d", '"x"', "--seed", "7")
    assert code == 1
    at = next(index for index, line in enumerate(out) if line.startswith("FAIL"))
    assert out[at].startswith("FAIL  its chunks are the same in every codec  ")
    assert out[at + 1].startswith("      expected  the same chunk in every codec")
    assert out[at + 2] == "      got       {1: 2} arrives as {'1': 2} in json, as {1: 2} in msgpack"
    assert re.fullmatch(r"13 hold, 1 do not; again: .*ingress check checked.py:keys --seed 7", out[-1])


def test_json_has_every_property(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "checked.py:keys", "-d", "1", "--json")
    document = json.loads("\n".join(out))
    assert code == 1
    assert (document["schema"], document["kind"], document["target"]) == (
        "ingress.check/1",
        "engine",
        "checked.py:keys",
    )
    failed = [each for each in document["properties"] if not each["holds"]]
    assert [each["name"] for each in failed] == ["its chunks are the same in every codec"]
    assert failed[0]["expected"] and failed[0]["got"] and failed[0]["seconds"] >= 0
    assert document["properties"][0]["expected"] is None


def test_quiet_says_nothing_but_failures(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "echo", "-q") == (0, [], [])
    code, out, _ = run(capsys, "checked.py:keys", "-d", "1", "-q")
    assert code == 1 and out[0].startswith("FAIL") and len(out) == 5


def test_an_engine_that_understands_nothing_plausible_needs_a_request(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "checked.py:picky")
    assert code == 1
    assert out[2].startswith("FAIL  understands a plausible request")
    assert run(capsys, "checked.py:picky", "-d", '{"secret":1}', "-d", '{"secret":"two"}')[0] == 0


@pytest.mark.parametrize("target", ["header-and-data", "shapes:HeaderAndData"])
def test_a_shape_is_checked_too(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, target)
    assert code == 0
    assert out[0].startswith(f"shape {target} · seed ") and out[-1] == "all 13 hold"


@pytest.mark.parametrize("target", ["checked.py:Mine", "checked.py:made"])
def test_a_shape_that_fails_does_so_with_the_seed_again(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, target, "--seed", "3")
    assert code == 1
    assert any("accepts raised ValueError: one byte (checked.py:" in line for line in out)
    assert strip_times(run(capsys, target, "--seed", "3")[1]) == strip_times(out)


def strip_times(lines: list[str]) -> list[str]:
    return [re.sub(r"[\d,]+ ms$", "", line) for line in lines]


def test_payloads_come_from_files_in_any_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    payload = unary_payload({"a": 1}, control_message())
    (tmp_path / "raw.bin").write_bytes(payload)
    (tmp_path / "hex.txt").write_text(payload.hex())
    recorded = Path(captures.__file__).parent / f"{captures.names('request-unary-record-json')[0]}.json"
    files = [str(tmp_path / "raw.bin"), str(tmp_path / "hex.txt"), str(recorded)]
    code, out, err = run(capsys, "header-and-data", *(part for file in files for part in ("--payload", file)))
    assert (code, err) == (0, []), out


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["ech"], "no engine and no shape is named 'ech'"),
        (["echo", "--as", "shape"], "no shape is named 'echo'"),
        (["checked.py:nothing"], "checked.py has no 'nothing'"),
        (["nowhere:x"], "there is no module 'nowhere'"),
        (["nowhere.py"], "there is no file nowhere.py"),
        (["checked.py:Needy"], "checked.py:Needy cannot be made"),
        (["checked.py:Shy"], "checked.py:Shy cannot be checked"),
        (["checked.py:ENGINES"], "checked.py has no 'ENGINES'"),
        (["checked.py:made.accepts.nothing"], "checked.py has no"),
    ],
)
def test_what_cannot_be_checked_ends_with_3_and_says_what_to_try(
    arguments: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, *arguments)
    assert code == 3
    assert err[0].startswith(f"error: {what}"), err
    assert err[-1].startswith("  try: ")


def test_a_request_that_is_no_json_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "echo", "-d", "{")
    assert code == 2 and err[0].startswith("error: -d is not JSON")
