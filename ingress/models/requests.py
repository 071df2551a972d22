"""What the real frontend sends to a model's worker, as attrs classes that an engine may name as its request's type.

Fields that are not here are no error: engines that want them take the request as the plain dictionary it is.
Source: docs/engines.md "What the engine gets"; the requests recorded behind the 1.6.1 frontend.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from attrs import field, frozen

from .._typed import Typed
from ..errors import InvalidArgument

RequestT = TypeVar("RequestT", bound="ChatRequest | CompletionRequest | TokensRequest")

# Made when the first request of their kind comes: cattrs takes its time to be imported.
_TYPED: dict[type, Typed[Any]] = {}


def _between(least: float, most: float | None = None) -> Any:
    """An attrs validator that speaks to the end user."""

    def check(_owner: object, attribute: Any, value: float | None) -> None:
        if value is None or (least <= value and (most is None or value <= most)):
            return
        wanted = f"at least {least:g}" if most is None else f"between {least:g} and {most:g}"
        raise InvalidArgument(f"{attribute.name} must be {wanted}, got {value:g}")

    return check


@frozen
class ChatMessage:
    """One turn of a conversation."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    """Text, or parts: ``{"type": "text", "text": …}``, images and so on."""

    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        """The text of the message; parts that are none are left out."""
        if not isinstance(self.content, list):
            return self.content or ""
        return "".join(text for part in self.content if isinstance(text := part.get("text"), str))


@frozen
class StreamOptions:
    include_usage: bool = False
    continuous_usage_stats: bool = False


@frozen
class _TextRequest:
    """What chat and completions have in common."""

    model: str | None = field(default=None, kw_only=True)
    """The name the client asked for; only callers other than the frontend leave it out."""

    max_tokens: int | None = field(default=None, kw_only=True, validator=_between(0))
    temperature: float | None = field(default=None, kw_only=True, validator=_between(0, 2))
    top_p: float | None = field(default=None, kw_only=True, validator=_between(0, 1))
    frequency_penalty: float | None = field(default=None, kw_only=True, validator=_between(-2, 2))
    presence_penalty: float | None = field(default=None, kw_only=True, validator=_between(-2, 2))
    n: int | None = field(default=None, kw_only=True, validator=_between(1))
    stop: str | list[str] | None = field(default=None, kw_only=True)
    seed: int | None = field(default=None, kw_only=True)
    user: str | None = field(default=None, kw_only=True)
    stream: bool | None = field(default=None, kw_only=True)
    """What the client of the frontend asked for. The engine streams either way; the frontend folds."""

    stream_options: StreamOptions | None = field(default=None, kw_only=True)

    @property
    def wants_usage(self) -> bool:
        """True where the client expects token counts: always in a whole answer, on request in a stream."""
        return not self.stream or (self.stream_options is not None and self.stream_options.include_usage)


@frozen
class ChatRequest(_TextRequest):
    """The body of ``/v1/chat/completions``, nearly as it was posted."""

    messages: list[ChatMessage] = field(kw_only=True)
    max_completion_tokens: int | None = field(default=None, kw_only=True, validator=_between(0))
    tools: list[dict[str, Any]] | None = field(default=None, kw_only=True)
    tool_choice: Any = field(default=None, kw_only=True)
    response_format: dict[str, Any] | None = field(default=None, kw_only=True)

    @property
    def limit(self) -> int | None:
        """The largest number of tokens of the answer."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def prompt_text(self) -> str:
        """All there is to read."""
        return "\n".join(message.text for message in self.messages)

    @property
    def prompt_count(self) -> int:
        return 1


@frozen
class CompletionRequest(_TextRequest):
    """The body of ``/v1/completions``, nearly as it was posted."""

    prompt: Any = field(kw_only=True)
    """Text, or several texts, or token ids, or several lists of them."""

    echo: bool | None = field(default=None, kw_only=True)
    suffix: str | None = field(default=None, kw_only=True)

    def __attrs_post_init__(self) -> None:
        prompts = self.prompt if isinstance(self.prompt, list) else [self.prompt]
        is_good = bool(prompts) and (
            all(isinstance(prompt, str) for prompt in prompts)
            or (isinstance(self.prompt, list) and _are_tokens(prompts))
            or all(isinstance(prompt, list) and _are_tokens(prompt) for prompt in prompts)
        )
        if not is_good:
            raise InvalidArgument("prompt must be text, a list of texts, a list of token ids, or a list of such lists")

    @property
    def limit(self) -> int | None:
        """The largest number of tokens of the answer."""
        return self.max_tokens

    @property
    def prompt_text(self) -> str:
        """All there is to read; nothing where the prompt is token ids."""
        prompts = self.prompt if isinstance(self.prompt, list) else [self.prompt]
        return "\n".join(prompt for prompt in prompts if isinstance(prompt, str))

    @property
    def prompt_count(self) -> int:
        """How many prompts there are; each wants an answer of its own."""
        return len(self.prompt) if isinstance(self.prompt, list) and not _are_tokens(self.prompt) else 1


def _are_tokens(values: list[Any]) -> bool:
    return all(type(value) is int for value in values)


@frozen
class StopConditions:
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    stop_token_ids_hidden: list[int] | None = None
    """End-of-sequence tokens of the model; the frontend shows none of them."""

    ignore_eos: bool | None = None


@frozen
class SamplingOptions:
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None


@frozen
class TokensRequest:
    """What the frontend makes of either body for a card with model files."""

    token_ids: list[int]
    model: str | None = None
    stop_conditions: StopConditions = StopConditions()
    sampling_options: SamplingOptions = SamplingOptions()
    eos_token_ids: list[int] = field(factory=list)


def read_text_request(request: Any) -> ChatRequest | CompletionRequest:
    """Tell chat from completions, which share an endpoint, and check the request.

    Raises:
        InvalidArgument: it is neither, or a field has a wrong type or value.
    """
    if isinstance(request, Mapping):
        if "messages" in request:
            return _read(request, ChatRequest)
        if "prompt" in request:
            return _read(request, CompletionRequest)
    raise InvalidArgument("expected an object with messages or a prompt")


def read_tokens_request(request: Any) -> TokensRequest:
    """Check a request with token ids.

    Raises:
        InvalidArgument: it has none, or a field has a wrong type.
    """
    if not isinstance(request, Mapping):
        raise InvalidArgument("expected an object with token_ids")
    return _read(request, TokensRequest)


def _read(request: Any, wanted: type[RequestT]) -> RequestT:
    typed = _TYPED.get(wanted)
    if typed is None:
        typed = _TYPED[wanted] = Typed(wanted)
    read: RequestT = typed.structure(request)
    return read
