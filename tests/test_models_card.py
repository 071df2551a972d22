"""Model cards: what stands in them, what is refused, and which files are named."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from ingress.errors import StartupError
from ingress.models import ModelCard, ModelFile, ModelFiles, slug_of
from ingress.models.files import MAX_FILE_SIZE

from .tiny_model import write_tiny_model

BOTH = ("Chat", "Completions")


def test_a_text_card_has_the_fields_that_the_frontend_needs_and_no_others() -> None:
    """The minimal card which a 1.6.1 frontend was seen to accept."""
    assert ModelCard("m").to_wire(BOTH) == {
        "display_name": "m",
        "slug": "m",
        "kv_cache_block_size": 0,
        "migration_limit": 0,
        "model_type": "Chat | Completions",
        "model_input": "Text",
        "worker_type": "aggregated",
    }


def test_a_token_card_names_its_files_as_the_released_library_does(tmp_path: Path) -> None:
    """Shape and keys of a card written by the 1.6.1 library for a directory like this one."""
    directory = write_tiny_model(tmp_path / "tiny")
    (directory / "chat_template.jinja").write_text("{{ messages }}")

    def entry(name: str) -> dict[str, Any]:
        content = (directory / name).read_bytes()
        return {
            "path": str(directory / name),
            "checksum": f"blake3:{blake3(content).hexdigest()}",
            "size": len(content),
        }

    card = ModelCard.from_directory("Tok", directory, context_length=2048)
    wire = card.to_wire(BOTH)
    assert wire == {
        "display_name": "Tok",
        "slug": "tok",
        "model_info": {"hf_config_json": entry("config.json")},
        "tokenizer": {"hf_tokenizer_json": entry("tokenizer.json")},
        "prompt_formatter": {"hf_tokenizer_config_json": entry("tokenizer_config.json")},
        "chat_template_file": {"hf_chat_template": {"is_custom": False, "file": entry("chat_template.jinja")}},
        "gen_config": {"hf_generation_config_json": entry("generation_config.json")},
        "context_length": 2048,
        "kv_cache_block_size": 16,
        "migration_limit": 0,
        "model_type": "Chat | Completions",
        "model_input": "Tokens",
        "worker_type": "aggregated",
    }
    json.dumps(wire)


def test_a_link_is_named_by_its_own_name(tmp_path: Path) -> None:
    """Caches of hubs keep files under their hashes and link to them; only the link is called tokenizer.json."""
    directory = write_tiny_model(tmp_path / "tiny")
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in directory.iterdir():
        (linked / path.name).symlink_to(path)
    assert ModelFiles.read(linked).tokenizer.path == str(linked / "tokenizer.json")
    assert ModelFiles.read(linked).tokenizer.checksum == ModelFiles.read(directory).tokenizer.checksum


def test_the_tokenizer_may_lie_elsewhere(tmp_path: Path) -> None:
    model, other = write_tiny_model(tmp_path / "model"), write_tiny_model(tmp_path / "other")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).unlink()
    for tokenizer in (other, other / "tokenizer.json"):
        files = ModelFiles.read(model, tokenizer=tokenizer)
        assert files.config.path == str(model / "config.json")
        assert files.tokenizer.path == str(other / "tokenizer.json")
        assert files.tokenizer_config.path == str(other / "tokenizer_config.json")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_file_that_the_frontend_cannot_do_without_is_missed_at_the_start(tmp_path: Path, name: str) -> None:
    directory = write_tiny_model(tmp_path / "tiny")
    (directory / name).unlink()
    with pytest.raises(StartupError, match=f"no {name} in .*tiny"):
        ModelFiles.read(directory)


def test_an_optional_file_may_be_absent(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path / "tiny")
    (directory / "generation_config.json").unlink()
    assert not {"gen_config", "chat_template_file"} & ModelCard.from_directory("m", directory).to_wire(BOTH).keys()


def test_a_file_of_weights_is_not_read_through(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with path.open("wb") as file:
        file.truncate(MAX_FILE_SIZE + 1)
    with pytest.raises(StartupError, match=f"exceeds the limit of {MAX_FILE_SIZE} bytes"):
        ModelFile.read(path)


def test_without_the_extra_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def refusing(name: str, *rest: Any) -> Any:
        if name == "blake3":
            raise ModuleNotFoundError("No module named 'blake3'", name="blake3")
        return real_import(name, *rest)

    directory = write_tiny_model(tmp_path / "tiny")
    monkeypatch.setattr(builtins, "__import__", refusing)
    with pytest.raises(StartupError, match=r"pip install 'ingress-dispatch\[models\]'"):
        ModelFiles.read(directory)


@pytest.mark.parametrize(
    ("name", "slug"),
    [("m", "m"), ("Qwen/Qwen3-0.6B", "qwen_qwen3-0_6b"), ("Foo Ünd/Bar-1.5:x_Y", "foo__nd_bar-1_5_x_y")],
)
def test_slugs_are_made_as_the_released_library_makes_them(name: str, slug: str) -> None:
    """The last one was written by the 1.6.1 library."""
    assert slug_of(name) == slug


@pytest.mark.parametrize(
    ("card", "complaint"),
    [
        (lambda: ModelCard(""), "1 to 256 printable characters"),
        (lambda: ModelCard("a\nb"), "1 to 256 printable characters"),
        (lambda: ModelCard("m", types="chat"), "model type chat is unknown to the frontend"),
        (lambda: ModelCard("m", types=()), r"model type \(none\) is unknown"),
        (lambda: ModelCard("m", context_length=-1), "context_length must be a whole number"),
        (lambda: ModelCard("m", kv_cache_block_size=True), "kv_cache_block_size must be a whole number"),
        (lambda: ModelCard("m", extra={"x": object()}), "extra fields must be JSON"),
    ],
)
def test_what_the_frontend_would_refuse_is_refused_at_the_start(card: Any, complaint: str) -> None:
    with pytest.raises(StartupError, match=complaint):
        card()


def test_types_follow_the_engine_unless_they_are_given() -> None:
    card = ModelCard("m")
    assert card.types_for(is_unary=True, is_bidirectional=False) == BOTH
    assert card.types_for(is_unary=False, is_bidirectional=True) == ("Realtime",)
    assert card.types_for(is_unary=True, is_bidirectional=True) == (*BOTH, "Realtime")
    given = ModelCard("m", types="Chat | Realtime")
    assert given.types == ("Chat", "Realtime")
    with pytest.raises(StartupError, match="Realtime needs a bidirectional engine"):
        given.types_for(is_unary=True, is_bidirectional=False)
    with pytest.raises(StartupError, match="Chat needs a unary engine"):
        given.types_for(is_unary=False, is_bidirectional=True)


def test_extra_fields_are_written_as_given() -> None:
    extra = {"runtime_config": {"tool_call_parser": "hermes"}, "migration_limit": 3}
    wire = ModelCard("m", extra=extra).to_wire(BOTH)
    assert wire["runtime_config"] == {"tool_call_parser": "hermes"}
    assert wire["migration_limit"] == 3
