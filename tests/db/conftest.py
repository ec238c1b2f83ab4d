"""Databases for the tests of this room. Making one is slow on some servers, so a module's tests share theirs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from db.database import Database, opened
from db.dsn import Target
from db.options import Options
from tests.databases.kinds import Kind
from tests.databases.scratch import Databases


@pytest.fixture(scope="module")
def shared_target(databases: Databases, database_kind: Kind) -> Iterator[Target]:
    """A database that begins empty, of this module alone."""
    with databases.empty(database_kind) as scratch:
        yield scratch.target


@pytest.fixture
def database(shared_target: Target) -> Iterator[Database]:
    """The module's database, open; the test must leave no connection in use behind."""
    with opened(shared_target, Options(pool_size=4, max_idle=2)) as database:
        yield database
        assert database.connections.in_use == 0


@pytest.fixture
def fresh(database_target: Target) -> Iterator[Database]:
    """A database with nothing in it, open, of this test alone."""
    with opened(database_target, Options(pool_size=3)) as database:
        yield database
        assert database.connections.in_use == 0
