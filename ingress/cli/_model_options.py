"""The options of ``ingress serve`` that make a worker appear as a model in the real OpenAI frontend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from attrs import frozen
from cyclopts import Group, Parameter
from cyclopts.validators import Number

from ..models import ModelCard, ModelFiles
from ._errors import usage

MODELS = Group("Models", sort_key=5)


def _option(twin: str, text: str, **rest: Any) -> Parameter:
    return Parameter(env_var=twin, group=MODELS, help=text, **rest)


@Parameter(name="*")
@frozen
class ModelFlags:
    """The card that is announced beside an instance."""

    model: Annotated[
        list[str] | None,
        _option("INGRESS_MODEL", "Name under which the frontend lists the target; one for each target.", negative=()),
    ] = None
    model_path: Annotated[
        Path | None,
        _option("INGRESS_MODEL_PATH", "Directory with config.json and the tokenizer: the frontend tokenizes."),
    ] = None
    tokenizer: Annotated[
        Path | None, _option("INGRESS_TOKENIZER", "tokenizer.json, or its directory, where it lies elsewhere.")
    ] = None
    model_type: Annotated[
        str | None, _option("INGRESS_MODEL_TYPE", "Chat, Completions, Realtime, …, joined by |; by default what fits.")
    ] = None
    context_length: Annotated[
        int | None, _option("INGRESS_CONTEXT_LENGTH", "Tokens of the longest context.", validator=Number(gte=0))
    ] = None
    kv_cache_block_size: Annotated[
        int | None, _option("INGRESS_KV_CACHE_BLOCK_SIZE", "Tokens of a cache block.", validator=Number(gte=0))
    ] = None

    def cards(self, endpoints: Sequence[str]) -> dict[str, ModelCard] | None:
        """Return the card of each endpoint, or None where there is no model.

        Raises:
            CommandError: the names do not pair up, or an option is there without a name.
            StartupError: a file cannot be read, or the frontend would refuse the card.
        """
        if not self.model:
            if self != ModelFlags():
                raise usage("a model needs a name", "options of a model are given, and no --model", "--model NAME")
            return None
        if len(self.model) != len(endpoints):
            raise usage(
                f"{len(endpoints)} targets and {len(self.model)} models do not pair up",
                "the first --model is for the first target, the second for the second",
                " ".join(f"--model {name.rpartition('.')[2]}" for name in endpoints),
            )
        if self.tokenizer is not None and self.model_path is None:
            raise usage("--tokenizer needs --model-path", "a card with a tokenizer needs config.json too")
        files = None if self.model_path is None else ModelFiles.read(self.model_path, tokenizer=self.tokenizer)
        return {
            endpoint: ModelCard(
                name,
                types=self.model_type,
                files=files,
                context_length=self.context_length,
                kv_cache_block_size=self.kv_cache_block_size,
            )
            for endpoint, name in zip(endpoints, self.model, strict=True)
        }


DEFAULT_MODELS = ModelFlags()
