"""The one table of errors that a client can get, and a renderer for each shape of error body.

A class is a row of the table, so that `except` can select it; its docstring says what its texts cannot. An error is
raised where it is found and rendered in one place: `gateway/relay.py` for clients of a provider, in the shape of that
provider so that its SDKs raise their own exceptions, and `api/operations.py` for clients of the management API.

The SDKs choose the exception by the status, and take what they show from the body. Both retry 408, 409, 429 and every
5xx unless the response has `x-should-retry: false`, and wait for `Retry-After` seconds if it is sent. Claude Code also
retries a 401, for minutes, and obeys that header.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, ClassVar, Final, Literal, Self

#: The shape of the error bodies of a provider's API.
Shape = Literal["openai", "anthropic", "google", "aws"]

#: For each status: `error.type` of OpenAI and of Anthropic, `error.status` of Google (the nearest one of
#: `google.rpc.Code`), and the exception of Amazon Bedrock's runtime API.
_TYPES: Final = {
    400: ("invalid_request_error", "invalid_request_error", "INVALID_ARGUMENT", "ValidationException"),
    401: ("invalid_request_error", "authentication_error", "UNAUTHENTICATED", "AccessDeniedException"),
    403: ("invalid_request_error", "permission_error", "PERMISSION_DENIED", "AccessDeniedException"),
    404: ("invalid_request_error", "not_found_error", "NOT_FOUND", "ResourceNotFoundException"),
    405: ("invalid_request_error", "invalid_request_error", "UNIMPLEMENTED", "ValidationException"),
    408: ("invalid_request_error", "invalid_request_error", "DEADLINE_EXCEEDED", "ModelTimeoutException"),
    413: ("invalid_request_error", "request_too_large", "INVALID_ARGUMENT", "ValidationException"),
    426: ("invalid_request_error", "invalid_request_error", "FAILED_PRECONDITION", "ValidationException"),
    429: ("insufficient_quota", "rate_limit_error", "RESOURCE_EXHAUSTED", "ServiceQuotaExceededException"),
    500: ("server_error", "api_error", "INTERNAL", "InternalServerException"),
    502: ("server_error", "api_error", "UNAVAILABLE", "ServiceUnavailableException"),
    503: ("server_error", "api_error", "UNAVAILABLE", "ServiceUnavailableException"),
    504: ("server_error", "timeout_error", "DEADLINE_EXCEEDED", "ModelTimeoutException"),
}
#: The same for a 429 that passes by waiting.
_SLOW_DOWN: Final = ("requests", "rate_limit_error", "RESOURCE_EXHAUSTED", "ThrottlingException")


class ProxyError(Exception):
    """The proxy itself is at fault; see the log (request id).

    Attributes:
        status: HTTP status code.
        code: stable machine-readable code, part of the public contract.
        types: its types in the shapes of OpenAI, Anthropic, Google and AWS; those of its status, if it has none.
        message: one sentence for a client of a provider; never contains a secret, a path of this machine or a driver's
            message. Empty if only the management API answers with this error.
        error, description: the same for a client of the management API: what happened, identical for all errors of
            this code; then what is wrong with this request and what to do. `error` is empty if only the data plane
            answers with this error.
        param: name of the request parameter that is wrong.
        retry_after: seconds after which a retry may succeed; becomes the `Retry-After` header.
        allow: methods for the `Allow` header of a 405.
        token_id, project_id, provider, limit_id: for the log; empty until they are known.
        limits, judged_at: the state of the limits that judged the request (`ledger.limits.LimitState`), and the
            database's time then.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    types: ClassVar[tuple[str, str, str, str]] = _TYPES[500]
    message: str = "The proxy failed to handle the request."
    error: ClassVar[str] = "The server failed to handle the request"
    description: str = "The server's log says why, under this request's id."
    retry_after: int | None = None

    def __init_subclass__(cls) -> None:
        if "status" in vars(cls) and "types" not in vars(cls):
            cls.types = _TYPES.get(cls.status, cls.types)

    def __init__(
        self,
        message: str | None = None,
        *,
        param: str | None = None,
        retry_after: int | None = None,
        allow: tuple[str, ...] = (),
    ) -> None:
        """Set what differs from the row; `message` replaces the row's `message` and `description`."""
        if message is not None:
            self.message = self.description = message
        if retry_after is not None:
            self.retry_after = retry_after
        self.param = param
        self.allow = allow
        self.token_id = self.project_id = self.provider = self.limit_id = ""
        self.limits: tuple[Any, ...] = ()
        self.judged_at: datetime | None = None
        super().__init__(self.message or self.description)

    def about(self, token_id: str, project_id: str, provider: str) -> Self:
        """Note whose request it was."""
        self.token_id, self.project_id, self.provider = token_id, project_id, provider
        return self


