"""Judges a request before it is admitted, without the database: path, query and token format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_proxy.errors import (
    BadRequest,
    BodyNotRead,
    EndpointNotAllowed,
    ProxyError,
    TokenInvalid,
    TokenMissing,
    UpgradeRequired,
)
from llm_proxy.gateway.http import headers, paths
from llm_proxy.ledger import AdmissionRequest, Named
from llm_proxy.tokens import digest_of

if TYPE_CHECKING:
    from llm_proxy.gateway.http.parameters import Parameters
    from llm_proxy.gateway.inbound import Inbound
    from llm_proxy.gateway.providers.provider import Providers
    from llm_proxy.limits import Demand
    from llm_proxy.secrets.encryption import KeyRing


def checked_digest(inbound: Inbound, keyring: KeyRing) -> bytes:
    """Check the path, the query and the token's format; return the digest by which the database knows the token.

    Raises:
        ProxyError: the request is refused before its body is read.
    """
    if inbound.websocket:
        raise UpgradeRequired
    paths.check_request(inbound.path)
    paths.check_query(inbound.query)
    provider = inbound.route.provider
    token = headers.token_of(inbound.headers, () if provider is None else provider.tokens_in(inbound.query))
    if token is None:
        found = None
        if provider is not None and provider.rewriting is not None:
            found = provider.rewriting.session_digest(keyring, inbound.route.path, inbound.query)
        if found is None:
            raise TokenMissing
        return found
    token_digest = digest_of(token)
    if token_digest is None:
        raise TokenInvalid
    return token_digest


def needs_body(inbound: Inbound, providers: Providers) -> bool:
    """Whether some rule has to read the body before the request can be admitted."""
    return inbound.has_body and (inbound.route.provider or providers).needs_body


def admission_request(
    inbound: Inbound,
    token_digest: bytes,
    providers: Providers,
    found: Parameters | BadRequest | None,
    path: str,
    named: Named | None = None,
    demand: Demand | None = None,
) -> AdmissionRequest:
    """Make the request that the ledger decides on.

    Args:
        inbound: the request.
        token_digest: the digest of its token.
        providers: all that are configured.
        found: the parameters of its body, or the error of reading them; empty before the body is read, None if it is
            never read.
        path: the path without credentials, as it is recorded.
        named: the objects at the provider that it names.
        demand: what it will use; None before the body is read.
    """

    def refusal(name: str) -> ProxyError | None:
        provider = providers.by_name.get(name)
        if provider is None:
            return EndpointNotAllowed(f"The project's provider '{name}' is not configured in this proxy.")
        known = None if isinstance(found, BadRequest) else found
        refused = provider.refusal(inbound.method, inbound.route.path, inbound.headers, known)
        needs_body = provider.needs_body or (provider.holds_body and not inbound.ended)
        if refused is not None or not (needs_body and inbound.has_body):
            return refused
        if found is None:
            return BodyNotRead()
        return found if isinstance(found, BadRequest) else None

    return AdmissionRequest(
        id=inbound.id,
        digest=token_digest,
        provider=lambda account: providers.choose(inbound.route, inbound.shape, account),
        method=inbound.method,
        path=path,
        refusal=refusal,
        named=named,
        wrong_labels=inbound.labels if isinstance(inbound.labels, BadRequest) else None,
        demand=demand,
    )
