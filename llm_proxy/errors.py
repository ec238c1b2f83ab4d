"""Every refusal and failure that a data-plane client can see, each with its status, code and message.

An error is raised where it is found and becomes a response in one place (`proxy/relay.py`), in the shape of the
provider that the client believes it is talking to, so that provider SDKs raise their own exceptions.
"""

from __future__ import annotations

from typing import ClassVar, Self


class ProxyError(Exception):
    """A request that is answered by the proxy itself.

    Attributes:
        status: HTTP status code.
        code: stable machine-readable code, part of the public contract.
        openai_type, anthropic_type: the value of `error.type` in each provider's error body.
        message: one sentence for the client; never holds a secret, a path of this machine or a driver's words.
        param: the request parameter that is at fault, where there is one.
        retry_after: whole seconds after which trying again may help; becomes the `Retry-After` header.
        allow: methods for the `Allow` header of a 405.
        token_id, project_id, provider: whose request it was and where it was meant to go, for the log; empty as long
            as that is not known.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    openai_type: ClassVar[str] = "server_error"
    anthropic_type: ClassVar[str] = "api_error"
    default_message: ClassVar[str] = "The proxy failed to handle the request."
    default_retry_after: ClassVar[int | None] = None

    def __init__(
        self,
        message: str | None = None,
        *,
        param: str | None = None,
        retry_after: int | None = None,
        allow: tuple[str, ...] = (),
    ) -> None:
        """Take the class's own message and `Retry-After` where none is given."""
        self.message = self.default_message if message is None else message
        self.param = param
        self.retry_after = self.default_retry_after if retry_after is None else retry_after
        self.allow = allow
        self.token_id = self.project_id = self.provider = ""
        super().__init__(self.message)

    def about(self, token_id: str, project_id: str, provider: str) -> Self:
        """Note whose request it was."""
        self.token_id, self.project_id, self.provider = token_id, project_id, provider
        return self


class Unauthenticated(ProxyError):
    """The token does not open anything (401)."""

    status = 401
    openai_type = "invalid_request_error"
    anthropic_type = "authentication_error"


class TokenMissing(Unauthenticated):
    """No token in any of the headers where one may stand."""

    code = "token_missing"
    default_message = (
        "No API token was sent. Put your proxy token in the Authorization header as 'Bearer <token>', or in x-api-key."
    )


class TokenInvalid(Unauthenticated):
    """A token of the wrong form, or one that is not in the database."""

    code = "token_invalid"
    default_message = "The API token is not known here. Ask the operator of this proxy for a new one."


class TokenInactive(Unauthenticated):
    """A token that was revoked."""

    code = "token_inactive"
    default_message = "The API token was revoked. Ask the operator of this proxy for a new one."


class TokenExpired(Unauthenticated):
    """A token past its `expires_at`."""

    code = "token_expired"
    default_message = "The API token has expired. Ask the operator of this proxy for a new one."


class Forbidden(ProxyError):
    """The token is good, but not for this (403)."""

    status = 403
    openai_type = "invalid_request_error"
    anthropic_type = "permission_error"


class ProjectInactive(Forbidden):
    """The token's project was deactivated."""

    code = "project_inactive"
    default_message = "The project that this token belongs to is deactivated."


class OriginNotAllowed(Forbidden):
    """The request's `Origin` is not in the provider's `allowed_origins`."""

    code = "origin_not_allowed"
    default_message = "Requests from this origin are not allowed."


class EndpointNotAllowed(ProxyError):
    """The path is outside the provider's `allowed_endpoints`, or names no provider that the project may use."""

    status = 404
    code = "endpoint_not_allowed"
    openai_type = "invalid_request_error"
    anthropic_type = "not_found_error"
    default_message = "This endpoint is not available through this proxy."


class MethodNotAllowed(ProxyError):
    """The method is outside the provider's `allowed_methods`."""

    status = 405
    code = "method_not_allowed"
    openai_type = "invalid_request_error"
    anthropic_type = "invalid_request_error"
    default_message = "This method is not allowed here."


