"""The reference of HTTP, from the operations of the management API."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from msgspec import Struct

from docs.generate import data_plane
from llm_proxy.api import RESOURCES, operations, pages, system
from llm_proxy.api.openapi import schema_of
from llm_proxy.api.operations import Operation
from llm_proxy.api.schema import Changes
from llm_proxy.errors import MANAGEMENT

_INTRODUCTION = """\
# HTTP

One port (`LISTEN_ADDR`) serves everything, over HTTP/1.1, and with `ENABLE_TLS` over HTTP/2 too.

| path | what it is | needs |
|---|---|---|
| `/v1/…`, `/<provider>/…` | [the providers](#to-a-provider) | a token |
| `/manage/…` | [the management API](#management-api) | `MANAGEMENT_TOKEN` |
| `/health`, `/live`, `/ready` | [health checks](#open-to-all) | nothing |
| `/metrics` (`METRICS_PATH`) | [metrics for Prometheus](metrics.md) | nothing |
| `/openapi.json` | the management API in OpenAPI 3.1 | nothing |

`/manage` and `/metrics` are for internal networks: see [behind a reverse proxy](deployment/reverse-proxy.md). Web pages
of other origins may call the proxy if `CORS_ALLOWED_ORIGINS` contains them.
"""

_MANAGEMENT = f"""\
## Management API

A JSON API with `Authorization: Bearer MANAGEMENT_TOKEN`. The commands under `llm-proxy manage` use it;
[Your first project and token](guides/first-project.md) shows how, step by step.

- A body is a JSON object with `Content-Type: application/json`, of at most {operations.BODY_LIMIT // 1024**2} MiB.
- Unknown fields and parameters are refused, and one error names every mistake.
- Timestamps are RFC 3339 in UTC, e.g. `2030-01-31T12:00:00Z`; a timestamp that you send can have another offset. A
  parameter that also takes a day, e.g. `2030-01-31`, means the time when it begins in UTC.
- Ids are UUIDs, also in capitals, and are not secret.
- A change applies to the next request on every server of the database.
- Lists come in pages: `{{"data": […], "next_cursor": …}}`. `limit` is the maximum number of entries
  (default {pages.DEFAULT_LIMIT}, at most {pages.MAX_LIMIT}), `cursor` is the `next_cursor` of the previous page. On the
  last page, `next_cursor` is null; a page before it can have fewer entries than the limit, even none.
- With `Accept: text/csv`, a list is one CSV table of all entries, the cursor's page and all after it; `limit` is not
  used. Text that a spreadsheet would take for a formula (`=`, `+`, `-`, `@`) begins with an apostrophe. If the
  connection breaks before the end of the response, the table is not complete.
- Changes and refused calls are in the [audit log](operations/audit.md).
- Every response has an `X-LLM-Proxy-Request-ID`, which the lines of the log have too.
- API keys are never returned; the secret of a token is returned once, when it is created or rotated.
"""

_PROBLEMS = """\
### Errors of the management API

`{"error": …, "code": …, "description": …}`: what happened, a stable code for programs, and what is wrong with this
request.
"""

_SYSTEM = """\
## Open to all

| path | response |
|---|---|
| `/health` | 200 while the process runs: `{"status": "ok", "version": "…"}` |
| `/live` | 200 while the process responds: `{"status": "alive"}`. Does not use the database |
"""

#: Names of the types and formats of JSON Schema.
_VALUES = {
    "boolean": "`true`, `false`",
    "array": "list",
    "date": "day",
    "date-time": "timestamp",
    "integer": "whole number",
    "null": "null",
    "object": "JSON object",
    "string": "text",
    "uuid": "UUID",
}


def page() -> str:
    """The whole page, in Markdown."""
    parts = [_INTRODUCTION, *data_plane.sections(), _MANAGEMENT, *_management(), _SYSTEM + _readiness()]
    return "\n".join([*parts, *data_plane.endpoints()])


def _management() -> Iterator[str]:
    for resource in RESOURCES:
        yield f"### {resource.name}\n"
        for operation in resource.operations:
            yield from _operation(operation)
        shown = {entry: None for one in resource.operations if (entry := _entry(one)) is not None}
        for struct in shown:
            yield f"#### {struct.__name__}\n"
            parent = struct.__base__
            if parent in shown:
                yield "The same, and:\n"
            yield _table(struct, sent=False, without=parent.__struct_fields__ if parent in shown else ())
    yield _PROBLEMS
    rows = ["| status | `code` | `error` |", "|---|---|---|"]
    rows += [f"| {kind.status} | `{kind.code}` | {kind.error} |" for kind in MANAGEMENT]
    yield "\n".join([*rows, ""])


def _entry(operation: Operation) -> type[Struct] | None:
    """What an operation answers with, or what the pages of its answer contain."""
    answer = operation.answer
    if answer is not None and answer.__name__.endswith("Page"):
        answer = answer.__annotations__["data"].__args__[0]
    return answer


def _operation(operation: Operation) -> Iterator[str]:
    yield f"#### {operation.method} {operation.path}\n"
    answer = "nothing"
    entry = _entry(operation)
    if entry is not None:
        link = f"[{entry.__name__}](#{entry.__name__.lower()})"
        answer = link if entry is operation.answer else f"a page of {link}"
    refused = ", ".join(f"{kind.status} `{kind.code}`" for kind in operation.errors)
    refused = f" Refused with {refused}." if refused else ""
    yield f"{operation.summary} Answers {operation.status} with {answer}.{refused}\n"
    if operation.query is not None:
        yield "In the query:\n"
        yield _table(operation.query)
    if operation.body is not None:
        some = ", at least one of:" if issubclass(operation.body, Changes) else ":"
        yield f"In the body{some}\n"
        yield _table(operation.body)


def _table(struct: type[Struct], *, sent: bool = True, without: Iterable[str] = ()) -> str:
    schema = schema_of(struct)
    rows = ["| field | value | |", "|---|---|---|"]
    for name, field in schema["properties"].items():
        if name not in without:
            needed = "Required. " if sent and name in schema["required"] else ""
            default = f" Default: {field['default']}." if field.get("default") else ""
            rows.append(f"| `{name}` | {_value(field)} | {needed}{field['description']}{default} |")
    return "\n".join([*rows, ""])


def _value(schema: dict[str, Any]) -> str:
    """Name the type of a value, shorter than its error message does."""
    if "anyOf" in schema:
        return " or ".join(_value(one) for one in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{word}`" for word in schema["enum"])
    if isinstance(schema["type"], list):
        return " or ".join(_VALUES[one] for one in schema["type"])
    return _VALUES[schema.get("format", schema["type"])]


def _readiness() -> str:
    checks = ", ".join(f"`{name}`" for name in system.CHECKS)
    return (
        '| `/ready` | 200 `{"status": "ready", "failing": []}` if requests are served; 503 with `not ready` and some'
        f" of {checks} in `failing`; 200 with `grace` during a database outage with `DB_OUTAGE_POLICY=grace` |\n"
        "| `/metrics` | Prometheus' text format: see [Metrics](metrics.md) |\n"
        "| `/openapi.json` | the management API, as OpenAPI describes it |\n"
    )
