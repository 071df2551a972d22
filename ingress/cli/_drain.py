"""What ``ingress serve`` shows while it drains: the phase, what is open, and a countdown."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import trio

from .._life import Phase
from .._log_writer import LineWriter
from .._worker import Worker
from ._screen import print_queued

if TYPE_CHECKING:
    from rich.console import Console

logger = logging.getLogger("ingress.cli")

# On a terminal the line is written anew this often.
_REDRAW = 0.25

# A terminal that was stopped with Ctrl-S takes nothing for hours: the log needs the room more than a line of the past.
_MOST_WAITING = 100

# Where there is no terminal, a log line as often as this; the worker itself logs each phase as it begins.
_LOG_INTERVAL = 5.0

_ENDS_WITH = {
    Phase.LINGERING: "until new requests are refused",
    Phase.REFUSING: "left to finish",
    Phase.CANCELLING: "left to be told",
    Phase.CLOSING: "left to close",
}


def drain_line(worker: Worker) -> str:
    """Return one line on a drain: ``draining: refusing, 12 open, 23 s left to finish``."""
    phase = worker.phase
    if math.isinf(worker.phase_ends_at):
        return f"draining: withdrawing, {len(worker.open_requests)} open"
    seconds = max(0, math.ceil(worker.phase_ends_at - trio.current_time()))
    return f"draining: {phase.value}, {len(worker.open_requests)} open, {seconds} s {_ENDS_WITH.get(phase, 'left')}"


async def show_drain(worker: Worker, console: Console | None, log_writer: LineWriter) -> None:
    """Show a drain from its beginning until cancelled.

    Args:
        console: a terminal, which gets one line that changes; None has a log line written now and then.
        log_writer: writes to the terminal in place of the console, which would wait for it.
    """
    await worker.wait_draining()
    if console is None:
        await _log_lines(worker)
    else:
        await _redraw_line(worker, console, log_writer)


async def _log_lines(worker: Worker) -> None:
    while True:
        await trio.sleep(_LOG_INTERVAL)
        logger.info("%s", drain_line(worker))


async def _redraw_line(worker: Worker, console: Console, log_writer: LineWriter) -> None:
    from rich.control import Control
    from rich.segment import ControlType

    erase = Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2))

    def draw(line: str) -> None:
        # The cursor goes back to the beginning: a log line that comes next is written over this one, not behind it.
        def show(console: Console) -> None:
            console.control(erase)
            if line:
                console.print(line, style="bold yellow", end="\r", soft_wrap=True)

        print_queued(console, log_writer, show)

    try:
        while True:
            if log_writer.waiting < _MOST_WAITING:
                draw(drain_line(worker)[: console.width - 1])
            await trio.sleep(_REDRAW)
    finally:
        draw("")