class BadRequest(ProxyError):
    """A header that must not be passed on, because it holds a control character (400)."""

    status = 400
    code = "bad_request"
    openai_type = "invalid_request_error"
    anthropic_type = "invalid_request_error"


class ParameterNotAllowed(BadRequest):
    """A body parameter whose value is outside the provider's `param_whitelist`."""

    code = "parameter_not_allowed"
    default_message = "A parameter of this request has a value that is not allowed here."


class HeaderRequired(BadRequest):
    """A header of the provider's `required_headers` is missing."""

    code = "header_required"
    default_message = "A required header is missing."


class InvalidPath(BadRequest):
    """A path that could mean different things to different readers; refused, never repaired."""

    code = "invalid_path"
    default_message = (
        "The request path is ambiguous and is refused: send it without dot segments, '//', ';' or encoded separators."
    )


class InvalidJson(BadRequest):
    """A body that has to be read as JSON, and is not."""

    code = "invalid_json"
    default_message = "The request body is not valid JSON."


class RequestTimeout(ProxyError):
    """The body of the request stopped in the middle, or came at less than 1 KiB/s after 10 s (408)."""

    status = 408
    code = "request_timeout"
    openai_type = "invalid_request_error"
    anthropic_type = "invalid_request_error"
    default_message = "The body of the request did not arrive in time."


class RequestTooLarge(ProxyError):
    """The body is longer than `MAX_REQUEST_SIZE`."""

    status = 413
    code = "request_too_large"
    openai_type = "invalid_request_error"
    anthropic_type = "request_too_large"
    default_message = "The request body is larger than this proxy accepts."


class UpgradeRequired(ProxyError):
    """A WebSocket handshake: the endpoints are served over HTTP alone (RFC 9110 section 15.5.22)."""

    status = 426
    code = "upgrade_required"
    openai_type = "invalid_request_error"
    anthropic_type = "invalid_request_error"
    default_message = "This proxy does not speak WebSocket. Send the request as a plain HTTP request."


class TooManyRequests(ProxyError):
    """A limit was reached (429)."""

    status = 429
    openai_type = "requests"
    anthropic_type = "rate_limit_error"


class RequestLimitExceeded(TooManyRequests):
    """The token has used up its `max_requests`; waiting does not help, so there is no `Retry-After`."""

    code = "request_limit_exceeded"
    openai_type = "insufficient_quota"
    default_message = "The API token has used up its request limit. Ask the operator of this proxy to raise it."


class UpstreamUnreachable(ProxyError):
    """No connection to the provider, or one that broke before a usable response."""

    status = 502
    code = "upstream_unreachable"
    default_message = "The provider could not be reached, or broke off before it answered."


class UpstreamTimeout(ProxyError):
    """The provider was silent for longer than its deadline."""

    status = 504
    code = "upstream_timeout"
    anthropic_type = "timeout_error"
    default_message = "The provider did not answer in time."


class Unavailable(ProxyError):
    """The proxy cannot take the request now (503); trying again soon helps."""

    status = 503
    anthropic_type = "overloaded_error"
    default_retry_after = 1


class DatabaseUnavailable(Unavailable):
    """The request could not be written down, so it was not sent."""

    code = "database_unavailable"
    default_message = "The proxy's database is not available at the moment. Nothing was sent to the provider."


class DatabaseAway(DatabaseUnavailable):
    """Likewise, and it is certain that nothing of the request is, or will be, in the database."""


class TokenLocked(DatabaseUnavailable):
    """Another transaction holds the token's row; nothing of the request is in the database."""

    default_message = (
        "Another transaction in the proxy's database holds this API token. Nothing was sent to the provider."
    )


class Overloaded(Unavailable):
    """`MAX_CONCURRENT_REQUESTS` are running already, or request bodies take all memory that is meant for them."""

    code = "overloaded"
    default_message = "The proxy is handling as many requests as it is configured for."
