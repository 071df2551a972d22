"""Install real Dynamo runtimes, one virtual environment a version.

    python tests/interop/peers/install.py [VERSION...]

Each version lands in `.peers/<version>/` beside the project root, about 275 MB
apiece; `frontend-1.6.1` is the HTTP frontend with the official client of its
API, 425 MB. A stamp file written last marks a finished environment; a second run
reads the stamps and returns at once.
"""

import fcntl
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

DISTRIBUTION = "ai-dynamo-runtime"

FRONTEND = "frontend-1.6.1"

BENCH = "bench"
"""What workers are measured against besides Dynamo; for `make bench` only."""

DEFAULT_VERSIONS = ("1.0.2", "1.2.1", "1.3.1", "1.4.2", "1.6.1", FRONTEND)
"""Oldest supported, first with prompt FIN, first with record codecs, newest."""

# What is installed, one pip command after the other, where it is more than one release of the runtime.
_STEPS: dict[str, tuple[tuple[str, ...], ...]] = {
    # The frontend declares dependencies that do not resolve, and heavy ones that its default processor never imports.
    FRONTEND: (
        (
            *("ai-dynamo-runtime==1.6.1", "aiohttp>=3.9,<4", "certifi", "msgspec>=0.19", "prometheus-client>=0.21"),
            *("pyzmq>=26", "tqdm>=4", "zstandard>=0.23", "packaging>=24", "pyyaml>=6", "openai[realtime]>=3,<4"),
        ),
        ("--no-deps", "ai-dynamo==1.6.1"),
    ),
    BENCH: (("grpcio>=1.80,<2", "uvicorn[standard]>=0.40,<1", "starlette>=1,<2", "msgspec>=0.19"),),
}

# What has to load: a wheel may install and still not do so, say on an older glibc.
_MODULES = {FRONTEND: "dynamo.frontend.main, openai", BENCH: "grpc.aio, uvicorn, uvloop, starlette, msgspec"}

ROOT = Path(__file__).resolve().parents[3] / ".peers"

PIP_NO_WHEEL = "No matching distribution found"

# pip gives up on a silent index by itself; this bounds everything else.
INSTALL_TIMEOUT = 900.0


class InstallError(Exception):
    """A peer could not be installed; the message says which and why."""


def directory(version: str) -> Path:
    """Return where the environment of `version` is, or would be."""
    return ROOT / version


def python(version: str) -> Path:
    """Return the interpreter of the environment of `version`."""
    return directory(version) / "bin" / "python"


def is_installed(version: str) -> bool:
    """Say whether the environment of `version` was completed by this Python."""
    try:
        written = _stamp_path(version).read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    return written == _stamp(version) and python(version).exists()


def install(version: str) -> bool:
    """Make the environment of `version`, unless it is there already.

    Safe to call from several processes at once: the second waits for the first
    and finds the stamp. What an interrupted run left behind is made anew.

    Returns:
        True when something was installed, False when nothing had to change.

    Raises:
        InstallError: no wheel for this platform, or pip failed otherwise.
    """
    if is_installed(version):
        return False
    with _locked():
        if is_installed(version):
            return False
        try:
            _create(version)
        except BaseException:
            shutil.rmtree(directory(version), ignore_errors=True)
            raise
    return True


def main(arguments: Sequence[str]) -> int:
    """Install the versions named, print one line each, return the exit code.

    With ``--if-available`` a missing wheel is a note and not an error, though the exit code tells of it all the same.
    """
    failures = 0
    versions = [argument for argument in arguments if argument != "--if-available"]
    for version in versions or DEFAULT_VERSIONS:
        try:
            changed = install(version)
        except InstallError as error:
            failures += 1
            note = " (skipped)" if "--if-available" in arguments else ""
            print(f"{version}: {error}{note}", file=sys.stderr, flush=True)
        else:
            state = "installed" if changed else "already there"
            print(f"{version}: {state} {directory(version)}", flush=True)
    return 1 if failures else 0


def _create(version: str) -> None:
    _run([sys.executable, "-m", "venv", "--clear", str(directory(version))])
    for packages in _steps(version):
        _run(
            [
                str(python(version)),
                *("-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet"),
                *("install", "--only-binary", ":all:", *packages),
            ]
        )
    _run([str(python(version)), "-c", f"import {_MODULES.get(version, 'dynamo.runtime')}"])
    _stamp_path(version).write_text(_stamp(version), encoding="utf-8")


def _steps(version: str) -> tuple[tuple[str, ...], ...]:
    return _STEPS.get(version, ((f"{DISTRIBUTION}=={version}",),))


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        raise InstallError(f"no end after {INSTALL_TIMEOUT:.0f} s: {' '.join(command)}") from None
    if done.returncode == 0:
        return
    if PIP_NO_WHEEL in done.stderr:
        raise InstallError(
            f"no wheel of {command[-1]} for {platform.system()} {platform.machine()}, "
            f"Python {platform.python_version()}"
        )
    reason = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
    raise InstallError(f"exit code {done.returncode} from {' '.join(command)}: {reason}")


def _stamp_path(version: str) -> Path:
    return directory(version) / ".installed"


def _stamp(version: str) -> str:
    what = " ".join(map(" ".join, _steps(version)))
    return f"{what} python=={platform.python_version()}\n"


@contextmanager
def _locked() -> Iterator[None]:
    ROOT.mkdir(parents=True, exist_ok=True)
    (ROOT / ".gitignore").write_text("*\n", encoding="utf-8")
    with (ROOT / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
