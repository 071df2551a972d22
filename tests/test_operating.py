"""docs/operating.md against the code: its tables, and what it says of pages, files, codes and metrics."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from ingress import make_worker
from ingress.cli._process_pages import process_families
from ingress.cli._supervisor import Slot
from ingress.discovery import MemoryDiscovery
from ingress.status import exposition
from ingress.status._exposition import iter_families

from .reference_tables import PAGE, TABLES, _engine, tables_of
from .serve_options import PROCESS_VARIABLES, known_variables, serve_options

TEXT = PAGE.read_text(encoding="utf-8")
DEPLOY = PAGE.parent / "examples" / "deploy"

NAME = re.compile(r"\b(?:dynamo|ingress)_[a-z0-9_]+\b")


@pytest.mark.parametrize("name", TABLES)
def test_the_table_is_what_the_code_says(name: str) -> None:
    assert dict(tables_of(TEXT))[name] == TABLES[name](), "`python -m tests.reference_tables` writes it anew"


def test_every_variable_and_flag_that_the_page_names_exists() -> None:
    assert set(re.findall(r"\b(?:DYN|INGRESS)_[A-Z_]+\b", TEXT)) <= known_variables() | {*PROCESS_VARIABLES}
    flags = {flag for option in serve_options() for flag in option.flags}
    assert set(re.findall(r"ingress serve[^`\n]* (--[a-z-]+)", TEXT)) <= flags


def sample_names() -> set[str]:
    """The names and labels of a worker's page, and what the page of several processes has besides."""
    worker = make_worker({"demo.backend.generate": _engine}, discovery=MemoryDiscovery())
    worker.metrics.endpoints[0].count_error("generate")
    supervisors = b"".join(iter_families(process_families([Slot(0)])))
    page = exposition(worker.metrics.registry) + supervisors
    return set(NAME.findall(re.sub(r'"[^"]*"', "", page.decode())))


@pytest.mark.parametrize(
    "path",
    [PAGE, DEPLOY / "prometheus" / "rules.yml", DEPLOY / "prometheus" / "rules_test.yml"],
    ids=lambda path: path.name,
)
def test_every_metric_that_a_file_names_is_on_the_page(path: Path) -> None:
    named = set(NAME.findall(path.read_text(encoding="utf-8")))
    assert len(named) > 10
    assert named - sample_names() == set()


def test_every_metric_that_the_dashboard_names_is_on_the_page() -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text(encoding="utf-8"))
    texts = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    texts += [variable["definition"] for variable in dashboard["templating"]["list"] if variable["type"] == "query"]
    named = {name for text in texts for name in NAME.findall(text)}
    assert len(named) > 25
    assert named - sample_names() == set()


def test_no_two_panels_of_the_dashboard_share_an_id_or_a_place() -> None:
    panels = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text(encoding="utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (column, line)
        for panel in panels
        for place in [panel["gridPos"]]
        for column in range(place["x"], place["x"] + place["w"])
        for line in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(column for column, _ in cells) < 24
    assert all(panel["description"] for panel in panels if panel["type"] != "row")


def test_every_alert_says_what_it_is_and_what_to_do() -> None:
    rules = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text(encoding="utf-8"))
    alerts = [rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule]
    assert all(alert["annotations"].keys() == {"summary", "description"} for alert in alerts)
    assert {alert["labels"]["severity"] for alert in alerts} <= {"critical", "warning", "info"}
    assert {alert["alert"] for alert in alerts} == set(re.findall(r"\| `(Ingress\w+)` \|", TEXT))
