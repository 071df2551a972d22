"""The files of a model whose tokens are bytes: what a frontend needs to tokenize, and nothing to compute with."""

from __future__ import annotations

import json
from pathlib import Path

EOS = 256
"""The only token that is no byte."""

CONTEXT_LENGTH = 2048

CHAT_TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"


def write_tiny_model(directory: Path) -> Path:
    """Write the four files into a new directory and return it; token 65 is the byte ``A``, and so on."""
    directory.mkdir()
    # GPT-2's byte-level alphabet: printable bytes are themselves, the others letters from U+0100 on.
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    vocabulary = {chr(byte if byte in printable else next(others)): byte for byte in range(256)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    files = {
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {
                    "id": EOS,
                    "content": "<eos>",
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": True,
                }
            ],
            "normalizer": None,
            "pre_tokenizer": byte_level,
            "post_processor": None,
            "decoder": byte_level,
            "model": {"type": "BPE", "vocab": {**vocabulary, "<eos>": EOS}, "merges": []},
        },
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "eos_token_id": EOS,
            "bos_token_id": EOS,
            "vocab_size": EOS + 1,
            "max_position_embeddings": CONTEXT_LENGTH,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<eos>",
            "chat_template": CHAT_TEMPLATE,
        },
        "generation_config.json": {"eos_token_id": EOS},
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content))
    return directory
