"""Tokens: their format, their digest, and the rules by which they are accepted. Pure functions."""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import TYPE_CHECKING, Final

from llm_proxy.errors import (
    CredentialInactive,
    CredentialMissing,
    ProjectInactive,
    ProxyError,
    RequestLimitExceeded,
    TokenExpired,
    TokenInactive,
)

if TYPE_CHECKING:
    from datetime import datetime

    from db.records import Account, Token

#: `sk-`, by which people and secret scanners recognise a credential, and 32 random bytes in base64.
_FORMAT: Final = re.compile(rb"sk-[A-Za-z0-9_-]{43}")


def new_secret() -> str:
    return f"sk-{secrets.token_urlsafe(32)}"


def digest(secret: str) -> bytes:
    """The 32 bytes that the database stores instead of a secret.

    SHA-256 without salt is enough: 256 random bits cannot be guessed (NIST SP 800-63B, section 5.1.2.2, on look-up
    secrets), and this runs for every request.
    """
    return hashlib.sha256(secret.encode()).digest()


def digest_of(candidate: bytes) -> bytes | None:
    """The digest of what a client sent as its token; None if it does not have the format of one."""
    return hashlib.sha256(candidate).digest() if _FORMAT.fullmatch(candidate) else None


def verdict(token: Token, account: Account, now: datetime) -> ProxyError | None:
    """Check a request's token, but for its limit and its key; None if it is accepted.

    The token is checked first, so that a client gets no information about a project with a token that is not accepted.
    """
    if not token.active:
        return TokenInactive()
    if token.expires_at is not None and token.expires_at <= now:
        return TokenExpired()
    return None if account.project.active else ProjectInactive()


def key_verdict(account: Account, provider: str) -> ProxyError | None:
    """Check that the project has a key for the request's provider: one must never be sent to another provider."""
    key = account.keys.get(provider)
    if key is None:
        names = sorted(account.keys)
        paths = " or ".join(f"/{name}/v1/..." for name in names)
        return CredentialMissing(
            f"This token's project has no credential for the provider '{provider}', only for {', '.join(names)}: send"
            f" requests for that to {paths}, or ask the operator of this proxy for a credential"
        )
    return None if key.active else CredentialInactive()


def limit_verdict(token: Token, taken: int) -> ProxyError | None:
    """Check the request limit, after `taken` other requests of the token in the same transaction."""
    if token.max_requests is not None and token.request_count + taken >= token.max_requests:
        return RequestLimitExceeded()
    return None