class DataPlaneError(ProxyError):
    """An error of the data plane; a row with an `error` is one of the management API too."""

    error = description = ""


class BadRequest(DataPlaneError):
    status, code = 400, "bad_request"
    message = "A header of the request contains a control character."


class ParameterNotAllowed(BadRequest):
    code = "parameter_not_allowed"
    message = "A parameter of this request has a value that is not allowed here."


class HeaderRequired(BadRequest):
    code = "header_required"
    message = "A required header is missing."


class CostUnbounded(BadRequest):
    code = "cost_unbounded"
    message = "The maximum cost of this request cannot be computed, and a reserved limit applies."


class InvalidPath(BadRequest):
    code = "invalid_path"
    message = (
        "The request path is ambiguous and is refused: send it without dot segments, '//', ';' or encoded separators"
        " or letters."
    )


class InvalidJson(BadRequest):
    code = "invalid_json"
    message = "The request body is not valid JSON."
    error = "The request body is not valid JSON"


class TokenMissing(DataPlaneError):
    status, code = 401, "token_missing"
    message = (
        "No API token was sent. Put your proxy token in the Authorization header as 'Bearer <token>', or in x-api-key."
    )


class TokenInvalid(DataPlaneError):
    status, code = 401, "token_invalid"
    message = "The API token is unknown. Ask the operator of this proxy for a new one."


class TokenInactive(DataPlaneError):
    status, code = 401, "token_inactive"
    message = "The API token was revoked. Ask the operator of this proxy for a new one."


class TokenExpired(DataPlaneError):
    status, code = 401, "token_expired"
    message = "The API token has expired. Ask the operator of this proxy for a new one."


class ProjectInactive(DataPlaneError):
    status, code = 403, "project_inactive"
    message = "The project that this token belongs to is deactivated."


class CredentialMissing(DataPlaneError):
    status, code = 403, "credential_missing"
    message = "The project that this token belongs to has no credential for this provider."


class CredentialInactive(DataPlaneError):
    status, code = 403, "credential_inactive"
    message = "The credential that this token's project uses at this provider is deactivated."


class OriginNotAllowed(DataPlaneError):
    status, code = 403, "origin_not_allowed"
    message = "Requests from this origin are not allowed."


class ModelNotAllowed(DataPlaneError):
    status, code = 403, "model_not_allowed"
    message = "This model is not allowed for this API token."


class ModelNotPriced(DataPlaneError):
    status, code = 403, "model_not_priced"
    message = "This model has no price, and a cost limit applies."


class ListNotIsolated(DataPlaneError):
    status, code = 403, "list_not_isolated"
    message = (
        "Several projects use the credential of this provider, so its objects cannot be listed: the list would show"
        " those of other projects. Ask the operator for a credential that only your project uses."
    )


class ObjectNotFound(DataPlaneError):
    status, code = 404, "object_not_found"
    message = "This token's project has no such object at this provider."


class EndpointNotAllowed(DataPlaneError):
    status, code = 404, "endpoint_not_allowed"
    message = "This endpoint is not available through this proxy."


class MethodNotAllowed(DataPlaneError):
    status, code = 405, "method_not_allowed"
    message = "This method is not allowed here."
    error = "This method is not allowed here"


class RequestTimeout(DataPlaneError):
    status, code = 408, "request_timeout"
    message = "The body of the request did not arrive in time."
    error = "The request body did not arrive in time"


class RequestTooLarge(DataPlaneError):
    status, code = 413, "request_too_large"
    message = "The request body is larger than this proxy accepts."
    error, description = "The request body is too large", "Bodies of the management API have at most 1 MiB."


class UpgradeRequired(DataPlaneError):
    status, code = 426, "upgrade_required"
    message = "This proxy does not speak WebSocket. Send the request as a plain HTTP request."


class RequestLimitExceeded(DataPlaneError):
    status, code = 429, "request_limit_exceeded"
    message = "The API token has used up its request limit. Ask the operator of this proxy to raise it."


class RateLimitExceeded(DataPlaneError):
    status, code, types = 429, "rate_limit_exceeded", _SLOW_DOWN
    message = "A rate limit of this API token, its project or this proxy is reached."


class BudgetExceeded(DataPlaneError):
    status, code = 429, "budget_exceeded"
    message = "A budget of this API token, its project or this proxy is used up."


class BudgetReserved(DataPlaneError):
    status, code, types = 429, "budget_reserved", _SLOW_DOWN
    message = "Running requests have reserved what is left of a budget. Send the request again soon."


