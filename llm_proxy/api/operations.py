"""The operations of the management API, from which its routes, its checks and the OpenAPI document are made.

A handler gets a `Call` and the query or the body, which have been checked, and returns a struct. Everything before it
(management token, ids, query, body) and after it (errors, headers) is the same for every operation and is here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
import structlog
from attrs import Factory, define, field, frozen
from quart import Blueprint, Response, g, request
from werkzeug.exceptions import HTTPException

from db.errors import CommitUnknown, DatabaseError, SchemaMismatch
from llm_proxy.api.auth import Guard
from llm_proxy.api.schema import Body, Check, Field, Id, Query, read_body, read_query
from llm_proxy.errors import (
    DatabaseUnavailable,
    InvalidJson,
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

if TYPE_CHECKING:
    from llm_proxy.services import Services

#: Maximum length of a body in bytes.
BODY_LIMIT: Final = 1024 * 1024
#: On every answer of the management API: it may contain secrets, and is never a page.
HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}

_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")

_ID: Final = Field.of("id", Id)

_log = log.logger("manage")

T = TypeVar("T")
H = TypeVar("H", bound=Callable[..., Awaitable[object]])


@frozen
class Call:
    """One use of an operation; `id` is the one of the path, empty if the path has none."""

    services: Services
    now: datetime
    id: str


@define
class Operation:
    """One method of one path.

    Attributes:
        method, path: as OpenAPI writes them.
        name: OpenAPI's `operationId`, unique.
        answer: what the handler returns; None if the answer is empty.
        status: of the answer.
        check: the mistakes that no single field of the body shows; see `schema.Check`.
        errors: how it can fail beyond what is true of every operation.
        not_found: the error if the id in the path is not valid.
        id: reads the id in the path.
        handle: gets the call, and the query or the body if the operation has one.
    """

    method: str
    path: str
    name: str
    answer: type[msgspec.Struct] | None
    status: int = 200
    query: type[Query] | None = None
    body: type[Body] | None = None
    check: Check = lambda _given, _values, _now: ()
    errors: tuple[type[ProxyError], ...] = ()
    not_found: type[ProxyError] = NotFound
    id: Field = _ID
    handle: Callable[..., Awaitable[object]] = field(init=False)

    @property
    def summary(self) -> str:
        """One sentence, or two: the docstring of the handler."""
        return " ".join((self.handle.__doc__ or "").split())


@define
class Resource:
    """The operations on one kind of thing; `name` is OpenAPI's tag.

    `hints` says, by path and method, what to do instead of an operation that is left out on purpose.
    """

    name: str
    hints: Mapping[tuple[str, str], str] = Factory(dict)
    operations: list[Operation] = Factory(list)

    def add(self, operation: Operation) -> Callable[[H], H]:
        """Add an operation and its handler."""

        def with_handler(handle: H) -> H:
            operation.handle = handle
            self.operations.append(operation)
            return handle

        return with_handler


def found(record: T | None, error: type[ProxyError]) -> T:
    """Give a record; raises the error if there is none."""
    if record is None:
        raise error
    return record


def utc_now() -> datetime:
    """The time."""
    return datetime.now(UTC)


def blueprint(services: Services, resources: Sequence[Resource], clock: Callable[[], datetime]) -> Blueprint:
    """Make the routes of the resources, behind the management token."""
    routes = Blueprint("manage", __name__)
    # An empty token opens nothing: the settings demand one if the management API is to be used.
    guard = Guard(services.settings.management_token or "")

    @routes.before_request
    async def begin() -> None:
        g.request_id = request_id()
        # A request has a task of its own, so this ends with it.
        structlog.contextvars.bind_contextvars(request_id=g.request_id)
        guard.check(request.remote_addr or "", request.headers.getlist("Authorization"))

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

    def add(rule: str, view: Callable[..., Awaitable[Response]]) -> None:
        # The view gets every method, so that a wrong one is refused only after the token was checked.
        routes.add_url_rule(rule, rule.replace(".", ""), view, methods=_METHODS, provide_automatic_options=False)

    def view_of(path: str, operations: Mapping[str, Operation]) -> Callable[..., Awaitable[Response]]:
        async def view(**ids: str) -> Response:
            operation = operations.get(request.method)
            if operation is None:
                raise _method_not_allowed(operations, hints.get((path, request.method), ""))
            return await _perform(operation, services, ids, clock())

        return view

    async def not_found(**_: str) -> Response:
        raise NotFound

    for path, operations in by_path.items():
        add(path.replace("{", "<").replace("}", ">"), view_of(path, operations))
    for rule in ("/manage", "/manage/", "/manage/<path:rest>"):
        add(rule, not_found)
    routes.register_error_handler(ProxyError, _answer_error)
    routes.register_error_handler(DatabaseError, _answer_database_error)
    return routes


async def _perform(operation: Operation, services: Services, ids: Mapping[str, str], now: datetime) -> Response:
    try:
        call = Call(services, now, "".join(map(operation.id.read, ids.values())))
    except ValueError:
        raise operation.not_found from None
    query = read_query(operation.query or Query, request.args.items(multi=True))
    arguments: list[object] = [] if operation.query is None else [query]
    if operation.body is not None:
        arguments.append(read_body(operation.body, await _load(), operation.check, now))
    answer: Any = await operation.handle(call, *arguments)
    if answer is None:
        return Response(b"", operation.status, HEADERS)
    headers = HEADERS
    if operation.status == HTTPStatus.CREATED:
        headers = {**HEADERS, "Location": f"{operation.path}/{answer.id}"}
    return json_response(answer, operation.status, headers)


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


def json_response(body: object, status: int = 200, headers: dict[str, str] = HEADERS) -> Response:
    """Encode a body."""
    return Response(msgspec.json.encode(body), status, headers, content_type="application/json")


def _method_not_allowed(allowed: Iterable[str], hint: str = "") -> MethodNotAllowed:
    methods = tuple(sorted(allowed))
    return MethodNotAllowed(f"{hint} Allowed: {', '.join(methods)}.".strip(), allow=methods)


def _answer_error(error: ProxyError) -> Response:
    headers = dict(HEADERS)
    if error.status == HTTPStatus.UNAUTHORIZED:  # RFC 9110 section 15.5.2
        headers["WWW-Authenticate"] = 'Bearer realm="llm-proxy management"'
    if error.status == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(error.allow)
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    return json_response(management_body(error), error.status, headers)


def _answer_database_error(error: DatabaseError) -> Response:
    """The message of the database goes to the log only."""
    _log.error("the database failed a request", reason=str(error), kind=type(error).__name__)
    description = None
    if isinstance(error, CommitUnknown):
        description = "The connection was lost during the commit: check what was changed, then try again."
    elif isinstance(error, SchemaMismatch):
        description = "Its schema is not the one of this version: run 'llm-proxy migrate up'."
    return _answer_error(DatabaseUnavailable(description))


def answer_http_error(error: HTTPException) -> Response:
    """Answer what the web framework refuses, or a failure of the program, which the framework has logged."""
    code = error.code or HTTPStatus.INTERNAL_SERVER_ERROR
    if code == HTTPStatus.METHOD_NOT_ALLOWED:
        return _answer_error(_method_not_allowed(getattr(error, "valid_methods", None) or ()))
    for kind in (NotFound, RequestTimeout, RequestTooLarge):
        if code == kind.status:
            return _answer_error(kind())
    if code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return _answer_error(ProxyError())
    status = HTTPStatus(code)
    return json_response({"error": status.phrase, "code": status.name.lower(), "description": status.description}, code)
