"""Tokens: made, read, listed, changed, revoked and given a new secret, never deleted.

Whatever is changed here holds at the next request anywhere: admission reads the row itself, under a lock. Rows are
locked in the order of their ids, as admission locks them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypedDict

from attrs import evolve
from sqlalchemy import ColumnElement, Connection, bindparam, or_, select, update

from db.queries.rows import Position, Rows
from db.records import Token
from db.schema import tokens


class TokenValues(TypedDict, total=False):
    """What an update sets; what is not in it stays as it is. `max_requests` None means unlimited."""

    name: str
    active: bool
    expires_at: datetime | None
    max_requests: int | None
    labels: dict[str, str] | None
    models: dict[str, list[str]] | None


_rows = Rows(tokens, Token, tokens.c.last4)
create, get, get_locked, find = _rows.create, _rows.get, _rows.get_locked, _rows.find

_ACTIVE_OF_PROJECT = (
    select(tokens.c.id)
    .where(tokens.c.project_id == bindparam("project_id"), tokens.c.active)
    .order_by(tokens.c.id)
    .with_for_update()
)


def page(
    connection: Connection, limit: int, after: Position | None, project_id: str | None, usable_at: datetime | None
) -> list[Token]:
    """List tokens, the newest first; see `Rows.page`.

    `project_id`: only those of one project. `usable_at`: only those that are not revoked, not expired at that moment,
    and not used up.
    """
    conditions: list[ColumnElement[bool]] = [] if project_id is None else [tokens.c.project_id == project_id]
    if usable_at is not None:
        conditions += [
            tokens.c.active,
            or_(tokens.c.expires_at.is_(None), tokens.c.expires_at > usable_at),
            or_(tokens.c.max_requests.is_(None), tokens.c.request_count < tokens.c.max_requests),
        ]
    return _rows.page(connection, limit, after, *conditions)


def change(connection: Connection, token: Token, changes: TokenValues, now: datetime) -> Token:
    """Change a token that was read with `get_locked` in this transaction, and give it as it is now.

    Making it inactive is revoking it; making it active again undoes that.
    """
    if not changes:
        return token
    values: dict[str, Any] = {**changes, "updated_at": now}
    if "active" in changes and changes["active"] != token.active:
        values["revoked_at"] = None if changes["active"] else now
    return _write(connection, token, values)


def rotate(connection: Connection, token: Token, digest: bytes, last4: str, now: datetime) -> Token:
    """Give a token that was read with `get_locked` a new secret; the old one opens nothing from the commit on.

    Its id, limits, expiry and counter stay.
    """
    return _write(connection, token, {"digest": digest, "last4": last4, "updated_at": now})


def revoke_all(connection: Connection, project_id: str, now: datetime) -> int:
    """Revoke every active token of a project; say how many they were."""
    ids = list(connection.scalars(_ACTIVE_OF_PROJECT, {"project_id": project_id}))
    if not ids:
        return 0
    # By project and not by id: no statement has room for any number of ids, and these rows are locked.
    done = connection.execute(
        update(tokens)
        .where(tokens.c.project_id == project_id, tokens.c.active)
        .values(active=False, revoked_at=now, updated_at=now)
    )
    return done.rowcount


def _write(connection: Connection, token: Token, values: dict[str, Any]) -> Token:
    connection.execute(update(tokens).where(tokens.c.id == token.id).values(**values))
    return evolve(token, **values)
