"""The metrics page of a worker that served over loopback: a released worker's page, and nothing a caller chose."""

from __future__ import annotations

import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import trio
from attrs import evolve
from prometheus_client.parser import text_string_to_metric_families

from ingress import Worker, serving
from ingress._network import TcpNetwork
from ingress.discovery import MemoryDiscovery
from ingress.metrics import ERROR_TYPES, OUTCOMES
from ingress.status import DEFAULT_STALL_LIMIT, StatusOptions
from ingress.wire.messages import ControlWord

from .raw_caller import RawCaller, RawConnection, open_raw_caller

CAPTURE = (Path(__file__).parent / "captures" / "metrics-1.6.1.txt").read_text(encoding="utf-8")

# Guards against hanging.
PATIENCE = 30.0

HOSTILE = 1000


async def engine(request: Any) -> AsyncIterator[Any]:
    if request == "fail":
        raise ValueError
    yield request
    while request == "flood":
        yield "x" * 100_000
    if request == "wait":
        await trio.sleep_forever()


class Served:
    """A worker with its pages, and a caller."""

    def __init__(self, worker: Worker, caller: RawCaller, connection: RawConnection, http: httpx2.AsyncClient) -> None:
        self.worker = worker
        self.caller = caller
        self.connection = connection
        self.http = http

    async def page(self) -> str:
        return (await self.http.get("/metrics")).text

    async def tell(self, body: object, **control: Any) -> None:
        response = await self.caller.call(self.connection, body, **control)
        await response.read_to_sentinel()
        await response.aclose()

    async def outcomes(self) -> dict[tuple[str, str], float]:
        """How the requests ended so far, endpoints taken together."""
        found: dict[tuple[str, str], float] = {}
        for family in text_string_to_metric_families(await self.page()):
            for sample in family.samples:
                if sample.name == "ingress_outcome_total" and sample.value:
                    pair = sample.labels["outcome"], sample.labels["reason"]
                    found[pair] = found.get(pair, 0) + sample.value
        return found

    async def wait_for(self, expected: dict[tuple[str, str], float]) -> None:
        """Wait until the page tells of these outcomes and no other: the worker counts after it has sent."""
        with trio.move_on_after(PATIENCE):
            while await self.outcomes() != expected:
                await trio.sleep(0.02)
        assert await self.outcomes() == expected

    async def one_of_each_error(self) -> None:
        """Let every error happen that a caller can cause, so that its series is there."""
        await self.tell("fail")
        await self.tell(b"not json")
        assert "Server unavailable" in await self.connection.ask(b"junk")
        nobody = self.caller.control(info={"address": "127.0.0.1:1"})
        await self.connection.ask(self.caller.payload("x", nobody))
        # A minute is what a caller that does not read is given.
        for handler in self.worker.handlers.values():
            limits = evolve(handler._dial_backs.limits, write_stall_timeout=0.3)
            handler._dial_backs = evolve(handler._dial_backs, limits=limits)
        await self.caller.call(self.connection, "flood")


@asynccontextmanager
async def open_served() -> AsyncIterator[Served]:
    network = TcpNetwork()
    names = [f"demo.backend.{name}" for name in ("generate", "wait", "chat")]
    async with (
        open_raw_caller(network) as caller,
        serving(
            dict.fromkeys(names, engine),
            discovery=MemoryDiscovery(),
            instance_id=0xDA3721027B42EBEA,
            engine_request_limit=10_000,
            request_queue_limit=40_000,
            linger=0,
            drain_budget=0,
            status=StatusOptions(port=0, loop_stall_limit=DEFAULT_STALL_LIMIT),
        ) as worker,
        httpx2.AsyncClient(base_url=worker.status.url or "", timeout=PATIENCE) as http,
    ):
        yield Served(worker, caller, await caller.connect(worker), http)
        await caller.close_all()


def without_values(page: str) -> set[str]:
    return {line if line.startswith("#") else line.rpartition(" ")[0] for line in page.splitlines()}


