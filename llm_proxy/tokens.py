"""The rules of withering tokens: what opens, what has withered, and why. Pure functions, no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_proxy.errors import (
    EndpointNotAllowed,
    ProjectInactive,
    ProxyError,
    RequestLimitExceeded,
    TokenExpired,
    TokenInactive,
)

if TYPE_CHECKING:
    from datetime import datetime

    from db.records import Project, Token


def verdict(
    token: Token,
    project: Project,
    now: datetime,
    *,
    provider: str | None,
) -> ProxyError | None:
    """Judge everything about a request's token but its remaining limit; None means that it opens.

    The order is from the token outwards, so that a client never learns about a project through a dead token.

    Args:
        token: the row that the digest found.
        project: the token's project.
        now: the worker's clock, aware UTC.
        provider: the provider that the path names, or None where the project's own is meant. A project has the key
            of one provider only, and that key must never travel to another one.
    """
    if not token.active:
        return TokenInactive()
    if token.expires_at is not None and token.expires_at <= now:
        return TokenExpired()
    if not project.active:
        return ProjectInactive()
    if provider is not None and provider != project.provider:
        return EndpointNotAllowed(
            f"This token's project uses the provider '{project.provider}', not '{provider}': send its requests to"
            f" /v1/... or /{project.provider}/v1/..., or use a token of a project whose provider is '{provider}'"
        )
    return None


def limit_verdict(token: Token, taken: int) -> ProxyError | None:
    """Judge the request limit, where `taken` requests were granted to the token in the same transaction so far."""
    if token.max_requests is not None and token.request_count + taken >= token.max_requests:
        return RequestLimitExceeded()
    return None
