"""Prometheus scrapes two workers: every panel and every alert has data, and the sums are those of the clients."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest
import trio
import yaml

from benchmarks.processes import Upstream
from tests.containers import dashboard, monitoring_pages
from tests.containers.traffic import Traffic
from tests.databases.fixtures import lacking
from tests.databases.kinds import on
from tests.harness.deployment import Deployment
from tests.harness.prometheus import ADVICE, FOLDER, Prometheus, find_prometheus, running_prometheus
from tests.harness.server import StartServer

INTERVAL = 0.25
PATIENCE = 90.0
CASES = Path(__file__).with_name("alerts.yaml")
(_GROUP,) = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
RULES: dict[str, str] = {rule["alert"]: rule["expr"] for rule in _GROUP["rules"]}
COMPARISON = re.compile(r" (==|>|<) [\d.]+$")
#: What has no series while all is well is asked about what is there instead.
STAND_INS = {
    "absent(llm_proxy_build_info)": "llm_proxy_build_info",
    "llm_proxy_database_schema_revision < llm_proxy_database_schema_head": "llm_proxy_database_schema_revision",
    'outcome="proxy_error"': 'outcome="upstream_error"',
}
REFUSED, REQUESTS = "sum(llm_proxy_refusals_total)", "sum(llm_proxy_requests_total)"


@pytest.fixture
def prometheus_program() -> str:
    program = find_prometheus()
    if program is None:
        lacking(ADVICE)
    return program


def lines() -> list[dashboard.Query]:
    """All queries of the dashboard, without fallbacks for missing data."""
    found = []
    for panel in dashboard.panels():
        queries = dashboard.queries(panel)
        assert any(not query.expression.endswith(" > 0") for query in queries), (
            f"empty in quiet times: {panel['title']}"
        )
        found += [
            dashboard.Query(q.panel, q.legend, q.expression.removesuffix(" > 0").partition(" or 0 * ")[0])
            for q in queries
        ]
    return found


def alert_queries() -> list[str]:
    """What each alert compares with its threshold."""
    found = []
    for expression in RULES.values():
        text = COMPARISON.sub("", expression)
        for there, here in STAND_INS.items():
            text = text.replace(there, here)
        found.append(text)
    return found


@pytest.mark.usefixtures("prometheus_program")
@on("postgres")
async def test_every_panel_and_alert_has_data_and_the_sums_are_right(
    migrated_env: dict[str, str], start_server: StartServer, upstream: Upstream, tmp_path: Path
) -> None:
    deployment = Deployment(start_server(migrated_env, {"WORKERS": "2"}), upstream)
    traffic = await trio.to_thread.run_sync(Traffic.make, deployment)
    start = time.time()
    with running_prometheus(tmp_path, f"127.0.0.1:{deployment.server.port}", interval="250ms") as prometheus:
        missing = [(query.panel, query.legend, query.asked(INTERVAL)) for query in lines()]
        missing += [("alert", name, query) for name, query in zip(RULES, alert_queries(), strict=True)]
        missing += [("page", "", COMPARISON.sub("", query)) for query in monitoring_pages.expressions()]

        def all_have_data() -> bool:
            missing[:] = [one for one in missing if not prometheus.series(one[2], start, INTERVAL)]
            return not missing

        try:
            await traffic.until(all_have_data, PATIENCE)
        except trio.TooSlowError:
            pytest.fail(f"without data: {missing}\n{prometheus.ask('targets')}")
        await sums_agree(prometheus, traffic)
        await rules_are_evaluated(prometheus)


async def sums_agree(prometheus: Prometheus, traffic: Traffic) -> None:
    """What the clients counted is what Prometheus has, whichever worker answered it."""
    refused = traffic.statuses[401] + traffic.statuses[429]
    sent = [[refused], [traffic.statuses.total() - refused]]
    found: list[list[float]] = []
    with trio.move_on_after(PATIENCE):
        while found != sent:
            found = [await trio.to_thread.run_sync(prometheus.now, query) for query in (REFUSED, REQUESTS)]
            await trio.sleep(INTERVAL)
    assert found == sent, traffic.statuses
    (invalid,) = prometheus.now('sum(llm_proxy_refusals_total{code="token_invalid"})')
    (revoked,) = prometheus.now('sum(llm_proxy_refusals_total{code="token_inactive"})')
    assert invalid + revoked == traffic.statuses[401]
    assert prometheus.now('sum(llm_proxy_refusals_total{code="request_limit_exceeded"})') == [traffic.statuses[429]]
    assert prometheus.now("llm_proxy_workers") == [2]


async def rules_are_evaluated(prometheus: Prometheus) -> None:
    """All alerts are loaded, and each has been evaluated without an error."""
    health: dict[str, str] = {}
    with trio.move_on_after(PATIENCE):
        while set(health.values()) != {"ok"}:
            (group,) = (await trio.to_thread.run_sync(prometheus.ask, "rules"))["groups"]
            health = {rule["name"]: rule["health"] for rule in group["rules"]}
            await trio.sleep(INTERVAL)
    assert health == dict.fromkeys(RULES, "ok")


def approved(*arguments: str) -> str:
    """What promtool prints that finds nothing wrong."""
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.usefixtures("prometheus_program")
class TestRules:
    def test_the_configuration_is_one(self) -> None:
        approved("check", "config", "--syntax-only", str(FOLDER / "prometheus.yaml"))

    def test_the_configuration_of_the_page_is_one(self, tmp_path: Path) -> None:
        there, here = "/etc/prometheus/llm-proxy-alerts.yaml", str(FOLDER / "alerts.yaml")
        (tmp_path / "prometheus.yaml").write_text(monitoring_pages.configuration().replace(there, here))
        said = approved("check", "config", str(tmp_path / "prometheus.yaml"))
        assert f"{len(RULES)} rules found" in said

    def test_each_fires_when_it_should_and_not_before(self) -> None:
        approved("test", "rules", str(CASES))

    def test_each_has_a_case_in_which_it_fires_and_one_in_which_it_does_not(self) -> None:
        cases = [case for test in yaml.safe_load(CASES.read_text())["tests"] for case in test["alert_rule_test"]]
        for fires in (True, False):
            assert {case["alertname"] for case in cases if bool(case["exp_alerts"]) is fires} == set(RULES)
