"""The operations of the management API, from which its routes, its checks and the OpenAPI document are made.

A handler gets a `Call` and the query or the body, which have been checked, and returns a struct. Everything before it
(management token, ids, query, body) and after it (errors, headers) is the same for every operation and is here.

Every change goes through `Call.write`, which writes its row of the audit log in the same transaction.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import Any, Final, Generic, TypeVar

import msgspec
import structlog
from attrs import Factory, asdict, define, evolve, field, fields, frozen, has
from msgspec import UnsetType, structs
from quart import Blueprint, Response, g, request
from werkzeug.exceptions import HTTPException

from db import Connection
from db.errors import CommitUnknown, DatabaseError, SchemaMismatch
from db.queries import audit
from db.queries.rows import MAX_CANDIDATES, Named
from db.records import AuditEntry
from llm_proxy import errors
from llm_proxy.api.auth import ACTOR, Guard
from llm_proxy.api.pages import Paging, csv_of
from llm_proxy.api.schema import Body, Check, Field, Query, Reference, is_id, quoted, read_body, read_query
from llm_proxy.errors import ManagementError, NotFound, ProxyError
from llm_proxy.identifiers import request_id
from llm_proxy.logging import log
from llm_proxy.logging.redaction import REDACTED, redact
from llm_proxy.services import Services

#: Maximum length of a body in bytes.
BODY_LIMIT: Final = 1024 * 1024
#: The type of a list as a table (RFC 4180).
CSV: Final = "text/csv; charset=utf-8; header=present"
#: On every answer of the management API: it may contain secrets, and is never a page.
HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}

_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")

_REFERENCE: Final = Field.of("id", Reference)

_log = log.logger("manage")

#: Finds the rows that a name may mean.
Find = Callable[[Connection, str], list[Named]]

T = TypeVar("T")
H = TypeVar("H", bound=Callable[..., Awaitable[object]])


@frozen
class Change(Generic[T]):
    """What a transaction of `Call.write` has changed: a record as it was and as it is; the latter goes to the caller.

    Attributes:
        before: None if the record is new.
        after: None if it was deleted.
        id: of the resource. Default: the record's.
        also: what the records do not show: by name, the values before and after.
        credential: a credential that has changed with the record; it has an entry of its own.
    """

    before: object | None
    after: T
    id: str = field(default=Factory(lambda self: self.after.id, takes_self=True), kw_only=True)
    also: Mapping[str, tuple[object, object]] = field(factory=dict, kw_only=True)
    credential: Change[Any] | None = field(default=None, kw_only=True)

    def differences(self) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """The fields that have changed, before and after; of secret ones, that they have changed."""
        old, new = _values(self.before), _values(self.after)
        for name, (value_before, value_after) in self.also.items():
            old[name], new[name] = value_before, value_after
        # When it changed is the entry's own time.
        names = (name for name in (new or old) if name != "updated_at")
        changed = [name for name in names if name not in old or name not in new or old[name] != new[name]]
        kind = type(self.before if self.after is None else self.after)
        secret = {field.name for field in fields(kind) if not field.repr} if has(kind) else set()

        def shown(values: dict[str, Any]) -> dict[str, Any] | None:
            return {name: REDACTED if name in secret else values[name] for name in changed if name in values} or None

        return (None if self.before is None else shown(old)), shown(new)


@frozen
class Call:
    """One use of an operation.

    Attributes:
        id: the one of the path, empty if the path has none.
        entry: of the audit log, in case the call changes something.
    """

    services: Services
    now: datetime
    id: str
    entry: AuditEntry

    async def resolve(self, reference: str | UnsetType, find: Find, missing: type[ManagementError]) -> str:
        """The id that a reference means; empty if it is not set.

        A UUID is an id; anything else is a name, or the last four characters.

        Raises:
            AmbiguousName: it means several.
            ProxyError: `missing`, if nothing has this name. Whether an id exists is not checked.
        """
        if not reference:
            return ""
        if is_id(reference):
            return reference
        named = await self.services.database.read(find, reference)
        if not named:
            raise missing.about_value(quoted(reference))
        if len(named) > 1:
            those = ", ".join(f"{one.id} ({one.name})" if one.name else one.id for one in named)
            more = " and more" if len(named) == MAX_CANDIDATES else ""
            raise errors.AmbiguousName(f"{quoted(reference)} matches {those}{more}. Use the id.")
        return named[0].id

    async def write(self, change: Callable[[Connection], Change[T]]) -> T:
        """Change something in one transaction, which includes the change's entry in the audit log; once per call.

        An operation that is not a GET calls this, whether or not it finds something to change. Raises as
        `Database.write` does, and whatever `change` raises.
        """

        def transaction(connection: Connection) -> T:
            done = change(connection)
            entry = structs.replace(self.entry, outcome="accepted")
            _record(connection, entry, done)
            if done.credential is not None:
                entry = structs.replace(entry, id=request_id(), resource="credential")
                _record(connection, entry, done.credential)
            return done.after

        return await self.services.database.write(transaction)


@define(eq=False)
class Resource:
    """The operations on one kind of thing.

    Attributes:
        name: OpenAPI's tag.
        kind: its name in the audit log.
        not_found: the error if the id in a path is not valid, or nothing has the name in it.
        find: finds by name what a path means; None if only an id is possible.
        id: reads the id in a path, or what `find` finds it by.
        hints: by path and method, what to do instead of an operation that is left out on purpose.
    """

    name: str
    kind: str
    not_found: type[ManagementError] = NotFound
    find: Find | None = None
    id: Field = _REFERENCE
    hints: Mapping[tuple[str, str], str] = Factory(dict)
    operations: list[Operation] = field(factory=list, init=False)

    def on(self, path: str) -> dict[str, Operation]:
        """The operations on a path, by method."""
        return {one.method: one for one in self.operations if one.path == path}


@define(eq=False)
class Operation:
    """One method of one path; decorates its handler, which gets the call, and the query or the body if it has one.

    Attributes:
        method, path: as OpenAPI writes them.
        name: OpenAPI's `operationId`, unique.
        answer: what the handler returns; None if the answer is empty.
        status: of the answer.
        check: the mistakes that no single field of the body shows; see `schema.Check`.
        errors: how it can fail beyond what is true of every operation, and of every path with an id.
    """

    resource: Resource
    method: str
    path: str
    name: str
    answer: type[msgspec.Struct] | None
    status: int = 200
    query: type[Query] | None = None
    body: type[Body] | None = None
    check: Check = lambda _given, _values, _now: ()
    errors: tuple[type[ProxyError], ...] = ()
    handle: Callable[..., Awaitable[object]] = field(init=False)

    def __attrs_post_init__(self) -> None:
        if "{" in self.path:
            self.errors += (self.resource.not_found,)

    def __call__(self, handle: H) -> H:
        self.handle = handle
        self.resource.operations.append(self)
        return handle

    @property
    def summary(self) -> str:
        """One sentence, or two: the docstring of the handler."""
        return " ".join((self.handle.__doc__ or "").split())


def _record(connection: Connection, entry: AuditEntry, change: Change[Any]) -> None:
    before, after = change.differences()
    audit.create(connection, structs.replace(entry, resource_id=change.id, before=before, after=after))


def _values(record: Any) -> dict[str, Any]:
    if record is None:
        return {}
    return asdict(record) if has(type(record)) else structs.asdict(record)


def found(record: T | None, missing: type[ManagementError], reference: str) -> T:
    """Give a record; raises the error, with the reference that was sent, if there is none."""
    if record is None:
        raise missing.about_value(quoted(reference))
    return record


def utc_now() -> datetime:
    return datetime.now(UTC)


def blueprint(
    services: Services,
    resources: Sequence[Resource],
    clock: Callable[[], datetime],
    record_refused: Callable[[AuditEntry], Awaitable[None]],
) -> Blueprint:
    """Make the routes of the resources, behind the management token; refused calls are recorded in the audit log."""
    routes = Blueprint("manage", __name__)
    # An empty token opens nothing: the settings demand one if the management API is to be used.
    guard = Guard(services.settings.management_token or "")
    by_path = {one.path: resource for resource in resources for one in resource.operations}

    @routes.before_request
    async def begin() -> None:
        g.request_id = request_id()
        # A request has a task of its own, so this ends with it.
        structlog.contextvars.bind_contextvars(request_id=g.request_id)
        rule = "" if request.url_rule is None else request.url_rule.rule
        path = rule.replace("<", "{").replace(">", "}")
        g.entry = _entry(by_path.get(path), path, clock())
        guard.check(request.remote_addr or "", request.headers.getlist("Authorization"))
        g.entry = structs.replace(g.entry, actor=ACTOR)

    @routes.after_request
    async def end(response: Response) -> Response:
        response.headers["X-LLM-Proxy-Request-ID"] = g.request_id
        # A call that fails (5xx) is not refused: the log says why, and the database may be the reason.
        if response.status_code < HTTPStatus.INTERNAL_SERVER_ERROR and "error" in g:
            await record_refused(structs.replace(g.entry, status=response.status_code, error=g.error))
        return response

    def add(rule: str, view: Callable[..., Awaitable[Response]]) -> None:
        # The view gets every method, so that a wrong one is refused only after the token was checked.
        routes.add_url_rule(rule, rule.replace(".", ""), view, methods=_METHODS, provide_automatic_options=False)

    def view_of(path: str, resource: Resource) -> Callable[..., Awaitable[Response]]:
        operations = resource.on(path)

        async def view(**ids: str) -> Response:
            operation = operations.get(request.method)
            if operation is None:
                raise _method_not_allowed(operations, resource.hints.get((path, request.method), ""))
            return await _perform(operation, services, ids, g.entry)

        return view

    async def not_found(**_: str) -> Response:
        raise NotFound

    for path, resource in by_path.items():
        add(path.replace("{", "<").replace("}", ">"), view_of(path, resource))
    for rule in ("/manage", "/manage/", "/manage/<path:rest>"):
        add(rule, not_found)
    routes.register_error_handler(ProxyError, _answer_error)
    routes.register_error_handler(DatabaseError, _answer_database_error)
    return routes


def _entry(resource: Resource | None, path: str, now: datetime) -> AuditEntry:
    operation = None if resource is None else resource.on(path).get(request.method)
    identity = ""
    if operation is not None:
        with suppress(ValueError):
            # Redacted, it may be longer than the column, and the call would be missing in the audit log.
            identity = redact(_read_id(operation, request.view_args or {}))[:255]
    return AuditEntry(
        id=g.request_id,
        occurred_at=now,
        actor="",
        # Without the interface of a link-local address (RFC 4007), which means something on this machine only.
        address=(request.remote_addr or "").partition("%")[0],
        operation="" if operation is None else operation.name,
        resource="" if resource is None else resource.kind,
        resource_id=identity,
        outcome="refused",
        status=HTTPStatus.OK if operation is None else operation.status,
    )


def _read_id(operation: Operation, ids: Mapping[str, str]) -> str:
    return "".join(map(operation.resource.id.read, ids.values()))


async def _perform(operation: Operation, services: Services, ids: Mapping[str, str], entry: AuditEntry) -> Response:
    now, resource = entry.occurred_at, operation.resource
    try:
        call = Call(services, now, _read_id(operation, ids), entry)
    except ValueError:
        raise resource.not_found.about_value(quoted("".join(ids.values()))) from None
    if call.id and resource.find is not None:
        identity = await call.resolve(call.id, resource.find, resource.not_found)
        g.entry = structs.replace(entry, resource_id=identity)
        call = evolve(call, id=identity, entry=g.entry)
    query = read_query(operation.query or Query, request.args.items(multi=True))
    arguments: list[object] = [] if operation.query is None else [query]
    if operation.body is not None:
        arguments.append(read_body(operation.body, await _load(), operation.check, now))
    if operation.answer is not None and isinstance(query, Paging) and _wants_csv():
        rows = await csv_of(operation.answer, query, partial(operation.handle, call))
        return Response(rows, operation.status, HEADERS, content_type=CSV)
    answer: Any = await operation.handle(call, *arguments)
    if answer is None:
        return Response(b"", operation.status, HEADERS)
    headers = HEADERS
    if operation.status == HTTPStatus.CREATED:
        headers = {**HEADERS, "Location": f"{operation.path}/{answer.id}"}
    return json_response(answer, operation.status, headers)


def _wants_csv() -> bool:
    return request.accept_mimetypes.best_match(("application/json", "text/csv")) == "text/csv"


async def _load() -> object:
    if request.mimetype != "application/json":
        raise errors.UnsupportedMediaType
    data = await request.get_data(cache=False)
    if len(data) > BODY_LIMIT:
        raise errors.RequestTooLarge
    if not data:
        raise errors.InvalidJson("It is empty.")
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise errors.InvalidJson(f"{error}.") from None
    except UnicodeDecodeError:
        raise errors.InvalidJson("It is not UTF-8.") from None
    except RecursionError:
        raise errors.InvalidJson("It is nested too deeply.") from None


def json_response(body: object, status: int = 200, headers: dict[str, str] = HEADERS) -> Response:
    return Response(msgspec.json.encode(body), status, headers, content_type="application/json")


def _method_not_allowed(allowed: Iterable[str], hint: str = "") -> errors.MethodNotAllowed:
    methods = tuple(sorted(allowed))
    return errors.MethodNotAllowed(f"{hint} Allowed: {', '.join(methods)}.".strip(), allow=methods)


def _answer_error(error: ProxyError) -> Response:
    g.error = error.code
    headers = dict(HEADERS)
    if error.status == HTTPStatus.UNAUTHORIZED:  # RFC 9110 section 15.5.2
        headers["WWW-Authenticate"] = 'Bearer realm="llm-proxy management"'
    if error.status == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(error.allow)
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    return json_response(errors.management_body(error), error.status, headers)


def _answer_database_error(error: DatabaseError) -> Response:
    """The message of the database goes to the log only."""
    _log.error("the database failed a request", reason=str(error), kind=type(error).__name__)
    description = None
    if isinstance(error, CommitUnknown):
        description = "The connection was lost during the commit: check what was changed, then try again."
    elif isinstance(error, SchemaMismatch):
        description = "Its schema is not the one of this version: run 'llm-proxy migrate up'."
    return _answer_error(errors.DatabaseUnavailable(description))


def answer_http_error(error: HTTPException) -> Response:
    """Answer what the web framework refuses, or a failure of the program, which the framework has logged."""
    code = error.code or HTTPStatus.INTERNAL_SERVER_ERROR
    if code == HTTPStatus.METHOD_NOT_ALLOWED:
        return _answer_error(_method_not_allowed(getattr(error, "valid_methods", None) or ()))
    for kind in (NotFound, errors.RequestTimeout, errors.RequestTooLarge):
        if code == kind.status:
            return _answer_error(kind())
    if code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return _answer_error(ProxyError())
    status = HTTPStatus(code)
    g.error = status.name.lower()
    return json_response({"error": status.phrase, "code": g.error, "description": status.description}, code)
