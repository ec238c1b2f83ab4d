from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from attrs import evolve

from llm_proxy import __version__
from llm_proxy.config.checks import reserved
from tests.api.conftest import Api, make_api


def set_failing(api: Api, failing: list[str], *, admits_offline: bool = False) -> None:
    readiness: Any = api.services.readiness
    readiness.reasons, readiness.admits_offline = failing, admits_offline


async def test_health_is_200_while_the_process_responds(api: Api) -> None:
    set_failing(api, ["database", "writer"])
    reply = await api("GET", "/health", token=None)
    assert (reply.status, reply.json) == (200, {"status": "ok", "version": __version__})
    reply = await api("GET", "/live", token=None)
    assert (reply.status, reply.json) == (200, {"status": "alive"})
    assert reply.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("failing", [["database"], ["schema"], ["writer", "draining"]])
async def test_ready_names_what_fails(api: Api, failing: list[str]) -> None:
    reply = await api("GET", "/ready", token=None)
    assert (reply.status, reply.json) == (200, {"status": "ready", "failing": []})
    set_failing(api, failing)
    reply = await api("GET", "/ready", token=None)
    assert (reply.status, reply.json) == (503, {"status": "not ready", "failing": sorted(failing)})


@pytest.mark.parametrize(
    ("failing", "status"),
    [(["database"], 200), (["writer", "database"], 200), (["schema"], 503), (["database", "draining"], 503)],
)
async def test_ready_is_200_in_outage_mode_if_only_the_database_fails(
    api: Api, failing: list[str], status: int
) -> None:
    set_failing(api, failing, admits_offline=True)
    reply = await api("GET", "/ready", token=None)
    assert (reply.status, reply.json["failing"]) == (status, sorted(failing))
    assert reply.json["status"] == ("grace" if status == 200 else "not ready")
    set_failing(api, [], admits_offline=True)
    reply = await api("GET", "/ready", token=None)
    assert (reply.status, reply.json["status"]) == (200, "ready")


async def test_metrics_are_served_in_prometheus_text_format(api: Api) -> None:
    api.services.metrics.refusal("token_invalid")
    reply = await api("GET", "/metrics", token=None)
    assert reply.status == 200
    assert reply.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert b'llm_proxy_refusals_total{code="token_invalid"} 1.0' in reply.data


@pytest.mark.parametrize(
    ("settings", "found"), [({"metrics_path": "/elsewhere"}, ["/elsewhere"]), ({"enable_metrics": False}, [])]
)
async def test_metrics_are_at_their_path_or_not_served(api: Api, settings: dict[str, Any], found: list[str]) -> None:
    other = make_api(evolve(api.services, settings=evolve(api.services.settings, **settings)))
    statuses = {tried: (await other("GET", tried, token=None)).status for tried in ("/metrics", "/elsewhere")}
    assert [tried for tried, status in statuses.items() if status == 200] == found
    described: Iterable[str] = (await other("GET", "/openapi.json")).json["paths"]
    assert [tried for tried in ("/metrics", "/elsewhere") if tried in described] == found


async def test_unknown_paths_and_wrong_methods_get_json_errors(api: Api) -> None:
    reply = await api("GET", "/nowhere", token=None)
    assert (reply.status, reply.json["code"]) == (404, "not_found")
    reply = await api("POST", "/health", {}, token=None)
    assert (reply.status, reply.json["code"]) == (405, "method_not_allowed")
    assert reply.headers["Allow"] == "GET, HEAD, OPTIONS"


async def test_every_route_begins_with_a_reserved_segment(api: Api) -> None:
    rules = [rule.rule for rule in api.app.url_map.iter_rules() if not rule.rule.startswith("/static/")]
    assert len(rules) >= 14
    assert {rule.split("/")[1] for rule in rules} <= reserved(api.services.settings) - {"v1"}
