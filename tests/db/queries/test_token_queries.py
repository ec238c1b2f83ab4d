from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from attrs import evolve
from sqlalchemy import Connection

from db.database import Database, opened
from db.dsn import Target
from db.errors import BrokenReference, Duplicate
from db.options import Options
from db.queries import projects, tokens
from db.queries.rows import Position
from db.records import Project, Token
from llm_proxy.tokens import digest
from tests.db.queries.factories import NOON, a_project, a_token

LATER = NOON + timedelta(hours=1)
PROJECT, OTHER = a_project(), a_project()


@pytest.fixture
def database(migrated_target: Target) -> Iterator[Database]:
    with opened(migrated_target, Options()) as database:
        for project in (PROJECT, OTHER):
            database.write_now(projects.create, project)
        yield database
        assert database.connections.in_use == 0


def create(database: Database, *made: Token) -> None:
    for token in made:
        database.write_now(tokens.create, token)


def listed(
    database: Database, *, after: Position | None = None, project: Project | None = None, usable: bool = False
) -> list[Token]:
    project_id = None if project is None else project.id
    return database.read_now(tokens.page, 100, after, project_id, NOON if usable else None)


def test_a_token_is_read_as_it_was_written(database: Database) -> None:
    plain = a_token(PROJECT.id)
    full = a_token(
        PROJECT.id,
        name="naïve 🚀",
        active=False,
        expires_at=LATER,
        max_requests=1 << 40,
        request_count=7,
        revoked_at=NOON,
        last_used_at=NOON,
    )
    create(database, plain, full)
    assert database.read_now(tokens.get, plain.id) == plain
    assert database.write_now(tokens.get_locked, full.id) == full
    assert database.read_now(tokens.get, PROJECT.id) is None


def test_a_token_needs_its_project(database: Database) -> None:
    with pytest.raises(BrokenReference):
        create(database, a_token(a_project().id))


def test_no_two_tokens_have_one_secret(database: Database) -> None:
    create(database, a_token(PROJECT.id, digest=digest("one")))
    with pytest.raises(Duplicate):
        create(database, a_token(OTHER.id, digest=digest("one")))


def test_pages_go_from_the_newest_to_the_oldest(database: Database) -> None:
    made = [a_token((PROJECT, OTHER)[n % 2].id, created_at=NOON + timedelta(microseconds=n // 3)) for n in range(9)]
    create(database, *made)
    in_order = sorted(made, key=lambda token: (token.created_at, token.id), reverse=True)
    assert listed(database) == in_order
    for n in range(9):
        after = Position(in_order[n].created_at, in_order[n].id)
        assert listed(database, after=after) == in_order[n + 1 :]
    assert listed(database, project=OTHER) == [token for token in in_order if token.project_id == OTHER.id]
    assert database.read_now(tokens.page, 2, None, None, None) == in_order[:2]


def test_usable_tokens_are_those_that_would_open(database: Database) -> None:
    usable = [
        a_token(PROJECT.id),
        a_token(PROJECT.id, expires_at=NOON + timedelta(microseconds=1)),
        a_token(PROJECT.id, max_requests=5, request_count=4),
    ]
    withered = [
        a_token(PROJECT.id, active=False),
        a_token(PROJECT.id, expires_at=NOON),
        a_token(PROJECT.id, max_requests=5, request_count=5),
        a_token(PROJECT.id, max_requests=5, request_count=6),
    ]
    create(database, *usable, *withered)
    assert {token.id for token in listed(database, usable=True)} == {token.id for token in usable}


def change(database: Database, token: Token, changes: tokens.TokenValues) -> Token:
    changed = database.write_now(tokens.change, token, changes, LATER)
    assert database.read_now(tokens.get, token.id) == changed
    return changed


def test_a_change_is_written_and_given_back(database: Database) -> None:
    token, other = a_token(PROJECT.id, request_count=3), a_token(PROJECT.id)
    create(database, token, other)
    changed = change(database, token, {"name": "x", "max_requests": 10, "expires_at": LATER})
    assert changed == evolve(token, name="x", max_requests=10, expires_at=LATER, updated_at=LATER)
    changed = change(database, changed, {"max_requests": None, "expires_at": None})
    assert changed == evolve(token, name="x", updated_at=LATER)
    assert change(database, changed, {}) == changed
    assert database.read_now(tokens.get, other.id) == other


def test_revoking_says_when_and_can_be_taken_back(database: Database) -> None:
    token = a_token(PROJECT.id)
    create(database, token)
    revoked = change(database, token, {"active": False})
    assert revoked == evolve(token, active=False, revoked_at=LATER, updated_at=LATER)
    again = database.write_now(tokens.change, revoked, tokens.TokenValues(active=False), LATER + timedelta(hours=1))
    assert again.revoked_at == LATER, "the first time counts"
    assert change(database, again, {"active": True}) == evolve(token, updated_at=LATER)


def test_rotation_changes_the_secret_and_nothing_else(database: Database) -> None:
    token = a_token(PROJECT.id, expires_at=LATER, max_requests=9, request_count=4, name="x")
    create(database, token)
    rotated = database.write_now(tokens.rotate, token, digest("new"), "wxyz", LATER)
    assert rotated == evolve(token, digest=digest("new"), last4="wxyz", updated_at=LATER)
    assert database.read_now(tokens.get, token.id) == rotated


def test_all_tokens_of_a_project_are_revoked_at_once(database: Database) -> None:
    mine = [a_token(PROJECT.id) for _ in range(3)]
    dead = a_token(PROJECT.id, active=False, revoked_at=NOON)
    foreign = a_token(OTHER.id)
    create(database, *mine, dead, foreign)
    assert database.write_now(tokens.revoke_all, PROJECT.id, LATER) == 3
    for token in mine:
        assert database.read_now(tokens.get, token.id) == evolve(
            token, active=False, revoked_at=LATER, updated_at=LATER
        )
    assert database.read_now(tokens.get, dead.id) == dead
    assert database.read_now(tokens.get, foreign.id) == foreign
    assert database.write_now(tokens.revoke_all, PROJECT.id, LATER) == 0


def test_a_failure_afterwards_takes_everything_back(database: Database) -> None:
    token = a_token(PROJECT.id)
    create(database, token)

    def revoke_and_fail(connection: Connection) -> None:
        assert tokens.revoke_all(connection, PROJECT.id, LATER) == 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        database.write_now(revoke_and_fail)
    assert database.read_now(tokens.get, token.id) == token
