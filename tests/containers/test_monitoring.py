"""The dashboard and the alerts speak of metrics that there are, and every alert has a page to turn to."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from llm_proxy.metrics.families import SECTIONS
from tests.harness.server import ROOT

DASHBOARD = ROOT / "containers" / "grafana" / "dashboards" / "llm-proxy.json"
ALERTS = ROOT / "containers" / "prometheus" / "alerts.yaml"
CHART = ROOT / "helm" / "llm-proxy" / "files"
RUNBOOK = ROOT / "docs" / "operations" / "alerts.md"

_ENDINGS = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
KNOWN = {
    family.name + ending for section in SECTIONS.values() for family in section for ending in _ENDINGS[family.kind]
}
LABELS = {label.name for section in SECTIONS.values() for family in section for label in family.labels} | {
    "job",
    "instance",
    "le",
}


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    return list(group["rules"])


def expressions() -> list[str]:
    shown = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [*shown, *(rule["expr"] for rule in rules())]


def test_every_expression_uses_existing_metrics() -> None:
    for expression in expressions():
        names = set(re.findall(r"\bllm_proxy_\w+", expression))
        assert names, expression
        assert names <= KNOWN, expression
        assert set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)\s*\"", expression)) <= LABELS, expression


def test_every_panel_has_a_description() -> None:
    numbers = [panel["id"] for panel in json.loads(DASHBOARD.read_text())["panels"]]
    assert len(numbers) == len(set(numbers))
    for panel in panels():
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["targets"]


def test_every_alert_has_a_section_in_the_documentation() -> None:
    titles = set(re.findall(r"^## (\w+)$", RUNBOOK.read_text(), re.MULTILINE))
    assert {rule["alert"] for rule in rules()} == titles
    for rule in rules():
        assert rule["annotations"]["runbook"] == f"docs/operations/alerts.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in {"critical", "warning"}


def test_the_chart_has_the_same_alerts_and_dashboard() -> None:
    assert (CHART / "dashboard.json").read_text() == DASHBOARD.read_text()
    assert (CHART / "alerts.yaml").read_text() == ALERTS.read_text()
