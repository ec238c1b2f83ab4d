"""The server itself: the open routes (`/health`, `/live`, `/ready`, the metrics, `/openapi.json`), and reloading."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, get_args

from attrs import fields
from msgspec import Struct
from quart import Blueprint, Response

from llm_proxy import __version__
from llm_proxy.api.openapi import schema_of
from llm_proxy.api.operations import HEADERS, Call, Change, Operation, Resource, json_response
from llm_proxy.api.schema import doc
from llm_proxy.config import SettingsError
from llm_proxy.errors import InvalidConfiguration
from llm_proxy.gateway.providers.provider import Provider, Providers
from llm_proxy.logging import log
from llm_proxy.services import Services

RESOURCE: Final = Resource("Server", "server")

_log = log.logger("manage")

Check = Literal["database", "schema", "writer", "draining"]
#: What `/ready` may name.
CHECKS: Final = get_args(Check)
#: What requests can do without for a while, if `DB_OUTAGE_POLICY` is `grace`.
_SPARED_BY_GRACE: Final = {"database", "writer"}
#: Of a provider; their values may be long, and those of static headers secret.
_FIELDS: Final = (
    "base_url",
    *(one.name for one in fields(Provider) if one.init and one.name not in ("name", "origin", "base_path")),
)


class _Health(Struct, forbid_unknown_fields=True):
    status: Literal["ok"]
    version: str


class _Liveness(Struct, forbid_unknown_fields=True):
    status: Literal["alive"]


class _Readiness(Struct, forbid_unknown_fields=True):
    status: Literal["ready", "grace", "not ready"]
    failing: Annotated[list[Check], doc("What keeps the server from serving.")]


def blueprint(services: Services, document: dict[str, Any]) -> Blueprint:
    """Make the open routes; `document` is the answer of `/openapi.json`."""
    routes = Blueprint("system", __name__)
    settings = services.settings

    @routes.get("/health")
    async def health() -> Response:
        return json_response({"status": "ok", "version": __version__})

    @routes.get("/live")
    async def live() -> Response:
        return json_response({"status": "alive"})

    @routes.get("/ready")
    async def ready() -> Response:
        failing = sorted(await services.readiness.failing())
        if failing and set(failing) <= _SPARED_BY_GRACE and services.readiness.admits_offline:
            return json_response({"status": "grace", "failing": failing})
        if failing:
            return json_response({"status": "not ready", "failing": failing}, 503)
        return json_response({"status": "ready", "failing": []})

    @routes.get("/openapi.json")
    async def describe() -> Response:
        return json_response(document)

    if settings.enable_metrics:

        @routes.get(settings.metrics_path)
        async def metrics() -> Response:
            await services.collector.collect()
            body, content_type = services.metrics.render()
            return Response(body, 200, HEADERS, content_type=content_type)

    return routes


def paths(metrics_path: str | None) -> dict[str, Any]:
    described: dict[str, Any] = {
        "/health": _get("getHealth", "Whether the process runs, and its version.", {"200": schema_of(_Health)}),
        "/live": _get("getLiveness", "Whether the process responds.", {"200": schema_of(_Liveness)}),
        "/ready": _get(
            "getReadiness",
            "Whether requests can be served now.",
            {"200": schema_of(_Readiness), "503": schema_of(_Readiness)},
        ),
        "/openapi.json": _get("getOpenApi", "This document.", {"200": {"type": "object"}}),
    }
    if metrics_path is not None:
        described[metrics_path] = _get(
            "getMetrics", "The metrics in Prometheus' text format.", {"200": {"type": "string"}}, "text/plain"
        )
    return described


def _get(name: str, summary: str, answers: dict[str, Any], content_type: str = "application/json") -> dict[str, Any]:
    responses = {
        status: {"description": summary, "content": {content_type: {"schema": schema}}}
        for status, schema in answers.items()
    }
    return {
        "get": {"operationId": name, "summary": summary, "tags": ["System"], "security": [], "responses": responses}
    }


class Reloaded(Struct):
    """What the server serves now."""

    providers: Annotated[list[str], doc("The names of the configured providers.")]
    provider_file: Annotated[str | None, doc("The file that was read, API_CONFIG_PATH; null: none is set.")]
    price_file: Annotated[str | None, doc("The file that was read, PRICES_PATH; null: none is set.")]


@Operation(RESOURCE, "POST", "/manage/reload", "reloadServer", Reloaded, errors=(InvalidConfiguration,))
async def _reload(call: Call) -> Reloaded:
    """Read the provider and price files again. If one is wrong, nothing changes.

    Running requests keep the old configuration.
    """
    services = call.services

    async def record(after: Providers) -> Reloaded:
        before = services.providers
        also = {"apis": _differences(before, after)}
        change = Change(_serving(services, before), _serving(services, after), id="", also=also)
        return await call.write(lambda _: change)

    try:
        await services.reload(record)
    except SettingsError as error:
        raise InvalidConfiguration(str(error)) from None
    answer = _serving(services, services.providers)
    _log.info("provider and price files reloaded", providers=", ".join(answer.providers))
    return answer


def _serving(services: Services, providers: Providers) -> Reloaded:
    files = (services.settings.api_config_path, services.settings.prices_path)
    return Reloaded(list(providers.by_name), *(None if file is None else str(file) for file in files))


def _differences(old: Providers, new: Providers) -> tuple[dict[str, Any], dict[str, Any]]:
    """The entries that differ: where they send API keys, and the names of their other fields that changed."""
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    for name in {**old.by_name, **new.by_name}:
        was, now = old.by_name.get(name), new.by_name.get(name)
        changed = [one for one in _FIELDS if getattr(was, one, None) != getattr(now, one, None)]
        if was is not None and changed:
            before[name] = {"base_url": was.base_url, "auth": was.auth}
        if now is not None and changed:
            after[name] = {"base_url": now.base_url, "auth": now.auth}
            if was is not None:
                after[name]["changed"] = changed
    return before, after
