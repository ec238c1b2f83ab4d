"""The dashboard's panels as Grafana asks for them."""

from __future__ import annotations

import json
from typing import Any

from attrs import frozen

from tests.harness.server import ROOT

FILE = ROOT / "containers" / "grafana" / "dashboards" / "llm-proxy.json"


@frozen
class Query:
    """One query of a panel, with its variables still in it."""

    panel: str
    legend: str
    expression: str

    def asked(self, interval: float) -> str:
        """What Grafana sends while all jobs and instances are chosen, and Prometheus scrapes at this interval (s).

        `$__rate_interval` is four scrapes, or a step and a scrape where that is more:
        https://grafana.com/docs/grafana/latest/datasources/prometheus/template-variables/
        """
        rate = f"{round(4000 * interval)}ms"
        text = self.expression
        for variable, value in (("$__rate_interval", rate), ("$job", ".*"), ("$instance", ".*")):
            text = text.replace(variable, value)
        assert "$" not in text, text
        return text


def panels() -> list[dict[str, Any]]:
    """All panels but the headings of rows, in their order."""
    return [panel for panel in json.loads(FILE.read_text())["panels"] if panel["type"] != "row"]


def queries(panel: dict[str, Any]) -> list[Query]:
    """What a panel asks for."""
    return [Query(panel["title"], target.get("legendFormat", ""), target["expr"]) for target in panel["targets"]]
