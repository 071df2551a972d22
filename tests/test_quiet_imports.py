"""Importing a module does nothing but define things: no file, no socket, no process, no thread."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Beside the modules themselves, whose code is opened to be read. What the installed libraries do is theirs.
WATCH = r"""
import importlib, os, sys, threading

ROOT, CODE = sys.argv[1] + os.sep, (".py", ".pyc", ".so", ".pyd")
NOISY = ("socket.bind", "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "subprocess.Popen", "os.system",
         "os.fork", "os.posix_spawn", "os.mkdir", "os.remove", "os.rename", "_thread.start_new_thread")
found = []


def is_ours():
    # The nearest frame that is no part of the import system or the standard library decides.
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if "site-packages" in name or "dist-packages" in name:
            return False
        if name.startswith(ROOT):
            return True
        frame = frame.f_back
    return False


def watch(event, arguments):
    if event == "open":
        path = arguments[0]
        if isinstance(path, int) or os.fsdecode(path).endswith(CODE) or not is_ours():
            return
        found.append(f"{event} {os.fsdecode(path)}")
    elif (event in NOISY or event == "socket.__new__") and is_ours():
        found.append(f"{event} {arguments[1:]!r}")


sys.addaudithook(watch)
for module in sys.argv[2:]:
    before = len(found)
    importlib.import_module(module)
    found[before:] = [f"{module}: {each}" for each in found[before:]]
if threading.active_count() > 1:
    found.append(f"threads: {threading.enumerate()}")
print("\n".join(found))
"""

# What needs a package that is installed for some tasks only.
OPTIONAL = {"engines.llamacpp"}


def modules() -> list[str]:
    names = []
    for package in ("ingress", "shapes", "engines"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return [name for name in names if name not in OPTIONAL and not name.endswith("__main__")]


def imports(*names: str, root: Path = ROOT) -> list[str]:
    command = [sys.executable, "-c", WATCH, str(root), *names]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n") if done.stdout.strip() else []


def test_no_import_opens_a_file_or_a_socket_or_starts_a_thread() -> None:
    names = modules()
    assert len(names) > 100
    assert imports(*names) == []


@pytest.mark.parametrize(
    ("line", "event"),
    [
        ("open('there')", "open"),
        ("import socket; socket.socket()", "socket.__new__"),
        ("import subprocess; subprocess.run(['true'])", "subprocess.Popen"),
        ("import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()", "thread"),
    ],
)
def test_an_import_that_does_is_seen(tmp_path: Path, line: str, event: str) -> None:
    (tmp_path / "there").write_text("")
    (tmp_path / "noisy.py").write_text(f"import sys\nassert sys.path\n{line}\n")
    assert any(event in each for each in imports("noisy", root=tmp_path))
