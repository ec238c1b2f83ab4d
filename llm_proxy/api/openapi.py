"""The OpenAPI document, made from the operations and the structs that check the requests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec
from msgspec import Struct

from llm_proxy import errors
from llm_proxy.api.operations import Operation, Resource
from llm_proxy.api.pages import Paging
from llm_proxy.api.schema import Changes, Query, doc

_EVERYWHERE: Final = (
    *(errors.Unauthorized, errors.MethodNotAllowed, errors.ProxyError, errors.DatabaseUnavailable),
    errors.InvalidQuery,  # every operation refuses unknown parameters
)
_WITH_BODY: Final = (
    *(errors.InvalidJson, errors.InvalidBody),
    *(errors.RequestTimeout, errors.RequestTooLarge, errors.UnsupportedMediaType),
)
#: The member of an entry that stands for each label that a report is grouped by.
_LABEL: Final = "label.KEY"
_REF: Final = "#/components/schemas/{name}"


class Problem(Struct):
    """Why a request was refused."""

    error: Annotated[str, doc("What happened; the same for every error with this code.")]
    code: Annotated[str, doc("Stable and machine-readable.")]
    description: Annotated[str, doc("What is wrong with this request, and what to do.")]


def document(resources: Sequence[Resource], system: dict[str, Any], version: str) -> dict[str, Any]:
    """Make the document; `system` are the open paths, as OpenAPI describes them."""
    operations = [operation for resource in resources for operation in resource.operations]
    structs = {kind for one in operations for kind in (one.answer, one.body) if kind is not None}
    _, schemas = msgspec.json.schema_components([Problem, *structs], ref_template=_REF)
    for schema in schemas.values():
        schema["additionalProperties"] = False
        if _LABEL in schema.get("properties", ()):
            schema["patternProperties"] = {r"^label\.": schema["properties"].pop(_LABEL)}
        _add_types(schema)
    for struct in structs:
        if issubclass(struct, Changes):
            schemas[struct.__name__]["minProperties"] = 1
    paths: dict[str, Any] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
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
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": {
                "management": {"type": "http", "scheme": "bearer", "description": "The server's MANAGEMENT_TOKEN."}
            },
        },
    }


def schema_of(struct: type[Struct]) -> dict[str, Any]:
    """Describe one struct that refers to no other."""
    _, schemas = msgspec.json.schema_components([struct])
    schema: dict[str, Any] = schemas[struct.__name__]
    _add_types(schema)
    return schema


def _add_types(schema: Any) -> None:
    """Name the type of each enumeration, which msgspec leaves out and code generators want."""
    if isinstance(schema, dict):
        if "enum" in schema:
            schema.setdefault("type", "string")
        for inner in schema.values():
            _add_types(inner)


def _operation(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": [operation.resource.name],
        "security": [{"management": []}],
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": msgspec.json.schema(operation.resource.id.type)}
        for name in re.findall(r"{(\w+)}", operation.path)
    ]
    query = schema_of(operation.query or Query)
    for name, schema in query["properties"].items():
        help_text, required = schema.pop("description"), name in query["required"]
        parameters.append(
            {"name": name, "in": "query", "required": required, "description": help_text, "schema": schema}
        )
    if parameters:
        described["parameters"] = parameters
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": _json(operation.body)}
    success: dict[str, Any] = {"description": operation.summary}
    if operation.answer is not None:
        success["content"] = _json(operation.answer)
        if operation.query is not None and issubclass(operation.query, Paging):
            success["content"]["text/csv"] = {"schema": {"type": "string"}}
    if operation.status == 201:
        success["headers"] = {"Location": {"description": "Its URL.", "schema": {"type": "string"}}}
    described["responses"] = {str(operation.status): success, **_refusals(operation)}
    return described


def _refusals(operation: Operation) -> dict[str, Any]:
    found = [*_EVERYWHERE, *operation.errors, *(_WITH_BODY if operation.body is not None else ())]
    by_status: dict[int, list[type[errors.ProxyError]]] = {}
    for kind in found:
        by_status.setdefault(kind.status, []).append(kind)
    return {
        str(status): {
            "description": "; ".join(f"{kind.error} (`{kind.code}`)" for kind in found),
            "content": _json(Problem),
        }
        for status, found in sorted(by_status.items())
    }


def _json(struct: type[Struct]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REF.format(name=struct.__name__)}}}
