"""The fuzz targets hold for every capture and a moment of mutations, and the loop finds what is planted."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis.stateful import RuleBasedStateMachine, rule

from ingress.errors import InvalidMessage
from tests.fuzz import __main__ as fuzz
from tests.fuzz import mutations
from tests.fuzz.machines import drive, machines
from tests.fuzz.targets import TARGETS, Target


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_decoder_holds_for_its_captures_and_a_moment_of_mutations(target: Target) -> None:
    assert len(target.seeds()) > 1
    accepted = [data for data in target.seeds() if mutations.run_once(target, data).startswith("ok")]
    assert accepted, "no capture gets through: the target attacks nothing"
    assert mutations.attack(target, 0.4, seed=1) >= len(target.seeds())


def planted(data: bytes) -> object:
    if b"\0\0\0" in data[:8]:
        raise KeyError("planted")
    raise InvalidMessage("no")


def test_what_is_planted_is_found_and_made_small() -> None:
    target = Target("planted", planted, lambda: [b"0123456789" * 5])
    with pytest.raises(mutations.Finding) as caught:
        mutations.attack(target, 30.0, seed=1)
    assert caught.value.data == b"\0\0\0"
    assert str(caught.value) == "planted: KeyError: 'planted'"


def test_what_takes_too_long_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutations, "MAX_SECONDS", -1.0)
    with pytest.raises(mutations.Finding, match="took"):
        mutations.run_once(Target("slow", planted, list), b"x")


def test_the_command_ends_with_1_after_a_finding_and_keeps_the_bytes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # the plain loop, wherever this runs
    assert fuzz.attack_decoders([TARGETS[0]], 0.1, 1) == 0
    assert fuzz.attack_decoders([Target("planted", planted, lambda: [bytes(9)])], 0.1, 1) == 1
    (kept,) = tmp_path.iterdir()
    assert kept.read_bytes() == b"\0\0\0"
    out = capsys.readouterr().out
    assert "FOUND planted" in out and f"--input {kept} planted" in out


def test_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"127.0.0.1:80")
    assert fuzz.main(["--input", str(tmp_path / "x"), "address"]) == 0
    assert capsys.readouterr().out == "address ok 4\n"
    with pytest.raises(SystemExit, match="2"):
        fuzz.main(["nothing"])
    assert "known: request-frame, two-part" in capsys.readouterr().err


def test_atheris_keeps_what_it_finds_and_tells_how_much_it_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("atheris")
    (target,) = (target for target in TARGETS if target.name == "address")
    assert fuzz.attack_guided(target, 1.0, 0) > 100


def test_every_state_machine_of_the_suite_is_driven(capsys: pytest.CaptureFixture[str]) -> None:
    names = [machine.__name__ for machine in machines()]
    assert names == [
        "AdmissionMachine",
        "BothEnds",
        "Budget",
        "ConnectionBook",
        "Conversation",
        "LiveRecords",
        "PeerBook",
    ]
    (conversation,) = (machine for machine in machines() if machine.__name__ == "Conversation")
    assert drive(conversation, 0.01) >= 50


def test_a_machine_that_fails_ends_the_run_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Leaky(RuleBasedStateMachine):
        """Fails in its third step."""

        def __init__(self) -> None:
            super().__init__()
            self.steps = 0

        @rule()
        def step(self) -> None:
            self.steps += 1
            assert self.steps < 3

    monkeypatch.setattr(fuzz, "machines", lambda: [Leaky])
    assert fuzz.drive_machines(0.1) == 1
    said = capsys.readouterr()
    assert "1 state machines" in said.out and "assert self.steps < 3" in said.err
