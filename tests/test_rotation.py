"""Files that are rotated: what is told of those that cannot be used."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from ingress._rotation import CHECK_INTERVAL, LONGEST_REMINDER, Rotated, read_file
from ingress.errors import StartupError

logger = logging.getLogger("ingress.test")


class Number:
    """A file with a number in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_text("1")
        self.rotated = Rotated((path,), self.read, "numbers", logger)

    def read(self) -> int:
        try:
            return int(self.path.read_text())
        except (OSError, ValueError) as exc:
            raise StartupError(f"no number: {exc}") from exc


@pytest.fixture
def number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Number:
    caplog.set_level(logging.INFO, "ingress.test")
    return Number(tmp_path / "number")


async def ask_for(number: Number, seconds: float) -> None:
    """Ask for the number as often as a busy worker makes it look."""
    end = trio.current_time() + seconds
    while trio.current_time() < end:
        await trio.sleep(CHECK_INTERVAL)
        assert number.rotated.current() == 1


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [f"{record.levelname} {record.getMessage()}" for record in caplog.records if record.name == "ingress.test"]
    caplog.clear()
    return found


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_file_that_becomes_a_fifo_while_it_is_looked_at_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingress._rotation.check_file", lambda path: None)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="is no regular file"):
        read_file(tmp_path / "fifo")
    with pytest.raises(OSError, match="is no regular file"):
        read_file(Path("/dev/zero"))


async def test_a_file_that_stays_broken_is_told_once_and_then_ever_less_often(
    number: Number, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    number.path.write_text("junk")
    await ask_for(number, 59)
    [line] = lines(caplog)
    assert line.startswith("ERROR numbers cannot be read again, the old ones go on: no number: ")
    assert "junk" in line
    await ask_for(number, 600)
    assert lines(caplog) == [line] * 3, "after 1, 3 and 7 minutes"
    await ask_for(number, 4 * LONGEST_REMINDER)
    assert 5 <= len(lines(caplog)) <= 7


async def test_every_change_of_a_broken_file_is_told(
    number: Number, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    for text in ("junk", "rubbish"):
        number.path.write_text(text)
        await ask_for(number, 10)
        [line] = lines(caplog)
        assert text in line
    number.path.unlink()
    await ask_for(number, 10)
    [line] = lines(caplog)
    assert "No such file" in line


async def test_a_file_that_is_mended_is_told_and_its_next_fault_too(
    number: Number, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    for _ in range(2):
        number.path.write_text("junk")
        await ask_for(number, 10)
        number.path.write_text("  1")
        await ask_for(number, 10)
        broken, mended = lines(caplog)
        assert "cannot be read again" in broken and mended == "INFO numbers read again"


async def test_whoever_asks_for_the_files_to_be_read_is_told_each_time(
    number: Number, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    number.path.write_text("junk")
    await ask_for(number, 10)
    assert [number.rotated.reload() for _ in range(2)] == [False, False]
    assert len(lines(caplog)) == 3
