"""What the control plane can do: operations in tables, from which the routes, the checks and OpenAPI are made.

A handler gets a `Call` whose parts have been checked, and gives an `Answer`. Everything before it (the management
token, the form of ids, query and body) and after it (errors, headers) is the same for every operation and is here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Any, Final

import msgspec
import structlog
from attrs import Factory, frozen
from quart import Blueprint, Response, g, request
from werkzeug.exceptions import HTTPException

from db.errors import CommitUnknown, DatabaseError, SchemaMismatch
from llm_proxy.api.auth import Guard
from llm_proxy.api.context import Context
from llm_proxy.api.fields import ID, Field, Kind, parse_query, read_values
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
    UnsupportedMediaType,
    management_body,
)
from llm_proxy.identifiers import request_id
from llm_proxy.logging import log

#: Largest body in bytes.
BODY_LIMIT: Final = 1024 * 1024

#: On every answer of the management API: it is about secrets, and never a page.
HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}

_log = log.logger("manage")

_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


@frozen
class Call:
    """One use of an operation: the ids of its path, and its query and body as their tables read them."""

    context: Context
    now: datetime
    ids: Mapping[str, str]
    query: Mapping[str, Any]
    body: Mapping[str, Any]


@frozen
class Answer:
    """What a handler says: a value for JSON, or None for an empty answer."""

    body: object
    headers: Mapping[str, str] = Factory(dict)


@frozen
class Body:
    """The body of an operation.

    Attributes:
        name: of its schema in OpenAPI.
        fields: its table.
        check: what the fields cannot tell one by one; gets the names that were given, the values that are right, and
            the time, and gives a clause for each mistake.
        some: whether it must name a field at all.
    """

    name: str
    fields: tuple[Field, ...]
    check: Callable[[Collection[str], Mapping[str, Any], datetime], Iterable[str]] = lambda _names, _values, _now: ()
    some: bool = False


@frozen
class Operation:
    """One method of one path.

    Attributes:
        method, path: the path as OpenAPI writes it.
        name: unique; OpenAPI's `operationId`.
        summary: one sentence.
        handle: does it.
        answer: name of the schema of its answer, None where that is empty.
        status: of its answer.
        problems: how it can fail, beyond what holds for all.
        missing: the problem where an id of the path is not even of the right kind.
        id_kind: what the ids of the path may be.
    """

    method: str
    path: str
    name: str
    summary: str
    handle: Callable[[Call], Awaitable[Answer]]
    answer: str | None
    status: int = 200
    query: tuple[Field, ...] = ()
    body: Body | None = None
    problems: tuple[type[ProxyError], ...] = ()
    missing: type[ProxyError] = NotFound
    id_kind: Kind = ID


@frozen
class Resource:
    """What can be done with one kind of thing.

    Attributes:
        name: for people; OpenAPI's tag.
        operations: all of them.
        schemas: the things that its answers show, by name.
        hints: what to say, by path and method, where somebody tries what is left out on purpose.
    """

    name: str
    operations: tuple[Operation, ...]
    schemas: Mapping[str, tuple[Field, ...]]
    hints: Mapping[tuple[str, str], str] = Factory(dict)


def blueprint(context: Context, resources: Sequence[Resource]) -> Blueprint:
    """Make the routes of the resources, behind the management token."""
    routes = Blueprint("manage", __name__)
    guard = Guard(context.management_token)

    @routes.before_request
    async def begin() -> None:
        g.request_id = request_id()
        # A request has a task of its own, so this ends with it.
        structlog.contextvars.bind_contextvars(request_id=g.request_id)
        guard.admit(request.remote_addr or "", request.headers.getlist("Authorization"))

    @routes.after_request
    async def name_request(response: Response) -> Response:
        response.headers["X-LLM-Proxy-Request-ID"] = g.request_id
        return response

    by_path: dict[str, dict[str, Operation]] = {}
    hints: dict[tuple[str, str], str] = {}
    for resource in resources:
        hints |= resource.hints
        for operation in resource.operations:
            by_path.setdefault(operation.path, {})[operation.method] = operation
    for path, operations in by_path.items():
        rule = path.replace("{", "<").replace("}", ">")
        view = _view(context, path, operations, hints)
        # All methods come here, so that a wrong one is told apart behind the token like everything else.
        routes.add_url_rule(rule, path, view, methods=_METHODS, provide_automatic_options=False)

    async def nothing(**_: str) -> Response:
        raise NotFound

    for rule in ("/manage", "/manage/", "/manage/<path:rest>"):
        routes.add_url_rule(rule, f"nothing {rule}", nothing, methods=_METHODS, provide_automatic_options=False)
    routes.register_error_handler(ProxyError, answer_error)
    routes.register_error_handler(DatabaseError, answer_database_error)
    return routes


def _view(
    context: Context, path: str, operations: Mapping[str, Operation], hints: Mapping[tuple[str, str], str]
) -> Callable[..., Awaitable[Response]]:
    async def view(**ids: str) -> Response:
        operation = operations.get(request.method)
        if operation is None:
            raise method_not_allowed(operations, hints.get((path, request.method), ""))
        try:
            known = {name: operation.id_kind.read(value) for name, value in ids.items()}
        except ValueError:
            raise operation.missing from None
        return await _perform(context, operation, known)

    return view


async def _perform(context: Context, operation: Operation, ids: Mapping[str, str]) -> Response:
    query = _read_query(operation.query)
    now = context.clock()
    body = {} if operation.body is None else _read_body(operation.body, await _load(), now)
    answer = await operation.handle(Call(context, now, ids, query, body))
    if answer.body is None:
        return Response(b"", 204, {**HEADERS, **answer.headers})
    return json_response(answer.body, operation.status, {**HEADERS, **answer.headers})


def _read_query(fields: tuple[Field, ...]) -> dict[str, Any]:
    given, twice = parse_query(fields, request.args.items(multi=True))
    values, mistakes = read_values(fields, given, "parameter")
    if twice or mistakes:
        raise InvalidQuery("; ".join(mistakes + twice) + ".")
    return values


async def _load() -> object:
    """Read the body as JSON."""
    if request.mimetype != "application/json":
        raise UnsupportedMediaType
    data = await request.get_data(cache=False)
    if len(data) > BODY_LIMIT:
        raise RequestTooLarge
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise InvalidJson(f"{error}.") from None
    except UnicodeDecodeError:
        raise InvalidJson("It is not UTF-8.") from None
    except RecursionError:
        raise InvalidJson("It is nested too deeply.") from None


def _read_body(body: Body, data: object, now: datetime) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise InvalidBody("it must be a JSON object.")
    values, mistakes = read_values(body.fields, data, "field")
    if body.some and not data:
        mistakes.append(f"it names no field (fields: {', '.join(field.name for field in body.fields)})")
    mistakes += body.check(data.keys(), values, now)
    if mistakes:
        raise InvalidBody("; ".join(mistakes) + ".")
    return values


def method_not_allowed(allowed: Iterable[str], hint: str = "") -> MethodNotAllowed:
    """Name the methods that the path takes."""
    methods = tuple(sorted(allowed))
    return MethodNotAllowed(f"{hint} Allowed: {', '.join(methods)}.".strip(), allow=methods)


def answer_error(error: ProxyError) -> Response:
    """Give the response to a request that is refused."""
    headers = dict(HEADERS)
    if error.status == HTTPStatus.UNAUTHORIZED:  # RFC 9110 section 15.5.2
        headers["WWW-Authenticate"] = 'Bearer realm="llm-proxy management"'
    if error.status == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(error.allow)
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    return json_response(management_body(error), error.status, headers)


def answer_database_error(error: DatabaseError) -> Response:
    """Give the response to a request that the database failed; its own message goes to the log only."""
    _log.error("the database failed a request", reason=str(error), kind=type(error).__name__)
    if isinstance(error, CommitUnknown):
        return answer_error(
            DatabaseUnavailable("The connection was lost during the commit: look what was changed, then try again.")
        )
    if isinstance(error, SchemaMismatch):
        return answer_error(
            DatabaseUnavailable("Its schema is not the one of this version: run 'llm-proxy migrate up'.")
        )
    return answer_error(DatabaseUnavailable())


def answer_http_error(error: HTTPException) -> Response:
    """Give the response to what the web framework refuses, or to a failure inside (which it has logged)."""
    code = error.code or HTTPStatus.INTERNAL_SERVER_ERROR
    if code == HTTPStatus.METHOD_NOT_ALLOWED:
        return answer_error(method_not_allowed(getattr(error, "valid_methods", None) or ()))
    for kind in (NotFound, RequestTimeout, RequestTooLarge):
        if code == kind.status:
            return answer_error(kind())
    if code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return answer_error(ProxyError())
    status = HTTPStatus(code)
    return json_response({"error": status.phrase, "code": status.name.lower(), "description": status.description}, code)


def json_response(body: object, status: int = 200, headers: dict[str, str] = HEADERS) -> Response:
    """Encode a body."""
    return Response(msgspec.json.encode(body), status, headers, content_type="application/json")