class UpstreamUnreachable(DataPlaneError):
    status, code = 502, "upstream_unreachable"
    message = "The provider could not be reached, or closed the connection before it responded."


class CredentialNotExchanged(UpstreamUnreachable):
    """The same for a client: the provider's token endpoint, or a file that it needs, is at fault."""


class UpstreamTimeout(DataPlaneError):
    status, code = 504, "upstream_timeout"
    message = "The provider did not answer in time."


class DatabaseUnavailable(DataPlaneError):
    status, code, retry_after = 503, "database_unavailable", 1
    message = "The proxy's database is unavailable. Nothing was sent to the provider."
    error, description = "The database is unavailable", "Nothing was changed. Try again soon."


class DatabaseAway(DatabaseUnavailable):
    """The same, and it is certain that nothing of the request is, or will be, in the database."""


class TokenLocked(DatabaseUnavailable):
    """Another transaction holds the token's row, or a limit's counter; nothing of the request is in the database.

    `counter`: the id of one that does not exist yet.
    """

    counter: str | None = None
    message = "Another transaction in the proxy's database holds this API token. Nothing was sent to the provider."


class Overloaded(DataPlaneError):
    status, code, retry_after = 503, "overloaded", 1
    message = "The proxy is handling as many requests as it is configured for."


class BodyNotRead(Overloaded):
    """The body must be read, but by what its head was judged it did not have to be: the project has changed since.

    The relay reads the body and asks again, so clients do not see this error.
    """

    message = "The settings of the project were changed meanwhile. Send the request again."


class ManagementError(ProxyError):
    """An error of the management API alone."""

    message = ""

    @classmethod
    def about_value(cls, shown: str) -> Self:
        """Add a value that was sent, as it may be shown, to the first sentence of the description."""
        first, end, rest = cls.description.partition(".")
        return cls(f"{first}: {shown}{end}{rest}")


class InvalidBody(ManagementError):
    status, code, error = 400, "invalid_body", "The request body is not acceptable"


class InvalidQuery(ManagementError):
    status, code, error = 400, "invalid_query", "The query is not acceptable"


class Unauthorized(ManagementError):
    status, code, error = 401, "unauthorized", "The management API needs the management token"
    description = "Send the server's MANAGEMENT_TOKEN in the Authorization header as 'Bearer <token>'."


class NotFound(ManagementError):
    status, code, error = 404, "not_found", "Not found"
    description = (
        "This path does not exist. Providers are reached under /v1/ or under /<name of the provider>/v1/; the paths of"
        " the management API are described at /openapi.json."
    )


class ProjectNotFound(ManagementError):
    status, code, error = 404, "project_not_found", "There is no such project"
    description = "No project has this id or name."


class CredentialNotFound(ManagementError):
    status, code, error = 404, "credential_not_found", "There is no such credential"
    description = "No credential has this id or name."


class TokenNotFound(ManagementError):
    status, code, error = 404, "token_not_found", "There is no such token"
    description = "No token has this id or name. A token's secret is neither."


class RequestNotFound(ManagementError):
    status, code, error = 404, "request_not_found", "There is no such request"
    description = "No finished request has this id (the proxy's or the provider's). Running requests are not listed."


class RequestKnown(ManagementError):
    status, code, error = 409, "request_known", "The outcome of the request is known"
    description = "Only a request whose outcome is 'unknown', because its server died, can be resolved."


class LimitNotFound(ManagementError):
    status, code, error = 404, "limit_not_found", "There is no such limit"
    description = "No limit has this id."


class AmbiguousName(ManagementError):
    status, code, error = 409, "ambiguous_name", "The name or last four characters match several resources"


class NameTaken(ManagementError):
    status, code, error = 409, "name_taken", "The name is taken"
    description = "Another project has this name, and names of projects are unique. Choose another one."


class CredentialShared(ManagementError):
    status, code, error = 409, "credential_shared", "Other projects use this credential too"


class ProjectDeactivated(ManagementError):
    status, code, error = 409, "project_inactive", "The project is deactivated"
    description = 'Tokens of a deactivated project are rejected. Activate it first: PATCH it with {"active": true}.'


class TokenRevoked(ManagementError):
    status, code, error = 409, "token_revoked", "The token is revoked"
    description = (
        'Its new secret would be rejected too. Activate it first (PATCH it with {"active": true}), or make a new token.'
    )


class InvalidConfiguration(ManagementError):
    status, code, error = 409, "invalid_configuration", "The provider or price file is wrong, and nothing was changed"


class UnsupportedMediaType(ManagementError):
    status, code, error = 415, "unsupported_media_type", "The request body must be JSON"
    description = "Send it with the header 'Content-Type: application/json'."


