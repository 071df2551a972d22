"""The model card: what a worker says of its model, and how it is written into the record.

Field names and order are those of cards that the 1.6.1 library writes (docs/engines.md "What stands in a card").
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from attrs import field, frozen

from ..errors import StartupError
from ..wire.codec import converter
from .files import ModelFile, ModelFiles

# The kinds of request a frontend may route here. It refuses a card that names any other, case and all.
KNOWN_TYPES = (
    *("Chat", "Completions", "Embedding", "TensorBased", "Prefill", "Images", "Audios", "Videos", "Realtime"),
    *("Rerank", "Classify", "Pooling"),
)

# What the adapters of this package answer; every other kind gets what the engine yields, as it is.
TEXT_TYPES = ("Chat", "Completions")
BIDIRECTIONAL_TYPES = ("Realtime",)

# The library's own default, which its router counts in.
DEFAULT_TOKENS_BLOCK_SIZE = 16

MAX_NAME_LENGTH = 256


def slug_of(name: str) -> str:
    """Return the name as the 1.6.1 library makes it fit for keys: lower case, and ``_`` for all but ``a-z0-9_-``."""
    return re.sub(r"[^a-z0-9_-]", "_", name.lower())


def _types(value: Sequence[str] | str | None) -> tuple[str, ...] | None:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split("|"))
    return None if value is None else tuple(value)


@frozen
class ModelCard:
    """A model as the real frontend shall list it.

    Raises:
        StartupError: the frontend would refuse the card.
    """

    name: str
    """The model's id in ``/v1/models`` and in requests."""

    types: tuple[str, ...] | None = field(default=None, converter=_types, kw_only=True)
    """``Chat``, ``Completions``, ``Realtime`` and so on, also as one string joined by ``|``. None: what the engine can
    do, Chat and Completions for a unary one, Realtime for a bidirectional one."""

    files: ModelFiles | None = field(default=None, kw_only=True)
    """With them the frontend tokenizes, and the engine gets and yields token ids; without, it is text both ways."""

    context_length: int | None = field(default=None, kw_only=True)
    """Tokens. None leaves it out: with files the frontend then takes it from ``config.json``."""

    kv_cache_block_size: int | None = field(default=None, kw_only=True)
    """Tokens; None is 16 with files and 0 without. Only a router that counts cache blocks reads it."""

    extra: Mapping[str, Any] = field(factory=dict, kw_only=True)
    """Further fields of ``card_json``, ``runtime_config`` for example; JSON, written as given."""

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.name, str) or not 0 < len(self.name) <= MAX_NAME_LENGTH or not self.name.isprintable():
            raise StartupError(f"model name {self.name!r:.80} must have 1 to {MAX_NAME_LENGTH} printable characters")
        if self.types is not None:
            unknown = [kind for kind in self.types if kind not in KNOWN_TYPES]
            if unknown or not self.types:
                raise StartupError(
                    f"model type {', '.join(unknown) or '(none)'} is unknown to the frontend; known: "
                    + ", ".join(KNOWN_TYPES)
                )
        for name in ("context_length", "kv_cache_block_size"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not 0 <= value < 2**32):
                raise StartupError(f"{name} must be a whole number from 0 to 4294967295, got {value!r:.40}")

        try:
            msgspec.json.encode(dict(self.extra))
        except (TypeError, ValueError, RecursionError) as exc:
            raise StartupError(f"model {self.name}: extra fields must be JSON: {exc}") from exc

    @classmethod
    def from_directory(
        cls, name: str, directory: str | Path, *, tokenizer: str | Path | None = None, **fields: Any
    ) -> ModelCard:
        """Make a token card of a model in the usual directory layout; see :meth:`ModelFiles.read`.

        Raises:
            StartupError: a file is missing, or a field makes no sense.
        """
        return cls(name, files=ModelFiles.read(directory, tokenizer=tokenizer), **fields)

    @property
    def takes_tokens(self) -> bool:
        """True where the frontend tokenizes."""
        return self.files is not None

    def types_for(self, *, is_unary: bool, is_bidirectional: bool) -> tuple[str, ...]:
        """Return the types of this card with an engine of that kind.

        Raises:
            StartupError: the engine cannot answer one of them.
        """
        types = self.types
        if types is None:
            types = (TEXT_TYPES if is_unary else ()) + (BIDIRECTIONAL_TYPES if is_bidirectional else ())
        for kind in types:
            if kind in BIDIRECTIONAL_TYPES and not is_bidirectional:
                raise StartupError(f"model {self.name}: {kind} needs a bidirectional engine → @ingress.bidirectional")
            if kind not in BIDIRECTIONAL_TYPES and not is_unary:
                raise StartupError(f"model {self.name}: {kind} needs a unary engine, and this one is bidirectional")
        return types

    def to_wire(self, types: Sequence[str]) -> dict[str, Any]:
        """Return the ``card_json`` for an endpoint that answers these types."""
        files = self.files
        block_size = self.kv_cache_block_size
        if block_size is None:
            block_size = DEFAULT_TOKENS_BLOCK_SIZE if files is not None else 0
        wire = {
            "display_name": self.name,
            "slug": slug_of(self.name),
            **(_files_to_wire(files) if files is not None else {}),
            "context_length": self.context_length,
            "kv_cache_block_size": block_size,
            "migration_limit": 0,  # must be there, and is not read: the frontend goes by a flag of its own
            "model_type": " | ".join(types),
            "model_input": "Tokens" if files is not None else "Text",
            "worker_type": "aggregated",
        }
        return {name: value for name, value in wire.items() if value is not None} | dict(self.extra)


def _files_to_wire(files: ModelFiles) -> dict[str, Any]:
    def entry(file: ModelFile) -> Any:
        return converter().unstructure(file)

    wire = {
        "model_info": {"hf_config_json": entry(files.config)},
        "tokenizer": {"hf_tokenizer_json": entry(files.tokenizer)},
        "prompt_formatter": {"hf_tokenizer_config_json": entry(files.tokenizer_config)},
    }
    if files.chat_template is not None:
        wire["chat_template_file"] = {"hf_chat_template": {"is_custom": False, "file": entry(files.chat_template)}}
    if files.generation_config is not None:
        wire["gen_config"] = {"hf_generation_config_json": entry(files.generation_config)}
    return wire