async def test_every_line_of_a_released_workers_page_is_on_the_page_of_one_that_served() -> None:
    """Names, types, help texts, labels and their values, buckets: all but the numbers."""
    async with open_served() as served:
        for number in range(5):
            await served.tell(number)
        response = await served.caller.call(served.connection, "wait")
        await response.read_items(1)
        await response.send_word(ControlWord.STOP)
        await response.read_to_end()
        await served.one_of_each_error()
        await served.wait_for(
            {
                ("completed", "ok"): 5,
                ("cancelled", "stop"): 1,
                ("failed", "generate"): 1,
                ("failed", "deserialization"): 1,
                ("failed", "publish_response"): 1,
                ("refused", "invalid_message"): 1,
                ("refused", "response_stream"): 1,
            }
        )
        page = await served.page()
    assert without_values(CAPTURE) - without_values(page) == set()
    surplus = without_values(page) - without_values(CAPTURE)
    # Ours, and the one error of a released worker that happened here and did not happen there.
    names = {re.split(r"[ {]", line.removeprefix("# HELP ").removeprefix("# TYPE "))[0] for line in surplus}
    assert {name for name in names if not name.startswith("ingress_")} == {"dynamo_component_errors_total"}
    assert {line for line in surplus if "errors_total" in line} == {
        'dynamo_component_errors_total{dynamo_component="backend",dynamo_endpoint="generate",'
        'dynamo_namespace="demo",error_type="generate",worker_id="da3721027b42ebea"}'
    }


async def test_of_our_own_families_every_one_is_there_and_tells_of_what_happened() -> None:
    async with open_served() as served:
        for number in range(3):
            await served.tell(number)
        await served.wait_for({("completed", "ok"): 3})
        samples: dict[str, float] = {}
        with trio.fail_after(PATIENCE):
            while not samples.get("ingress_loop_lag_seconds_count"):
                await trio.sleep(0.05)
                samples.clear()
                for family in text_string_to_metric_families(await served.page()):
                    for sample in family.samples:
                        samples[sample.name] = samples.get(sample.name, 0) + sample.value
    own = {name: value for name, value in samples.items() if name.startswith("ingress_")}
    assert own["ingress_chunks_total"] == 3
    assert own["ingress_flush_bytes_count"] >= 3
    assert own["ingress_flush_bytes_sum"] > 0
    assert own["ingress_drain_phase"] == own["ingress_build_info"] == 1
    assert own["ingress_slow_readers"] == own["ingress_slow_reader_seconds_total"] == 0
    assert own["ingress_loop_stalls_total"] == own["ingress_log_lines_dropped_total"] == 0


async def test_a_thousand_hostile_callers_make_no_series() -> None:
    chosen = random.Random(1)  # a fixed seed: the same thousand every time

    def text() -> str:
        letters = 'abc"\\{}=,# \n\r\t\0\x1b\u202e\u2028é{le="1"} 1e9'
        return "evil" + "".join(chosen.choices(letters, k=chosen.randrange(1, 60)))

    async with open_served() as served:
        await served.tell("fine")
        await served.one_of_each_error()
        await served.connection.ask(b"junk", path="nowhere")
        with trio.fail_after(PATIENCE):
            while ("failed", "publish_response") not in await served.outcomes():
                await trio.sleep(0.02)
        before = without_values(await served.page())

        caller, connection = served.caller, served.connection
        prefix = connection.path.rpartition("/")[0]
        for number in range(HOSTILE):
            headers = {text(): text(), "traceparent": text(), "x-frontend-send-ts-ns": text()}
            control = caller.control(
                request_id=text(),
                metadata={text(): text()},
                frontend_send_ts_ns=chosen.randrange(2**70),
                transport=chosen.choice(["tcp_server", "tcp_server", text()]),
                info={"subject": text(), "context": text(), **({"address": text()} if number % 3 else {})},
            )
            path = chosen.choice([connection.path, connection.path, text(), f"{prefix}/{text()}"])
            ack = await connection.ask(caller.payload({text(): text()}, control), path=path, headers=headers)
            if ack == "":
                response = await caller.accept()
                await response.read_to_sentinel()
                await response.aclose()
            if number % 20 == 0:
                name = re.sub(r"[^a-z]", "", text())
                await served.http.request(
                    chosen.choice(["GET", "PUT", "EVIL"]), f"/{name}?{name}", headers={name: name}
                )
                await served.http.post(f"/engine/{name}", content=text().encode())
        page = await served.page()
        counted = await served.outcomes()
    assert without_values(page) == before
    assert "evil" not in page
    assert sum(counted.values()) == HOSTILE + 7
    reasons = {reason for reasons in OUTCOMES.values() for reason in reasons} | {"unknown_endpoint"}
    assert {reason for _, reason in counted} <= reasons
    assert set(re.findall(r'error_type="(\w+)"', page)) <= set(ERROR_TYPES)
