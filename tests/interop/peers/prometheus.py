"""Get a real Prometheus with its promtool: the machine's own, else Debian's package unpacked under `.peers`.

    python tests/interop/peers/prometheus.py

Unpacked and not installed: an installed one would start to listen on every address of the machine.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3] / ".peers" / "prometheus"
UNPACKED = ROOT / "usr" / "bin"

TIMEOUT = 600.0


class NotAvailable(Exception):
    """There is no Prometheus for this machine; the message says why."""


def command(name: str) -> str | None:
    """Return the path of `prometheus` or `promtool`; None where neither the machine nor `.peers` has it."""
    if found := shutil.which(name):
        return found
    unpacked = UNPACKED / name
    return str(unpacked) if unpacked.exists() else None


def is_installed() -> bool:
    """Say whether both commands are there."""
    return all(command(name) is not None for name in ("prometheus", "promtool"))


def must_be_there() -> bool:
    """Say whether a missing Prometheus is a failure: in CI it is, elsewhere its tests are skipped."""
    return any(os.environ.get(name, "").lower() in ("1", "true") for name in ("INGRESS_CI", "CI"))


def install() -> None:
    """Unpack Debian's package, unless there is a Prometheus already.

    Raises:
        NotAvailable: no Debian here, or the package did not come.
    """
    if is_installed():
        return
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise NotAvailable("no prometheus on this machine, and no apt-get to get it with")
    ROOT.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT.parent) as temporary:
        where = Path(temporary)
        try:
            _run(["apt-get", "download", "-q", "prometheus"], where)
        except NotAvailable:
            # A new machine has no package lists yet, and only root may fetch them.
            if os.geteuid() != 0:
                raise
            _run(["apt-get", "update", "-q"], where)
            _run(["apt-get", "download", "-q", "prometheus"], where)
        (package,) = where.glob("prometheus_*.deb")
        _run(["dpkg-deb", "--extract", str(package), "unpacked"], where)
        _run([str(where / "unpacked" / "usr" / "bin" / "promtool"), "--version"], where)
        shutil.rmtree(ROOT, ignore_errors=True)
        (where / "unpacked").rename(ROOT)


def main() -> int:
    """Install, print one line, return the exit code; outside CI a Prometheus that cannot be had is a note."""
    try:
        install()
    except NotAvailable as error:
        print(f"prometheus: {error}" + ("" if must_be_there() else " (skipped)"), file=sys.stderr, flush=True)
        return 1 if must_be_there() else 0
    print(f"prometheus: {command('prometheus')}", flush=True)
    return 0


def _run(arguments: Sequence[str], where: Path) -> None:
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, cwd=where, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        raise NotAvailable(f"no end after {TIMEOUT:.0f} s: {' '.join(arguments)}") from None
    if done.returncode != 0:
        reason = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise NotAvailable(f"exit code {done.returncode} from {' '.join(arguments)}: {reason}")


if __name__ == "__main__":
    sys.exit(main())
