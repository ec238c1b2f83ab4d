"""The OpenAPI document, made from the tables that check the requests: what it says is what holds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

from llm_proxy.api.fields import Field
from llm_proxy.api.operations import Operation, Resource
from llm_proxy.errors import (
    DatabaseUnavailable,
    InvalidBody,
    InvalidJson,
    InvalidQuery,
    MethodNotAllowed,
    NotFound,
    ProxyError,
    RequestTimeout,
    RequestTooLarge,
    Unauthorized,
    UnsupportedMediaType,
)

_EVERYWHERE: Final = (Unauthorized, MethodNotAllowed, ProxyError, DatabaseUnavailable)
_WITH_BODY: Final = (InvalidJson, InvalidBody, RequestTimeout, RequestTooLarge, UnsupportedMediaType)

_PROBLEM: Final = {
    "type": "object",
    "description": "Why a request was refused.",
    "required": ["error", "code", "description"],
    "properties": {
        "error": {"type": "string", "description": "What is the case, the same for every problem of this code."},
        "code": {"type": "string", "description": "Stable and machine-readable."},
        "description": {"type": "string", "description": "What is wrong with this request, and what to do."},
    },
    "additionalProperties": False,
}


def document(resources: Sequence[Resource], system: dict[str, Any], version: str) -> dict[str, Any]:
    """Make the document.

    Args:
        resources: what is behind the management token.
        system: the paths that are open, as OpenAPI describes them.
        version: of this program.
    """
    paths: dict[str, Any] = {}
    schemas: dict[str, Any] = {"Problem": _PROBLEM}
    for resource in resources:
        for name, fields in resource.schemas.items():
            schemas[name] = _object(fields)
        for operation in resource.operations:
            if operation.body is not None:
                schemas[operation.body.name] = _object(operation.body.fields, some=operation.body.some)
            if operation.answer is not None and operation.answer.endswith("Page"):
                schemas[operation.answer] = _page(operation.answer.removesuffix("Page"))
            paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(resource, operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "LLM Proxy",
            "version": version,
            "summary": "Projects, withering tokens and the ledger of a gateway for LLM APIs.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "tags": [*({"name": resource.name} for resource in resources), {"name": "System"}],
        "paths": paths | system,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "management": {"type": "http", "scheme": "bearer", "description": "The server's MANAGEMENT_TOKEN."}
            },
        },
    }


def _operation(resource: Resource, operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": [resource.name],
        "security": [{"management": []}],
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": dict(operation.id_kind.schema)}
        for name in re.findall(r"{(\w+)}", operation.path)
    ]
    for field in operation.query:
        schema = field.schema
        help_text = schema.pop("description")
        parameters.append(
            {"name": field.name, "in": "query", "required": field.required, "description": help_text, "schema": schema}
        )
    if parameters:
        described["parameters"] = parameters
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": _json(operation.body.name)}
    described["responses"] = _responses(operation)
    return described


def _responses(operation: Operation) -> dict[str, Any]:
    success: dict[str, Any] = {"description": operation.summary}
    if operation.answer is not None:
        success["content"] = _json(operation.answer)
    if operation.status == 201:
        success["headers"] = {"Location": {"description": "Where it is now.", "schema": {"type": "string"}}}
    # Any operation refuses parameters that it does not know.
    kinds: list[type[ProxyError]] = [*_EVERYWHERE, InvalidQuery, *operation.problems]
    if operation.body is not None:
        kinds += _WITH_BODY
    if operation.missing is not NotFound:
        kinds.append(operation.missing)
    return {str(operation.status): success, **_refusals(kinds)}


def _refusals(kinds: Iterable[type[ProxyError]]) -> dict[str, Any]:
    by_status: dict[int, list[type[ProxyError]]] = {}
    for kind in kinds:
        by_status.setdefault(kind.status, []).append(kind)
    return {
        str(status): {
            "description": "; ".join(f"{kind.error} (`{kind.code}`)" for kind in found),
            "content": _json("Problem"),
        }
        for status, found in sorted(by_status.items())
    }


def _json(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _object(fields: Iterable[Field], *, some: bool = False) -> dict[str, Any]:
    fields = tuple(fields)
    described: dict[str, Any] = {
        "type": "object",
        "properties": {field.name: field.schema for field in fields},
        "additionalProperties": False,
    }
    required = [field.name for field in fields if field.required]
    if required:
        described["required"] = required
    if some:
        described["minProperties"] = 1
    return described


def _page(entry: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "data": {"type": "array", "items": {"$ref": f"#/components/schemas/{entry}"}},
            "next_cursor": {
                "type": ["string", "null"],
                "description": "The `cursor` of the next page; null on the last one.",
            },
        },
        "required": ["data", "next_cursor"],
        "additionalProperties": False,
    }
