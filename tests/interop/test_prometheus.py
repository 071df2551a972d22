"""A real Prometheus scrapes a loaded worker: every rule and every query of the dashboard finds what it is about."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio
import yaml

from .peers import prometheus
from .worker_load import ENDPOINT, PLACES_IN_LINE, SLOTS, worker_load

pytestmark = [pytest.mark.interop, pytest.mark.timeout(180)]

DEPLOY = Path(__file__).resolve().parents[2] / "docs" / "examples" / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text(encoding="utf-8"))

# Scrapes often, for the test's sake; four of them are what Grafana makes of $__rate_interval.
INTERVAL = 0.5
RATE_INTERVAL = "2s"

# Guards against hanging; it takes some ten seconds.
PATIENCE = 90.0

# The load provokes everything but this: the worker's log is read.
NOTHING_HAPPENS = {"Log lines dropped"}


@pytest.fixture(autouse=True)
def there_is_a_prometheus() -> None:
    if not prometheus.is_installed():
        assert not prometheus.must_be_there(), "no prometheus and promtool, which `make interop` should have got"
        pytest.skip("prometheus and promtool are not installed; `make interop` gets them where apt-get is")


def promtool(*arguments: str, cwd: Path = DEPLOY / "prometheus", given: str = "") -> str:
    """Run promtool and return what it says; fails where it finds fault."""
    command = [str(prometheus.command("promtool")), *arguments]
    found = subprocess.run(command, cwd=cwd, input=given, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


# -- promtool ----------------------------------------------------------------------------------------------------------


def test_promtool_finds_no_fault_with_the_configuration_and_its_rules() -> None:
    assert "SUCCESS" in promtool("check", "config", "prometheus.yml")
    assert "17 rules found" in promtool("check", "rules", "--lint-fatal", "rules.yml")


def test_every_alert_fires_for_what_it_is_about_and_for_nothing_else() -> None:
    promtool("test", "rules", "rules_test.yml")
    rules = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text(encoding="utf-8"))
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule}
    tested = set(re.findall(r'alertname="(\w+)"', (DEPLOY / "prometheus" / "rules_test.yml").read_text("utf-8")))
    assert alerts == tested


def test_promtool_finds_no_fault_with_the_kubernetes_configuration(tmp_path: Path) -> None:
    configuration = kubernetes_configuration([])
    (tmp_path / "rules.yml").write_bytes((DEPLOY / "prometheus" / "rules.yml").read_bytes())
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(configuration), encoding="utf-8")
    assert "SUCCESS" in promtool("check", "config", "prometheus.yml", cwd=tmp_path)


def kubernetes_configuration(pods: list[dict[str, Any]]) -> dict[str, Any]:
    """The configuration for Kubernetes with pods as its discovery would find them; Debian's build has none."""
    configuration = yaml.safe_load((DEPLOY / "prometheus" / "kubernetes.yml").read_text(encoding="utf-8"))
    (job,) = configuration["scrape_configs"]
    assert job.pop("kubernetes_sd_configs") == [{"role": "pod"}]
    job["static_configs"] = pods
    return configuration  # type: ignore[no-any-return]  # YAML is YAML


# -- a real one --------------------------------------------------------------------------------------------------------


class Prometheus:
    """A started Prometheus and its HTTP API."""

    def __init__(self, url: str) -> None:
        self._http = httpx2.AsyncClient(base_url=f"{url}/api/v1", timeout=10)

    async def get(self, path: str, **parameters: Any) -> Any:
        answer = (await self._http.get(path, params=parameters)).json()
        assert answer["status"] == "success", f"{parameters}: {answer}"
        return answer["data"]

    async def values(self, query: str) -> list[float]:
        """The values that a query gives now, NaN left out."""
        found = (await self.get("/query", query=query))["result"]
        return [value for each in found if not math.isnan(value := float(each["value"][1]))]

    async def aclose(self) -> None:
        await self._http.aclose()


@asynccontextmanager
async def open_prometheus(configuration: dict[str, Any], directory: Path) -> AsyncIterator[Prometheus]:
    """Run a Prometheus on a free port of loopback while inside, with its data in the test's directory."""
    configuration["global"] = dict.fromkeys(("scrape_interval", "evaluation_interval"), f"{INTERVAL * 1000:.0f}ms")
    configuration["global"]["scrape_timeout"] = configuration["global"]["scrape_interval"]
    (directory / "rules.yml").write_bytes((DEPLOY / "prometheus" / "rules.yml").read_bytes())
    (directory / "prometheus.yml").write_text(yaml.safe_dump(configuration), encoding="utf-8")
    command = [
        str(prometheus.command("prometheus")),
        "--config.file=prometheus.yml",
        "--storage.tsdb.path=data",
        "--web.listen-address=127.0.0.1:0",
    ]
    async with running(command, directory, r'msg="Listening on" address=(127\.0\.0\.1:\d+)') as address:
        server = Prometheus(f"http://{address}")
        try:
            yield server
        finally:
            await server.aclose()


@asynccontextmanager
async def running(
    command: list[str], directory: Path, announcement: str, variables: Mapping[str, str] | None = None
) -> AsyncIterator[str]:
    """Run a process while inside; gives what the first group of its announcement on stderr matched."""
    process = await trio.lowlevel.open_process(
        command, cwd=directory, env={**os.environ, **(variables or {})}, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        async with trio.open_nursery() as nursery:
            said = b""
            with trio.fail_after(30):
                while not (match := re.search(announcement.encode(), said)):
                    more = await process.stderr.receive_some()
                    assert more, said.decode()
                    said += more
            nursery.start_soon(_read_on, process.stderr)
            yield match[1].decode()
            nursery.cancel_scope.cancel()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def _read_on(stream: trio.abc.ReceiveStream) -> None:
    while await stream.receive_some():
        pass


def serve_command(file_kv: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "ingress", "serve", "tests.interop.load_engine:generate", "--endpoint", ENDPOINT),
        *("--file-kv", str(file_kv), "--status-port", "0", "--loop-stall-limit", "0.1", "--drain-budget", "0"),
        *("--engine-request-limit", str(SLOTS), "--request-queue-limit", str(PLACES_IN_LINE)),
    ]


