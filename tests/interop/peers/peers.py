"""Command lines and environments of real peers, for whoever starts processes.

Nothing here starts a process except `can_namespace`, so it serves trio,
subprocess and shell scripts alike.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .events import items_sha as items_sha
from .install import BENCH as BENCH
from .install import FRONTEND as FRONTEND
from .install import is_installed as is_installed
from .install import python as python

HERE = Path(__file__).resolve().parent

NAMESPACE_MARK = "INGRESS_PEERS_NAMESPACE"
"""Set to 1 inside the private network namespace."""

# Outside settings that would change where a peer connects or what it prints.
SCRUBBED = ("DYN_", "NATS_", "ETCD_", "OTEL_", "PYTHON")

# 1.0.2 ignores DYN_TCP_RESPONSE_STREAM_HOST and advertises the machine's first
# address; without a default route it refuses to start. 198.51.100.0/24 is
# reserved for documentation, and no packet leaves the pair of devices.
_NAMESPACE_STEPS = (
    "ip link set lo up",
    "ip link add veth0 type veth peer name veth1",
    "ip addr add 198.51.100.1/24 dev veth0",
    "ip link set veth0 up",
    "ip link set veth1 up",
    "ip route add default via 198.51.100.2 dev veth0",
    f"export {NAMESPACE_MARK}=1",
)


def client_command(version: str, namespace: str, component: str, endpoint: str) -> list[str]:
    """Return the command of a real client; see `dynamo_client` for what it reads."""
    return _script(version, "dynamo_client.py", namespace, component, endpoint)


def worker_command(version: str, namespace: str, component: str, *, engine: str = "plain") -> list[str]:
    """Return the command of a real worker; see `dynamo_worker` for its engines."""
    return _script(version, "dynamo_worker.py", namespace, component, "--engine", engine)


def frontend_command(port: int) -> list[str]:
    """Return the command of the real HTTP frontend on a loopback port."""
    return [
        *(str(python(FRONTEND)), "-m", "dynamo.frontend", "--http-host", "127.0.0.1", "--http-port", str(port)),
        *("--discovery-backend", "file", "--request-plane", "tcp", "--event-plane", "zmq"),
    ]


def openai_command(base_url: str) -> list[str]:
    """Return the command of the official OpenAI client; see `openai_client` for what it reads."""
    return _script(FRONTEND, "openai_client.py", base_url)


def raw_client_command(*arguments: str) -> list[str]:
    """Return the command of the frame-printing client, run by our own Python."""
    return [sys.executable, str(HERE / "raw_client.py"), *arguments]


def environment(version: str, file_kv: Path | str, **more: str) -> dict[str, str]:
    """Return the whole environment for a peer of `version` on loopback.

    Args:
        version: The release the environment is for; it decides how the response
            address is written.
        file_kv: The discovery directory which both sides share.
        more: Further variables; they win over everything here.
    """
    settings = {
        "DYN_FILE_KV": os.fspath(file_kv),
        "DYN_TCP_RPC_HOST": "127.0.0.1",
        "DYN_LOG": "error",
        "DYN_SDK_DISABLE_ANSI_LOGGING": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",
        # The drivers import their neighbours; no cache beside our tests.
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    if version == FRONTEND or _release(version) >= (1, 6):
        settings["DYN_TCP_RESPONSE_STREAM_HOST"] = "127.0.0.1"
    elif _release(version) >= (1, 1):
        # An interface name: these releases abort on an address.
        settings["DYN_TCP_RESPONSE_STREAM_HOST"] = "lo"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(SCRUBBED)}
    return kept | settings | more


def needs_namespace(version: str) -> bool:
    """Say whether a client of `version` must run inside `namespaced`."""
    return _release(version) < (1, 1)


def namespaced(command: Sequence[str]) -> list[str]:
    """Wrap a command so that it runs in a private network namespace.

    Everything which is to talk to it has to run in there too: wrap the parent
    of them all, for one a whole pytest. The command replaces the shell, so the
    process id stays the one that was started, and signals reach it.
    """
    return [*_unshare(), "sh", "-c", namespace_script(), "sh", *command]


def namespace_script() -> str:
    """Return the shell text that sets the namespace up and runs its arguments.

    For `unshare -n sh -c "$SCRIPT" sh COMMAND ARGUMENT...`.
    """
    return " && ".join((*_NAMESPACE_STEPS, 'exec "$@"'))


def is_namespaced() -> bool:
    """Say whether this process runs inside `namespaced`."""
    return os.environ.get(NAMESPACE_MARK) == "1"


def can_namespace() -> bool:
    """Try whether this machine lets us make the namespace; takes about 20 ms."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    tried = subprocess.run(namespaced(["true"]), capture_output=True, timeout=10, check=False)
    return tried.returncode == 0


def _unshare() -> list[str]:
    # Without root a user namespace maps us to root inside, where it is allowed.
    return ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-r", "-n"]


def _script(version: str, name: str, *arguments: str) -> list[str]:
    return [str(python(version)), str(HERE / name), *arguments]


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3])
