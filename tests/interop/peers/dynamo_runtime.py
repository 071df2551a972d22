"""What differs between releases when a script opens the real runtime."""

import asyncio
import os
import sys
from importlib.metadata import version
from typing import Any, NoReturn

from dynamo.runtime import DistributedRuntime

VERSION = version("ai-dynamo-runtime")
RELEASE = tuple(int(part) for part in VERSION.split(".")[:3])

EVENT_PLANE_SINCE = (1, 3, 1)
"""First release with `event_plane`; before it NATS is turned off by a flag."""

BIDIRECTIONAL_SINCE = (1, 3, 1)
METADATA_SINCE = (1, 3, 1)


def open_runtime() -> Any:
    """Open the runtime on the running loop: file discovery, TCP, no NATS.

    The directory comes from `DYN_FILE_KV`. Call `shutdown()` on the result.
    """
    loop = asyncio.get_running_loop()
    if RELEASE >= EVENT_PLANE_SINCE:
        return DistributedRuntime(loop, "file", "tcp", event_plane="zmq")
    return DistributedRuntime(loop, "file", "tcp", enable_nats=False)


def find_endpoint(runtime: Any, namespace: str, component: str, endpoint: str) -> Any:
    """Return the runtime's handle on one endpoint, to call or to serve."""
    if hasattr(runtime, "endpoint"):
        return runtime.endpoint(f"{namespace}.{component}.{endpoint}")
    return runtime.namespace(namespace).component(component).endpoint(endpoint)


def exit_at_once() -> NoReturn:
    """Leave with code 0 without tearing the interpreter down.

    Rust threads still ask for the interpreter while it ends, which now and then
    aborts the process ("FATAL: exception not rethrown"); seen with 1.0.2 and 1.3.1.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