def _table(kind: type[ProxyError]) -> list[type[ProxyError]]:
    rows = [kind] if "code" in vars(kind) else []
    return rows + [row for inner in kind.__subclasses__() for row in _table(inner)]


_TABLE: Final = sorted(_table(ProxyError), key=lambda kind: kind.status)
#: The rows that a client of a provider can get, by status.
DATA_PLANE: Final = tuple(kind for kind in _TABLE if kind.message)
#: The rows that a client of the management API can get, by status.
MANAGEMENT: Final = tuple(kind for kind in _TABLE if kind.error)


def openai_body(error: ProxyError) -> dict[str, Any]:
    """Render an error in OpenAI's shape; its SDK shows `code` as `error.code`."""
    described = {"message": error.message, "type": error.types[0], "param": error.param, "code": error.code}
    return {"error": described}


def anthropic_body(error: ProxyError, request_id: str) -> dict[str, Any]:
    """Render an error in Anthropic's shape; its SDK shows `error_code` as `error.error_code`.

    `code` is our addition, so that it has one place in both shapes.
    """
    described = {
        "type": error.types[1],
        "message": error.message,
        "code": error.code,
        "details": {"error_code": error.code},
    }
    return {"type": "error", "error": described, "request_id": request_id}


def google_body(error: ProxyError) -> dict[str, Any]:
    """Render an error in Google's shape (https://google.aip.dev/193), with the code as the reason in capitals."""
    reason = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": error.code.upper(), "domain": "llm-proxy"}
    status = error.types[2]
    return {"error": {"code": error.status, "message": error.message, "status": status, "details": [reason]}}


def aws_body(error: ProxyError) -> dict[str, Any]:
    """Render an error in the shape of AWS's REST APIs, whose SDKs take the exception from a header."""
    return {"message": error.message, "code": error.code}


#: Longest `Retry-After` in seconds that the SDKs obey; if it is longer, they try again much earlier.
_LONGEST_RETRY_AFTER: Final = 60


def provider_response(error: ProxyError, shape: Shape, request_id: str) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Turn `error` into a response: status, headers and JSON body.

    The headers say what the client can do: `Retry-After` if waiting helps, `X-Should-Retry: false` on a 4xx that
    neither a short wait nor a retry fixes, `Allow` on a 405 (RFC 9110 §15.5.6), `WWW-Authenticate` on a
    401 (§15.5.2), `Upgrade` on a 426 (§15.5.22), and the request's id under each name by which an SDK looks for it.
    """
    match shape:
        case "anthropic":
            body = anthropic_body(error, request_id)
        case "google":
            body = google_body(error)
        case "aws":
            body = aws_body(error)
        case _:
            body = openai_body(error)
    content = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
    identifier = request_id.encode("ascii")
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(content)),
        (b"cache-control", b"no-store"),
        (b"x-request-id", identifier),
        (b"x-llm-proxy-request-id", identifier),
    ]
    if shape == "anthropic":
        headers.append((b"request-id", identifier))
    elif shape == "aws":
        exception = error.types[3].encode("ascii")
        headers += [(b"x-amzn-errortype", exception), (b"x-amzn-requestid", identifier)]
    if error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after))
    if (
        error.status < 500
        and error.status != 408
        and (error.retry_after is None or error.retry_after > _LONGEST_RETRY_AFTER)
    ):
        headers.append((b"x-should-retry", b"false"))
    if error.status == 405:
        headers.append((b"allow", ", ".join(error.allow).encode("ascii")))
    if error.status == 426:
        headers += [(b"upgrade", b"HTTP/1.1"), (b"connection", b"upgrade")]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return error.status, headers, content


def management_body(error: ProxyError) -> dict[str, Any]:
    """Render an error in the shape of the management API."""
    return {"error": error.error, "code": error.code, "description": error.description}


#: Codes of the requests that the HTTP server answers itself, by status: malformed ones, and those without an answer.
SERVER_CODES: Final = {
    400: "bad_request",
    408: "request_timeout",
    414: "uri_too_long",
    417: "expectation_failed",
    431: "headers_too_large",
    500: "internal_error",
    501: "not_implemented",
    505: "http_version_not_supported",
}


def server_error(status: int, message: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and body of such an answer, in OpenAI's shape: the server does not know the provider of the request."""
    error_type = "server_error" if status == 500 else "invalid_request_error"
    error = {"message": message, "type": error_type, "param": None, "code": SERVER_CODES[status]}
    body = json.dumps({"error": error}, separators=(",", ":")).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if status not in {408, 500}:  # the same request cannot succeed; SDKs and Claude Code obey this header
        headers.append((b"x-should-retry", b"false"))
    return headers, body
