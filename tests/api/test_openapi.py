"""The document says what holds: it names every route, and every answer fits to what it says."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest

from tests.api.conftest import Api
from tests.api.test_requests import SWEPT, settled

Document = dict[str, Any]
TYPES = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer", type(None): "null"}


@pytest.fixture
async def document(api: Api) -> Document:
    reply = await api("GET", "/openapi.json", token=None)
    assert (reply.status, reply.headers["Content-Type"]) == (200, "application/json")
    return dict(reply.json)


def in_bounds(schema: dict[str, Any], value: Any) -> bool:
    """Whether a scalar fits to the format and the limits of a schema."""
    if schema.get("format") == "uuid":
        UUID(value)
    elif schema.get("format") == "date-time":
        datetime.fromisoformat(value)
    if isinstance(value, str):
        return bool(schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 1 << 60))
    return bool(schema.get("minimum", 0) <= value <= schema.get("maximum", 1 << 60)) if value is not None else True


def mistakes(document: Document, schema: dict[str, Any], value: Any, where: str = "") -> list[str]:
    """Where a value does not fit to a schema: the part of JSON Schema that the document uses."""
    if "$ref" in schema:
        return mistakes(document, document["components"]["schemas"][schema["$ref"].rpartition("/")[2]], value, where)
    if "anyOf" in schema:
        tried = [mistakes(document, choice, value, where) for choice in schema["anyOf"]]
        return [] if [] in tried else tried[0]
    if "type" in schema and TYPES[type(value)] != schema["type"]:
        return [f"{where} is {value!r}, not {schema}"]
    found: list[str] = []
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{where} is {value!r}")
    if isinstance(value, dict):
        found += [f"{where}.{name} is missing" for name in set(schema.get("required", ())) - set(value)]
        # The values before and after a change may have any names.
        known = schema.get("properties", value)
        found += [f"{where}.{name} is unknown" for name in set(value) - set(known)]
        for name, part in value.items() if "properties" in schema else ():
            found += mistakes(document, known.get(name, {"type": ""}), part, f"{where}.{name}")
    elif isinstance(value, list):
        for number, part in enumerate(value):
            found += mistakes(document, schema["items"], part, f"{where}[{number}]")
    else:
        found += [f"{where} is {value!r}"] * (not in_bounds(schema, value))
    return found


async def test_the_document_has_exactly_the_routes_of_the_app(api: Api, document: Document) -> None:
    routes = {
        re.sub(r"<(\w+)>", r"{\1}", rule.rule)
        for rule in api.app.url_map.iter_rules()
        if not rule.rule.startswith(("/manage/<path:", "/static/")) and rule.rule.rstrip("/") != "/manage"
    }
    assert set(document["paths"]) == routes


async def test_exactly_the_described_methods_are_allowed(api: Api, document: Document) -> None:
    identity = "6f1b4a52-8a39-4c0e-9d0e-6c1f7d1f3b11"
    for path, methods in document["paths"].items():
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
            reply = await api(method, re.sub(r"{\w+}", identity, path), {})
            assert (reply.status != 405) == (method.lower() in methods), (method, path)


async def test_references_resolve_and_operation_ids_are_unique(document: Document) -> None:
    text = str(document)
    schemas = document["components"]["schemas"]
    referred = set(re.findall(r"#/components/schemas/(\w+)", text))
    assert referred == set(schemas)
    names = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(names) == len(set(names)) == 34
    assert document["openapi"] == "3.1.0"
    for path, methods in document["paths"].items():
        for operation in methods.values():
            in_path = {p["name"] for p in operation.get("parameters", []) if p["in"] == "path"}
            assert in_path == set(re.findall(r"{(\w+)}", path))
            assert all(answer["description"] for answer in operation["responses"].values())
            assert operation["security"] == ([{"management": []}] if path.startswith("/manage") else [])


async def test_a_list_takes_a_day_and_a_time_where_the_document_says_so(api: Api, document: Document) -> None:
    examples = {"date": "2026-01-31", "date-time": "2026-01-31T12:00:00%2B02:00"}
    with_times = [path for path, methods in document["paths"].items() if "'from'" in str(methods.get("get"))]
    assert set(with_times) == {f"/manage/{name}" for name in ("requests", "refusals", "usage", "audit")}
    for path in with_times:
        parameters = {one["name"]: one["schema"] for one in document["paths"][path]["get"]["parameters"]}
        for name in ("from", "to"):
            assert [one["format"] for one in parameters[name]["anyOf"]] == ["date", "date-time"]
        for example in examples.values():
            assert (await api("GET", f"{path}?from=2025-01-01&to={example}")).status == 200


async def test_every_response_matches_its_schema(api: Api, document: Document) -> None:
    project = await api.project()
    token = await api.token(project, max_requests=5)
    await api.token(project)
    (row,) = await settled(api, SWEPT)
    paths = {
        "credential_id": project["credentials"][0]["id"],
        "project_id": project["id"],
        "token_id": token["id"],
        "request_id": row.id,
        "limit_id": (await api("POST", "/manage/limits", {"metric": "requests", "window": "day", "amount": 1})).json[
            "id"
        ],
    }
    bodies: dict[str, Any] = {
        "createProject": {"name": "other", "api_key": "k"},
        "createCredential": {"name": "shared", "provider": "openai", "api_key": "k"},
        "updateCredential": {"name": "renamed"},
        "rotateCredential": {"api_key": "k"},
        "updateProject": {"name": "new"},
        "createToken": {"project_id": project["id"]},
        "updateToken": {"max_requests": None},
        "createLimit": {"token_id": token["id"], "metric": "cost", "window": "month", "amount": "50.00"},
        "updateLimit": {"amount": 2},
        "resolveRequest": {"cost": "0.12"},
    }
    last = {"revokeToken": 1, "deleteLimit": 1, "revokeProjectTokens": 2}
    operations = [
        (operation["operationId"], method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if path != "/metrics"
    ]
    for name, method, path, operation in sorted(operations, key=lambda found: last.get(found[0], 0)):
        reply = await api(method.upper(), path.format(**paths), bodies.get(name))
        expected = operation["responses"][str(reply.status)]
        assert reply.status < 300, (name, reply)
        assert ("Location" in reply.headers) == ("headers" in expected)
        if "content" not in expected:
            assert reply.data == b""
        elif name != "getOpenApi":
            schema = expected["content"]["application/json"]["schema"]
            assert mistakes(document, schema, reply.json) == [], name


async def test_every_error_response_is_described(api: Api, document: Document) -> None:
    identity = "6f1b4a52-8a39-4c0e-9d0e-6c1f7d1f3b11"
    for path, methods in document["paths"].items():
        if not path.startswith("/manage"):
            continue
        for method, operation in methods.items():
            url = re.sub(r"{\w+}", identity, path)
            replies = [
                await api(method.upper(), url, {"nonsense": 1}),
                await api(method.upper(), url + "?nonsense=1", {}),
                await api(method.upper(), url, {}, token=None),
                await api(method.upper(), url, data=b"{", headers={"Content-Type": "text/plain"}),
            ]
            for reply in replies:
                if reply.status >= 400:
                    described = operation["responses"][str(reply.status)]
                    assert f"`{reply.json['code']}`" in described["description"]
                    schema = described["content"]["application/json"]["schema"]
                    assert mistakes(document, schema, reply.json) == []


async def test_bodies_are_described_with_their_restrictions(api: Api, document: Document) -> None:
    for name in ("NewProject", "ProjectChanges", "NewCredential", "CredentialChanges", "NewToken", "TokenChanges"):
        assert document["components"]["schemas"][name]["additionalProperties"] is False
    schemas = document["components"]["schemas"]
    assert schemas["NewProject"]["required"] == ["name"]
    assert schemas["NewToken"]["required"] == ["project_id"]
    assert schemas["NewProject"]["properties"]["credentials"]["type"] == "array"
    assert schemas["NewToken"]["properties"]["max_requests"]["anyOf"] == [
        {"type": "integer", "minimum": 1, "maximum": 2**53 - 1},
        {"type": "null"},
    ]
    assert schemas["TokenChanges"]["minProperties"] == 1
