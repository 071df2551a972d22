"""A real Dynamo worker; runs inside a peer's environment.

    DYN_FILE_KV=dir python dynamo_worker.py NAMESPACE COMPONENT [--engine NAME]

Serves `generate` and, from 1.3.1 on, `bidi`; see `dynamo_engines` for what they take.
Writes JSON events on stdout:

    {"event":"ready","version":..,"instance_id":..,"endpoints":[..]}   records are on disk
    {"event":"engine","id":..,"state":..,..}      what an engine saw, see `dynamo_engines`
    {"event":"draining"}                          SIGTERM came; runtime.shutdown() called
    {"event":"exit"}                              every endpoint has drained
"""

import argparse
import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

from dynamo_engines import ENGINES, echo_inputs
from dynamo_runtime import (
    BIDIRECTIONAL_SINCE,
    RELEASE,
    VERSION,
    exit_at_once,
    find_endpoint,
    open_runtime,
)
from events import emit

POLL_INTERVAL = 0.005
WITHDRAWAL_LIMIT = 1.0


def records(instance_id: int) -> int:
    """Count the discovery records of this instance."""
    instances = Path(os.environ["DYN_FILE_KV"]) / "v1" / "instances"
    suffix = f"%2F{instance_id:x}"
    if not instances.is_dir():
        return 0
    return sum(record.name.endswith(suffix) for record in instances.iterdir())


async def announce(instance_id: int, endpoints: list[str]) -> None:
    """Say `ready` once all the endpoints can be discovered."""
    while records(instance_id) < len(endpoints):
        await asyncio.sleep(POLL_INTERVAL)
    emit(event="ready", version=VERSION, instance_id=instance_id, endpoints=endpoints)


async def withdraw(instance_id: int) -> None:
    """Wait until the runtime has removed its records; 1.0.2 and 1.2.1 may leave one behind."""
    deadline = time.monotonic() + WITHDRAWAL_LIMIT
    while records(instance_id) and time.monotonic() < deadline:
        await asyncio.sleep(POLL_INTERVAL)


async def main(namespace: str, component: str, engine: str) -> None:
    """Serve until SIGTERM, then drain."""
    runtime = open_runtime()

    def drain() -> None:
        emit(event="draining")
        runtime.shutdown()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, drain)

    generate = find_endpoint(runtime, namespace, component, "generate")
    serving: dict[str, Any] = {"generate": generate.serve_endpoint(ENGINES[engine])}
    if RELEASE >= BIDIRECTIONAL_SINCE:
        bidi = find_endpoint(runtime, namespace, component, "bidi")
        serving["bidi"] = bidi.serve_bidirectional_endpoint(echo_inputs)
    announcing = asyncio.create_task(announce(generate.connection_id(), list(serving)))
    try:
        await asyncio.gather(*serving.values())
    finally:
        announcing.cancel()
    await withdraw(generate.connection_id())
    emit(event="exit")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("namespace")
    parser.add_argument("component")
    parser.add_argument("--engine", choices=sorted(ENGINES), default="plain")
    asyncio.run(main(**vars(parser.parse_args())))
    exit_at_once()
