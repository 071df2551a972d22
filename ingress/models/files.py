"""The files of a model that the frontend needs to tokenize: named in the card by path, with their checksums.

The frontend opens the path itself, so it must see the same file system, and refuses what does not have the checksum.
Source: docs/engines.md "What stands in a card"; seen in cards of the 1.6.1 library.
"""

from __future__ import annotations

from pathlib import Path

from attrs import frozen

from ..errors import StartupError

# Tokenizers of today have up to 35 MB; a directory of weights given by mistake shall not be read through.
MAX_FILE_SIZE = 256 * 1024 * 1024

_READ_SIZE = 1024 * 1024


@frozen
class ModelFile:
    """One file as a card names it."""

    path: str
    """Absolute."""

    checksum: str
    """``blake3:`` and 64 lower-case hex digits; the frontend takes no other."""

    size: int
    """Bytes."""

    @classmethod
    def read(cls, path: Path) -> ModelFile:
        """Measure a file; blocks while it is read, some 2 ms for 10 MB.

        Raises:
            StartupError: it cannot be read, is too large, or ``blake3`` is not installed.
        """
        try:
            from blake3 import blake3
        except ImportError as exc:
            raise StartupError(
                "cards with model files need checksums of the package blake3 → pip install 'ingress-dispatch[models]'"
            ) from exc
        digest, size = blake3(), 0
        try:
            # Not resolved: in the caches of hubs the name is a link, and only the link is called tokenizer.json.
            absolute = path.absolute()
            with absolute.open("rb") as file:
                while data := file.read(_READ_SIZE):
                    size += len(data)
                    if size > MAX_FILE_SIZE:
                        raise StartupError(f"model file {path} exceeds the limit of {MAX_FILE_SIZE} bytes")
                    digest.update(data)
        except OSError as exc:
            raise StartupError(f"model file {path} cannot be read: {exc.strerror or exc}") from exc
        return cls(str(absolute), f"blake3:{digest.hexdigest()}", size)


@frozen
class ModelFiles:
    """What is needed of a model to turn messages into token ids and token ids into text."""

    config: ModelFile
    """``config.json``: end-of-sequence tokens, context length."""

    tokenizer: ModelFile
    """``tokenizer.json``."""

    tokenizer_config: ModelFile
    """``tokenizer_config.json``: special tokens, and the chat template where it has no file of its own."""

    generation_config: ModelFile | None = None
    """``generation_config.json``."""

    chat_template: ModelFile | None = None
    """``chat_template.jinja``."""

    @classmethod
    def read(cls, directory: str | Path, *, tokenizer: str | Path | None = None) -> ModelFiles:
        """Find and measure the files of a model in the usual directory layout.

        Args:
            directory: holds ``config.json``, and the tokenizer's files unless ``tokenizer`` is given.
            tokenizer: another directory with ``tokenizer.json`` and its companions, or that file itself.

        Raises:
            StartupError: a file that the frontend cannot do without is missing or unreadable.
        """
        model = Path(directory)
        own = model if tokenizer is None else Path(tokenizer)
        tokenizer_file = own if own.is_file() else own / "tokenizer.json"
        own = tokenizer_file.parent
        for path in (model / "config.json", tokenizer_file, own / "tokenizer_config.json"):
            if not path.is_file():
                raise StartupError(
                    f"no {path.name} in {path.parent} → a directory with config.json, tokenizer.json and "
                    "tokenizer_config.json, as models are published"
                )
        return cls(
            config=ModelFile.read(model / "config.json"),
            tokenizer=ModelFile.read(tokenizer_file),
            tokenizer_config=ModelFile.read(own / "tokenizer_config.json"),
            generation_config=_if_there(model / "generation_config.json"),
            chat_template=_if_there(own / "chat_template.jinja"),
        )


def _if_there(path: Path) -> ModelFile | None:
    return ModelFile.read(path) if path.is_file() else None
