"""``ingress demo``: a worker and a caller in one process, over real sockets.

Everything on the screen was just measured or is really there: the addresses can be connected to, the commands can be
pasted, and the figures come from the calls that were made.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any

import trio
from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

from .._plugins import load
from .._serve import DEFAULT_ENDPOINT, make_worker, serve_until_signalled
from .._text import printable
from .._worker import Worker
from ..abc import Context
from ..client import Client, open_client
from ..discovery import FileDiscovery
from ..errors import IngressError, StartupError
from ._errors import EXIT_FAILED, CommandError, startup_error
from ._figures import Ending, Figures
from ._options import DEFAULT_OUTPUT, OutputOptions
from ._screen import WrappingWriter, call_command, command_lines, print_card, program_name, shell_path, short_path

DEFAULT_PROMPT = "why is the sky"

# Of the answers to the default prompt, one of the better ones.
_SEED = 2

# Fast enough to be done in a second, slow enough to be seen as a stream; only where somebody watches.
_PACE = 0.02

# The measurement: one answer without pauses, long enough to last a tenth of a second.
_BURST_WORDS = 5000

# The demonstration of leaving: an answer of a hundred seconds, left after a few words.
_LEFT_AFTER = 3

_MARGIN = 2


def demo(
    prompt: str = DEFAULT_PROMPT,
    /,
    *,
    once: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    output: OutputOptions = DEFAULT_OUTPUT,
) -> int:
    """Watch a worker and a caller at work, in one process.

    On a terminal it stays up until Ctrl-C, so that you can call it from another one.

    Parameters
    ----------
    prompt
        What to ask.
    once
        End after the first answer; so it does where the output is no terminal.
    """
    output.set_up_logging(logging.ERROR)  # what a request's end has to tell is told on the screen
    show = Demonstration(output.stdout(), prompt, stays=not once and sys.stdout.isatty())
    code = trio.run(show.run)
    if isinstance(show.failure, StartupError):
        error = startup_error(show.failure)
        error.remedy = "XDG_CACHE_HOME=DIRECTORY ingress demo, with one that you may write"
        raise error from show.failure
    if isinstance(show.failure, BrokenPipeError):
        raise show.failure
    if show.failure is not None:
        raise CommandError("the demo's own call failed", str(show.failure), "ingress demo -v") from show.failure
    return code


def demo_directory() -> Path:
    """Where the demo's worker is announced: a place of its own, so that it meets no other worker."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "ingress" / "demo"