def queries() -> Iterator[tuple[str, str]]:
    """Every query of the dashboard with the title of its panel, as Grafana sends it when all is chosen."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"].replace("$__rate_interval", RATE_INTERVAL)
            for variable in DASHBOARD["templating"]["list"]:
                query = query.replace(f"${variable['name']}", variable.get("allValue", ""))
            assert "$" not in query, query
            yield panel["title"], query


async def test_every_query_and_every_rule_finds_what_it_is_about(file_kv: Path, tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    environment = {"DYN_LOGGING_JSONL": "true"}
    async with running(serve_command(file_kv), root, r"status on http://([\d.:]+)", environment) as worker:
        configuration = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
        (tmp_path / "targets.yml").write_text(yaml.safe_dump([{"targets": [worker]}]), encoding="utf-8")
        async with open_prometheus(configuration, tmp_path) as server, worker_load(file_kv):
            await every_query_has_an_answer(server)
            await every_rule_is_evaluated(server)
            await every_variable_has_its_values(server, worker)
            async with httpx2.AsyncClient() as client:
                promtool("check", "metrics", given=(await client.get(f"http://{worker}/metrics")).text)


async def every_query_has_an_answer(server: Prometheus) -> None:
    """Until each has given a value above zero; each must have given one at all."""
    pending = {each: list[float]() for each in queries()}
    assert len(pending) > 40
    with trio.move_on_after(PATIENCE):
        while pending:
            for title, query in list(pending):
                pending[title, query] = await server.values(query)
                if any(value > (-1 if title in NOTHING_HAPPENS else 0) for value in pending[title, query]):
                    del pending[title, query]
            await trio.sleep(INTERVAL / 2)
    assert not pending


async def every_rule_is_evaluated(server: Prometheus) -> None:
    # The worker of this load has an engine that fails and blocks, and is far too small.
    expected = {"IngressLoopBlocked", "IngressRequestsFail", "IngressRequestsRefused"}
    active: set[str] = set()
    with trio.move_on_after(PATIENCE):
        while not expected <= active:
            rules = [rule for group in (await server.get("/rules"))["groups"] for rule in group["rules"]]
            active = {rule["name"] for rule in rules if rule["type"] == "alerting" and rule["alerts"]}
            await trio.sleep(INTERVAL)
    assert expected <= active
    assert not active & {"IngressWorkerDown", "IngressDrainTakesLong", "IngressStartTakesLong"}
    assert {(rule["name"], rule["health"]) for rule in rules} == {(rule["name"], "ok") for rule in rules}
    recorded = [rule["name"] for rule in rules if rule["type"] == "recording"]
    assert len(recorded) == 6
    for name in recorded:
        assert any(value > 0 for value in await server.values(name)), name


async def every_variable_has_its_values(server: Prometheus, worker: str) -> None:
    found = {}
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            match = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert match is not None
            selector = match[1].replace("$job", ".*").replace("$namespace", ".*")
            found[variable["name"]] = await server.get(f"/label/{match[2]}/values", **{"match[]": selector})
    assert found == {"job": ["ingress"], "instance": [worker], "namespace": ["demo"], "endpoint": ["generate"]}


async def test_of_the_pods_of_a_cluster_the_status_ports_of_workers_are_scraped(tmp_path: Path) -> None:
    deployment = next(
        document
        for document in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8"))
        if document["kind"] == "Deployment"
    )["spec"]["template"]
    labels = {f"__meta_kubernetes_pod_label_{_meta(k)}": v for k, v in deployment["metadata"]["labels"].items()}
    annotations = {
        f"__meta_kubernetes_pod_annotation_{_meta(k)}": v for k, v in deployment["metadata"]["annotations"].items()
    }
    (container,) = deployment["spec"]["containers"]

    def pod(name: str, port: str, **other: str) -> dict[str, Any]:
        number = {each["name"]: each["containerPort"] for each in container["ports"]}[port]
        meta = {
            "__meta_kubernetes_namespace": "inference",
            "__meta_kubernetes_pod_name": name,
            "__meta_kubernetes_pod_container_port_name": port,
        }
        return {"targets": [f"127.0.0.1:{number}"], "labels": {**labels, **annotations, **meta, **other}}

    pods = [
        pod("worker-1", "status"),
        pod("worker-1", "request"),
        pod("other-1", "status", __meta_kubernetes_pod_label_app_kubernetes_io_name="frontend"),
        pod("quiet-1", "status", __meta_kubernetes_pod_annotation_prometheus_io_scrape="false"),
    ]
    async with open_prometheus(kubernetes_configuration(pods), tmp_path) as server:
        with trio.fail_after(PATIENCE):
            while not (found := await server.get("/targets"))["activeTargets"]:
                await trio.sleep(INTERVAL)
    (only,) = found["activeTargets"]
    assert only["labels"] == {"instance": "worker-1", "job": "ingress", "namespace": "inference"}
    assert only["scrapeUrl"] == "http://127.0.0.1:9090/metrics"
    assert len(found["droppedTargets"]) == 3


def _meta(name: str) -> str:
    """A label's name as Prometheus writes it into its own."""
    return re.sub(r"[^a-zA-Z0-9_]", "_", name)
