"""Prometheus itself, on the project's own configuration and alerts, for servers of a test."""

from __future__ import annotations

import http.client
import json
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import yaml
from attrs import frozen

from benchmarks.ports import free_port
from benchmarks.processes import Process
from tests.harness.server import ROOT

FOLDER = ROOT / "containers" / "prometheus"
ADVICE = "no prometheus and promtool: install the package prometheus"
_READY_SECONDS = 60.0


def find_prometheus() -> str | None:
    """The program, or None where it or its promtool is missing."""
    return shutil.which("prometheus") if shutil.which("promtool") else None


@frozen
class Prometheus:
    """A running Prometheus on 127.0.0.1, asked by its HTTP API. Its methods block."""

    port: int

    def ask(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer; raises ValueError with Prometheus's words where it refuses."""
        status, body = self._get(f"/api/v1/{path}?{urlencode(parameters)}")
        if status != http.client.OK:
            raise ValueError(f"{parameters}: {body.decode()}")
        return json.loads(body)["data"]

    def now(self, query: str) -> list[float]:
        """The values of an instant query."""
        return [float(series["value"][1]) for series in self.ask("query", query=query)["result"]]

    def series(self, query: str, start: float, step: float) -> list[tuple[dict[str, str], list[tuple[float, float]]]]:
        """A range query until now: of each series its labels, and its finite values by time."""
        found = self.ask("query_range", query=query, start=str(start), end=str(time.time()), step=str(step))
        return [
            (one["metric"], points)
            for one in found["result"]
            if (points := [(at, float(value)) for at, value in one["values"] if math.isfinite(float(value))])
        ]

    def ready(self) -> bool:
        """Whether it answers."""
        try:
            return self._get("/-/ready")[0] == http.client.OK
        except OSError:
            return False

    def _get(self, target: str) -> tuple[int, bytes]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=_READY_SECONDS)) as connection:
            connection.request("GET", target)
            answer = connection.getresponse()
            return answer.status, answer.read()


def configuration(targets: Sequence[str], interval: str) -> str:
    """The project's configuration with the targets and the pace of the test."""
    wanted = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
    wanted["global"] = dict.fromkeys(wanted["global"], interval)
    (job,) = wanted["scrape_configs"]
    del job["dns_sd_configs"]
    job["static_configs"] = [{"targets": list(targets)}]
    wanted["rule_files"] = [str(FOLDER / Path(name).name) for name in wanted["rule_files"]]
    return yaml.safe_dump(wanted)


@contextmanager
def running_prometheus(folder: Path, *targets: str, interval: str = "250ms") -> Iterator[Prometheus]:
    """A Prometheus that scrapes these addresses."""
    (folder / "prometheus.yaml").write_text(configuration(targets, interval))
    log = folder / "prometheus.log"
    with Process.start(
        (
            find_prometheus() or "prometheus",
            f"--config.file={folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{(port := free_port())}",
        ),
        stderr=log,
    ) as process:
        prometheus = Prometheus(port)
        deadline = time.monotonic() + _READY_SECONDS
        while not prometheus.ready():
            assert process.running, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield prometheus