class Demonstration:
    """One run of the demo; the worker and its caller share a loop and talk over TCP."""

    def __init__(self, console: Console, prompt: str, *, stays: bool) -> None:
        self.failure: IngressError | BrokenPipeError | None = None
        self._console = console
        self._prompt = prompt
        self._stays = stays
        self._directory = demo_directory()
        self._discovery = FileDiscovery(self._directory)
        self._started = trio.Event()
        self._ended = trio.Event()
        self._endings: list[Ending] = []
        self._is_shown = False  # from here on, calls are those of other terminals
        self._engine = load("engines", "markov")
        self._worker: Worker = make_worker(
            self.answer,
            endpoint=DEFAULT_ENDPOINT,
            discovery=self._discovery,
            linger=0.0,  # it leaves no fleet behind, and whoever presses Ctrl-C wants it gone
        )

    async def run(self) -> int:
        """Serve until signalled, or until the show is over; return the exit code."""
        code = EXIT_FAILED
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._show)
            try:
                code = await serve_until_signalled(self._worker, lambda _: self._started.set())
            except StartupError as exc:
                self.failure = exc  # raised here it would come out wrapped in a group
            nursery.cancel_scope.cancel()
        if self._stays and code == 0:
            self._console.print(Text(f"\n{self._ended_line()}", style="dim"))
        return EXIT_FAILED if self.failure is not None else code

    async def answer(self, request: Any, context: Context) -> AsyncIterator[Any]:
        """The engine: markov, watched."""
        ending = Ending()
        try:
            async with aclosing(self._engine(request, context)) as chunks:
                async for chunk in chunks:
                    ending.words += 1
                    yield chunk
        except (trio.Cancelled, GeneratorExit):
            ending.is_cancelled = True
            raise
        except Exception as exc:
            ending.failure = exc
            raise
        finally:
            ending.at = trio.current_time()
            self._endings.append(ending)
            self._ended.set()
            self._ended = trio.Event()
            if self._is_shown:
                self._tell(ending)

    # -- the show ------------------------------------------------------------------------------------------------------

    async def _show(self) -> None:
        """The whole show; a failure of it ends the worker."""
        await self._started.wait()
        try:
            await self._show_calls()
            self._say_what_next()
        except (IngressError, BrokenPipeError) as exc:
            self.failure = exc  # raised here it would come out wrapped in a group
        if self.failure is None and self._stays:
            self._is_shown = True
        else:
            self._worker.drain()

    async def _show_calls(self) -> None:
        print_card(self._console, self._rows())
        async with open_client(discovery=self._discovery) as client:
            chunks, first = await self._stream_answer(client)
            burst_chunks, burst = await self._measure(client)
            stopped_after = await self._leave_early(client)
        cancelled = sum(ending.is_cancelled for ending in self._endings)
        figures = Figures(chunks, first, burst_chunks, burst, stopped_after, cancelled)
        self._console.print(Text(f"  {figures}\n", style="green"), soft_wrap=True)

    def _rows(self) -> list[list[tuple[str, str]]]:
        return [
            [("endpoint", DEFAULT_ENDPOINT), ("engine", "markov (built in)")],
            [("request", f"tcp {self._worker.address}"), ("codec", f"{self._worker.codec}, reads json too")],
            [
                ("discovery", f"file {short_path(self._directory)}"),
                ("instance", f"{self._worker.instance_id:x}"),
            ],
        ]

    async def _stream_answer(self, client: Client) -> tuple[int, float]:
        """Show one answer as it comes; return its chunks, and the seconds to the first."""
        self._console.print(Text.assemble(("> ", "dim"), (self._prompt, "bold")), soft_wrap=True)
        request = {"prompt": self._prompt, "seed": _SEED, "delay": _PACE if self._stays else 0}
        writer = WrappingWriter(self._console, _MARGIN)
        chunks, first = 0, 0.0
        began = trio.current_time()
        async with client.stream(DEFAULT_ENDPOINT, request, **self._direct) as responses:
            async for item in responses:
                if not chunks:
                    first = trio.current_time() - began
                chunks += 1
                writer.write(str(item["text"]))
        writer.finish()
        return chunks, first

    async def _measure(self, client: Client) -> tuple[int, float]:
        """Take one long answer without pauses; return its chunks and seconds, from the call to the last word."""
        request = {"prompt": self._prompt, "seed": _SEED, "max_words": _BURST_WORDS}
        chunks = 0
        began = trio.current_time()
        async with client.stream(DEFAULT_ENDPOINT, request, **self._direct) as responses:
            async for _ in responses:
                chunks += 1
        return chunks, trio.current_time() - began

    async def _leave_early(self, client: Client) -> float | None:
        """Leave an answer in the middle; return how long the engine then lived on, as its ``finally`` saw it."""
        request = {"prompt": self._prompt, "max_words": _BURST_WORDS, "delay": _PACE}
        words = 0
        async with client.stream(DEFAULT_ENDPOINT, request, **self._direct) as responses:
            async for _ in responses:
                words += 1
                if words == _LEFT_AFTER:
                    break
            ended, left = self._ended, trio.current_time()
        with trio.move_on_after(1.0):
            await ended.wait()
            return self._endings[-1].at - left
        return None

    @property
    def _direct(self) -> dict[str, Any]:
        # Another demo may be running: it would be found in the same directory.
        return {"routing": "direct", "instance_id": self._worker.instance_id}

    # -- afterwards ----------------------------------------------------------------------------------------------------

    def _say_what_next(self) -> None:
        name, request = program_name(), '{"prompt":"hello"}'
        if self._stays:
            self._console.print("Try next, in another terminal:", soft_wrap=True)
            calling, where = call_command(
                DEFAULT_ENDPOINT, ["-d", request], [f"--file-kv {shell_path(self._directory)}"]
            )
            for command in ([f"{calling} --text", where], [f"{name} ls", where], [f"{name} serve --help"]):
                self._console.print(Text(command_lines(self._console, command), style="cyan"), soft_wrap=True)
            self._console.print(Text("Ctrl-C once drains, twice quits.", style="dim"), soft_wrap=True)
            return
        self._console.print("Try next, in two terminals:", soft_wrap=True)
        for line in (f"{name} serve markov", *call_command(DEFAULT_ENDPOINT, ["-d", request])):
            self._console.print(Text(f"  {line}", style="cyan"), soft_wrap=True)

    def _tell(self, ending: Ending) -> None:
        words = f"{ending.words} chunk{'' if ending.words == 1 else 's'}"
        if ending.failure is not None:
            told = f"failed after {words}: {printable(ending.failure)}"
        elif ending.is_cancelled:
            told = f"left by its caller after {words}, engine stopped"
        else:
            told = f"answered with {words}"
        with contextlib.suppress(BrokenPipeError):  # the caller has nothing to do with our screen
            self._console.print(Text.assemble(("  request  ", "dim"), told), soft_wrap=True)

    def _ended_line(self) -> str:
        cancelled = sum(ending.is_cancelled for ending in self._endings)
        return f"drained · {len(self._endings)} requests, {cancelled} of them left early · goodbye"
