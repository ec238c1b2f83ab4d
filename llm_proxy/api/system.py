"""What anybody may ask a server: whether it lives, whether it can serve, its figures, and how to talk to it."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from quart import Blueprint, Response

from llm_proxy.api.context import Context
from llm_proxy.api.operations import HEADERS, json_response

#: What `/ready` may name.
CHECKS: Final = ("database", "schema", "writer", "draining")
#: What requests can do without for a while, where `DB_OUTAGE_POLICY` lets them.
_NEEDED_BY_BOOKS: Final = {"database", "writer"}


def blueprint(context: Context, document: dict[str, Any]) -> Blueprint:
    """Make the open routes; `document` is what `/openapi.json` answers."""
    routes = Blueprint("system", __name__)
    openapi = msgspec.json.encode(document)

    @routes.get("/health")
    async def health() -> Response:
        return json_response({"status": "ok", "version": context.version})

    @routes.get("/live")
    async def live() -> Response:
        return json_response({"status": "alive"})

    @routes.get("/ready")
    async def ready() -> Response:
        failing = sorted(await context.not_ready())
        if failing and set(failing) <= _NEEDED_BY_BOOKS and context.carries_on():
            return json_response({"status": "grace", "failing": failing})
        if failing:
            return json_response({"status": "not ready", "failing": failing}, 503)
        return json_response({"status": "ready", "failing": []})

    @routes.get("/openapi.json")
    async def describe() -> Response:
        return Response(openapi, 200, HEADERS, content_type="application/json")

    if context.metrics_path is not None:

        @routes.get(context.metrics_path)
        async def metrics() -> Response:
            await context.survey()
            body, content_type = context.metrics.render()
            return Response(body, 200, HEADERS, content_type=content_type)

    return routes


def paths(metrics_path: str | None) -> dict[str, Any]:
    """Describe the open routes to OpenAPI."""
    readiness = _object(
        {
            "status": {"type": "string", "enum": ["ready", "grace", "not ready"]},
            "failing": {
                "type": "array",
                "items": {"type": "string", "enum": list(CHECKS)},
                "description": "What keeps the server from serving.",
            },
        }
    )
    described: dict[str, Any] = {
        "/health": _get(
            "getHealth",
            "Tell that the process runs, and its version.",
            {"200": _object({"status": {"type": "string", "const": "ok"}, "version": {"type": "string"}})},
        ),
        "/live": _get(
            "getLiveness",
            "Tell that the process is not stuck.",
            {"200": _object({"status": {"type": "string", "const": "alive"}})},
        ),
        "/ready": _get(
            "getReadiness", "Tell whether requests can be served now.", {"200": readiness, "503": readiness}
        ),
        "/openapi.json": _get("getOpenApi", "Give this document.", {"200": {"type": "object"}}),
    }
    if metrics_path is not None:
        described[metrics_path] = _get("getMetrics", "Give the figures in Prometheus' text format.", {})
        described[metrics_path]["get"]["responses"] = {
            "200": {"description": "The figures.", "content": {"text/plain": {"schema": {"type": "string"}}}}
        }
    return described


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _get(name: str, summary: str, answers: dict[str, Any]) -> dict[str, Any]:
    responses = {
        status: {"description": summary, "content": {"application/json": {"schema": schema}}}
        for status, schema in answers.items()
    }
    return {
        "get": {"operationId": name, "summary": summary, "tags": ["System"], "security": [], "responses": responses}
    }
