"""What OpenAI-compatible servers take and give: requests, chunks, whole answers and failures.

No I/O. The forms are those of vLLM, SGLang, llama.cpp, Ollama and OpenAI itself, as far as they agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ingress import InvalidArgument
from ingress.errors import ConnectionTimeout, GenerateError, IngressError, Overloaded
from ingress.wire.codec import codec_named

# What is passed on of a server's own words.
MAX_ERROR_TEXT = 2000

_JSON = codec_named("json")

_CALLERS_MISTAKES = {400, 413, 422}
_OVERLOADS = {429, 503, 529}
_TIMEOUTS = {408, 504}
_REFUSALS = {401, 403, 407}

# Where a failure carries no status: the types that OpenAI, vLLM and llama.cpp give those of the caller, and of load.
_TYPES = {
    "invalid_request_error": 400,
    "BadRequestError": 400,
    "exceed_context_size_error": 400,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "overloaded_error": 529,
    "unavailable_error": 503,
}


def read_request(request: Any, model: str | None) -> tuple[str, bytes]:
    """Return the path below the base URL and the body for a chat or a completion request, always a streaming one.

    A stream can be bounded between its chunks and cancelled everywhere; callers that want the answer in one piece fold
    it. Its usage is asked for where they would have got it: in an answer that is not streamed, or on their own wish.

    Raises:
        InvalidArgument: it is neither, or cannot be written as JSON.
    """
    if not isinstance(request, Mapping) or not ("messages" in request or "prompt" in request):
        raise InvalidArgument("expected an object with messages or with a prompt")
    body = dict(request)
    if not body.get("stream") and not isinstance(body.get("stream_options"), Mapping):
        body["stream_options"] = {"include_usage": True}
    options = body.get("stream_options")
    if isinstance(options, Mapping) and options.get("continuous_usage_stats") is False:
        # Dynamo's frontend adds it to every request; servers that do not know it may refuse it.
        body["stream_options"] = {key: value for key, value in options.items() if key != "continuous_usage_stats"}
    body["stream"] = True
    if model is not None:
        body["model"] = model
    try:
        return "/chat/completions" if "messages" in body else "/completions", _JSON.encode(body)
    except ValueError as exc:
        raise InvalidArgument(str(exc)) from exc


def read_object(data: bytes) -> dict[str, Any]:
    """Decode a chunk or an answer.

    Raises:
        IngressError: it is no JSON object, or it tells of a failure; of the kind that it tells of.
    """
    try:
        value = _JSON.decode(data)
    except IngressError as exc:
        raise GenerateError(f"upstream sent what is no JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise GenerateError(f"upstream sent {type(value).__name__} where an object is expected")
    if value.get("error"):
        raise failure_of(value)
    return value


def has_finished(chunk: Mapping[str, Any]) -> bool:
    """Tell whether the chunk says why a choice has ended."""
    choices = chunk.get("choices")
    return isinstance(choices, list) and any(isinstance(each, dict) and each.get("finish_reason") for each in choices)


def as_chunk(answer: dict[str, Any]) -> dict[str, Any]:
    """Turn an answer in one piece into the one chunk that says the same; what is a chunk already stays as it is."""
    choices = answer.get("choices")
    if not isinstance(choices, list):
        raise GenerateError("upstream sent an answer without choices")
    if answer.get("object") != "chat.completion":
        return answer  # a completion in one piece has the form of its chunks
    folded = [
        {("delta" if key == "message" else key): value for key, value in choice.items()}
        for choice in choices
        if isinstance(choice, dict)
    ]
    return {**answer, "object": "chat.completion.chunk", "choices": folded}


# -- failures ---------------------------------------------------------------------------------------------------------


def failure_of(value: Any, status: int | None = None, *, who: str = "upstream") -> IngressError:
    """Return what to raise for a failure told in a body or an event.

    Args:
        value: what was told, decoded; ``{"error": {"message", "type", "code"}}`` in most servers.
        status: the HTTP status, where it came with one.
        who: failed.
    """
    error = value.get("error", value) if isinstance(value, dict) else value
    text = error if isinstance(error, str) else ""
    if isinstance(error, dict):
        text = str(error.get("message") or error.get("detail") or "")
        if status is None:
            status = _status_in(error)
    # Of status and text the latter may be missing, and may be a page of HTML cut short.
    told = " ".join(text[:MAX_ERROR_TEXT].split())
    if status in _CALLERS_MISTAKES or (status == 404 and "model" in told.lower()):
        return InvalidArgument(told or f"{who} refused the request with HTTP {status}")
    if status in _REFUSALS:
        # The worker's key and not the caller's; servers repeat pieces of it.
        return GenerateError(f"{who} does not admit this worker (HTTP {status})")
    what = f"HTTP {status}" if status is not None else "failed"
    told = f"{who}: {what}{': ' if told else ''}{told}"
    if status in _OVERLOADS:
        return Overloaded(told)
    return ConnectionTimeout(told) if status in _TIMEOUTS else GenerateError(told)


def failure_of_body(body: bytes, status: int) -> IngressError:
    """Return what to raise for an answer with another status than 200."""
    try:
        value = _JSON.decode(body)
    except IngressError:
        value = None  # a proxy's page; it says nothing to a caller
    return failure_of(value, status)


def _status_in(error: Mapping[str, Any]) -> int | None:
    code = error.get("code")
    if isinstance(code, str) and code.isascii() and code.isdigit() and len(code) == 3:
        code = int(code)
    if type(code) is int and 400 <= code < 600:
        return code
    return _TYPES.get(str(error.get("type")), _TYPES.get(str(code)))
