"""The example of a model behind the frontend, without the frontend; tests/interop runs it with one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

import ingress

EXAMPLE = Path(__file__).resolve().parent.parent / "docs" / "examples" / "09_behind_the_frontend.py"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")


async def test_the_example_announces_its_model_and_turns_words_around(tmp_path: Path) -> None:
    environment = {**os.environ, "DYN_FILE_KV": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    process = await trio.lowlevel.open_process(
        [sys.executable, str(EXAMPLE)], env=environment, stderr=subprocess.DEVNULL
    )
    try:
        with trio.fail_after(60):
            async with ingress.open_client(discovery=ingress.FileDiscovery(tmp_path)) as client:
                await client.wait_for_instances("demo.backwards.generate", timeout=30)
                request = {"messages": [{"role": "user", "content": "one two three"}], "max_tokens": 2}
                async with client.stream("demo.backwards.generate", request) as responses:
                    chunks = [chunk async for chunk in responses]
                assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == "three two "
                assert chunks[-1]["choices"][0]["finish_reason"] == "length"
                assert chunks[-1]["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
                empty = {"messages": [{"role": "user", "content": " "}]}
                with pytest.raises(ingress.RemoteError, match="nothing to turn around"):
                    async with client.stream("demo.backwards.generate", empty) as responses:
                        [chunk async for chunk in responses]
                (card,) = (tmp_path / "v1" / "mdc").iterdir()
                assert json.loads(card.read_text())["card_json"]["model_type"] == "Chat"
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
        assert not card.exists()
    finally:
        if process.returncode is None:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
