"""What can be wrong with a request to the control plane, and how it is answered: `{"error", "code", "description"}`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import ClassVar, Final

import msgspec
from quart import Response
from werkzeug.exceptions import HTTPException

from db.errors import CommitUnknown, DatabaseError, SchemaMismatch
from llm_proxy.logging import log

#: On every answer of the control plane: it is about secrets, and never a page.
HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}

_RETRY_SECONDS: Final = 1

_log = log.logger("manage")


class Problem(Exception):
    """A request to the control plane that is refused.

    Attributes:
        status: HTTP status code.
        code: stable machine-readable code, part of the public contract.
        error: what is the case, in a few words; the same for every problem of this code.
        description: what is wrong with this request and what to do, in whole sentences; never holds a secret.
        headers: further headers of the answer.
    """

    status: ClassVar[int]
    code: ClassVar[str]
    error: ClassVar[str]
    usual: ClassVar[str] = ""

    def __init__(self, description: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        """Take the usual description of this kind of problem where none is given."""
        self.description = self.usual if description is None else description
        self.headers = dict(headers or {})
        super().__init__(self.description)


class InvalidJson(Problem):
    """The body is not JSON."""

    status = 400
    code = "invalid_json"
    error = "The request body is not valid JSON"


class Mistaken(Problem):
    """Some values are not what they must be; the description tells all of them."""

    status = 400

    def __init__(self, mistakes: Iterable[str]) -> None:
        """Join the mistakes, each a clause without a full stop."""
        super().__init__("; ".join(mistakes) + ".")


class InvalidBody(Mistaken):
    """Fields of the body are wrong, unknown or missing."""

    code = "invalid_body"
    error = "The request body is not acceptable"


class InvalidQuery(Mistaken):
    """Parameters of the query are wrong or unknown."""

    code = "invalid_query"
    error = "The query is not acceptable"


class Unauthorized(Problem):
    """The management token is missing or wrong."""

    status = 401
    code = "unauthorized"
    error = "The management API needs the management token"
    usual = "Send the server's MANAGEMENT_TOKEN in the Authorization header as 'Bearer <token>'."

    def __init__(self, description: str | None = None) -> None:
        """Name the scheme, as RFC 9110 section 15.5.2 demands."""
        super().__init__(description, {"WWW-Authenticate": 'Bearer realm="llm-proxy management"'})


class NotFound(Problem):
    """There is no such thing."""

    status = 404
    code = "not_found"
    error = "There is nothing here"
    usual = (
        "Providers are reached under /v1/ or under /<name of the provider>/v1/; the paths of the management API are"
        " described at /openapi.json."
    )


class ProjectNotFound(NotFound):
    """There is no project of this id."""

    code = "project_not_found"
    error = "There is no such project"
    usual = "No project has this id."


class TokenNotFound(NotFound):
    """There is no token of this id."""

    code = "token_not_found"
    error = "There is no such token"
    usual = "No token has this id. A token's id is not its secret."


class RequestNotFound(NotFound):
    """No settled request has this id."""

    code = "request_not_found"
    error = "There is no such request"
    usual = "No finished request has this id (the proxy's or the provider's). Running requests are not listed."


class MethodNotAllowed(Problem):
    """The path does not take this method."""

    status = 405
    code = "method_not_allowed"
    error = "This method is not allowed here"

    def __init__(self, allowed: Iterable[str], hint: str = "") -> None:
        """Name the methods that the path takes."""
        methods = ", ".join(sorted(allowed))
        super().__init__(f"{hint} Allowed: {methods}.".strip(), {"Allow": methods})


class RequestTimeout(Problem):
    """The body did not arrive in time."""

    status = 408
    code = "request_timeout"
    error = "The request body did not arrive in time"


class Conflict(Problem):
    """The request does not fit to how things are."""

    status = 409


class NameTaken(Conflict):
    """Another project has the name."""

    code = "name_taken"
    error = "Another project has this name"
    usual = "Names of projects are unique. Choose another one."


class ProjectInactive(Conflict):
    """The project was deactivated."""

    code = "project_inactive"
    error = "The project is deactivated"
    usual = 'Tokens of a deactivated project open nothing. Activate it first: PATCH it with {"active": true}.'


class TokenRevoked(Conflict):
    """The token was revoked."""

    code = "token_revoked"
    error = "The token is revoked"
    usual = (
        'A new secret would open nothing. Take the revocation back first (PATCH it with {"active": true}),'
        " or make a new token."
    )


class RequestTooLarge(Problem):
    """The body is too long."""

    status = 413
    code = "request_too_large"
    error = "The request body is too large"
    usual = "Bodies of the management API have at most 1 MB."


class UnsupportedMediaType(Problem):
    """The body does not call itself JSON."""

    status = 415
    code = "unsupported_media_type"
    error = "The request body must be JSON"
    usual = "Send it with the header 'Content-Type: application/json'."


class InternalError(Problem):
    """The program is at fault."""

    status = 500
    code = "internal_error"
    error = "The server failed to handle the request"
    usual = "The server's log says why, under this request's id."


class DatabaseUnavailable(Problem):
    """The database cannot serve now."""

    status = 503
    code = "database_unavailable"
    error = "The database is not available at the moment"
    usual = "Nothing was changed. Try again soon."

    def __init__(self, description: str | None = None) -> None:
        """Tell when to try again."""
        super().__init__(description, {"Retry-After": str(_RETRY_SECONDS)})


def answer(problem: Problem) -> Response:
    """Give the response to a request that is refused."""
    body = {"error": problem.error, "code": problem.code, "description": problem.description}
    return Response(
        msgspec.json.encode(body),
        problem.status,
        {**HEADERS, **problem.headers},
        content_type="application/json",
    )


def answer_database(error: DatabaseError) -> Response:
    """Give the response to a request that the database failed; the log has the database's side of it."""
    _log.error("the database failed a request", reason=str(error), kind=type(error).__name__)
    if isinstance(error, CommitUnknown):
        return answer(
            DatabaseUnavailable("The connection was lost during the commit: look what was changed, then try again.")
        )
    if isinstance(error, SchemaMismatch):
        return answer(DatabaseUnavailable("Its schema is not the one of this version: run 'llm-proxy migrate up'."))
    return answer(DatabaseUnavailable())


def answer_http(error: HTTPException) -> Response:
    """Give the response to what the web framework refuses, or to a failure inside (which it has logged)."""
    code = error.code or HTTPStatus.INTERNAL_SERVER_ERROR
    if code == HTTPStatus.METHOD_NOT_ALLOWED:
        return answer(MethodNotAllowed(getattr(error, "valid_methods", None) or ()))
    for kind in (NotFound, RequestTimeout, RequestTooLarge):
        if code == kind.status:
            return answer(kind())
    if code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return answer(InternalError())
    status = HTTPStatus(code)
    body = {"error": status.phrase, "code": status.name.lower(), "description": status.description}
    return Response(msgspec.json.encode(body), code, HEADERS, content_type="application/json")
