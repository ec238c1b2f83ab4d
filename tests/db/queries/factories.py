"""Rows for the tests of the queries: complete records, of which a test says only what matters to it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from db.records import Account, AuditEntry, Credential, Limit, Project, RefusedRequest, SealedKey, SettledRequest, Token
from llm_proxy.identifiers import new_id, request_id
from llm_proxy.tokens import digest

NOON = datetime(2027, 1, 15, 12, 0, 0, 123456, tzinfo=UTC)


def a_project(**fields: Any) -> Project:
    """A project as it is after creation at noon."""
    identity = new_id()
    usual: dict[str, Any] = {
        "id": identity,
        "name": f"project {identity}",
        "provider": "openai",
        "api_key": "enc:v2:0:sealed",
        "api_key_last4": "cdef",
        "active": True,
        "created_at": NOON,
        "updated_at": NOON,
    }
    return Project(**usual | fields)


def an_account(project: Project) -> Account:
    """A project as a request sees it that has no credential but its own key."""
    return Account(project, {project.provider: SealedKey(project.id, project.api_key, active=True)})


def a_credential(**fields: Any) -> Credential:
    """A credential as it is after creation at noon."""
    identity = new_id()
    usual: dict[str, Any] = {
        "id": identity,
        "name": f"credential {identity}",
        "provider": "openai",
        "api_key": "enc:v2:0:sealed",
        "api_key_last4": "cdef",
        "active": True,
        "created_at": NOON,
        "updated_at": NOON,
    }
    return Credential(**usual | fields)


def to_default(account: Account) -> str:
    """Choose the provider of a request whose path names none."""
    return account.project.provider


def a_token(project_id: str, **fields: Any) -> Token:
    """A token as it is after creation at noon, without limits."""
    identity = new_id()
    usual: dict[str, Any] = {
        "id": identity,
        "project_id": project_id,
        "digest": digest(identity),
        "last4": identity[-4:],
        "name": "",
        "active": True,
        "expires_at": None,
        "max_requests": None,
        "request_count": 0,
        "created_at": NOON,
        "updated_at": NOON,
        "revoked_at": None,
        "last_used_at": None,
    }
    return Token(**usual | fields)


def a_limit(**fields: Any) -> Limit:
    """A limit of the whole proxy as it is after creation at noon."""
    usual: dict[str, Any] = {
        "id": new_id(),
        "scope": "proxy",
        "subject": "",
        "metric": "requests",
        "period": "total",
        "amount": 2,
        "models": None,
        "policy": "settled",
        "wait_ms": 0,
        "warn_at": None,
        "allow_unpriced": False,
        "created_at": NOON,
        "updated_at": NOON,
    }
    return Limit(**usual | fields)


def a_settled_request(token: Token, **fields: Any) -> SettledRequest:
    """A request that went well at noon."""
    usual: dict[str, Any] = {
        "id": request_id(),
        "worker_id": new_id(),
        "token_id": token.id,
        "project_id": token.project_id,
        "provider": "openai",
        "method": "POST",
        "path": "/v1/chat/completions",
        "outcome": "ok",
        "status": 200,
        "model": "gpt-5",
        "streamed": False,
        "admitted_at": NOON,
        "settled_at": NOON,
        "first_byte_us": 1_000,
        "duration_us": 2_000,
        "request_bytes": 10,
        "response_bytes": 20,
        "input_tokens": 3,
        "output_tokens": 4,
        "cached_tokens": None,
    }
    return SettledRequest.of(usual | fields)


def an_audit_entry(**fields: Any) -> AuditEntry:
    """A token that was changed at noon."""
    usual: dict[str, Any] = {
        "id": request_id(),
        "occurred_at": NOON,
        "actor": "management token",
        "address": "198.51.100.7",
        "operation": "updateToken",
        "resource": "token",
        "resource_id": "t-1",
        "outcome": "accepted",
        "status": 200,
    }
    return AuditEntry(**usual | fields)


def a_refusal(**fields: Any) -> RefusedRequest:
    """A request that was refused at noon, because its token has reached its limit."""
    usual: dict[str, Any] = {
        "id": request_id(),
        "refused_at": NOON,
        "token_id": "t-1",
        "project_id": "p-1",
        "provider": "openai",
        "method": "POST",
        "path": "/v1/chat/completions",
        "code": "request_limit_exceeded",
        "status": 429,
        "model": "gpt-5",
        "address": "198.51.100.7",
    }
    return RefusedRequest(**usual | fields)
