"""Fixtures of the database tests. A test that asks for one of them runs once per database, under its name.

`@on("postgres", "mysql")` from `tests.databases.kinds` limits a test to some of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NoReturn

import pytest

from db.dsn import Target
from tests.databases.kinds import Kind
from tests.databases.programs import Instance
from tests.databases.scratch import Databases, Scratch
from tests.databases.servers import Missing, own_instance

#: Where a test run keeps its databases.
DATABASES = pytest.StashKey[Databases]()


@pytest.fixture(scope="session")
def databases(pytestconfig: pytest.Config) -> Iterator[Databases]:
    """All databases of this run, for tests that need several at once or hold one for a whole module."""
    databases = Databases()
    pytestconfig.stash[DATABASES] = databases
    yield databases
    databases.close()


@pytest.fixture(scope="module", params=list(Kind), ids=str)
def database_kind(request: pytest.FixtureRequest, databases: Databases) -> Kind:
    """The database that this run of the test is on. A missing one skips the test, and fails it where `CI` is set."""
    kind = Kind(request.param)
    require(databases, kind)
    return kind


def require(databases: Databases, kind: Kind) -> None:
    """Go on only if there is a server of this kind: else skip, or fail where `CI` is set."""
    if kind is Kind.SQLITE:
        return
    try:
        databases.server(kind)
    except Missing as error:
        lack(str(error))


def lack(what: str) -> NoReturn:
    """Go no further for want of something: skip, or fail where `CI` is set."""
    if os.environ.get("CI", "").lower() in ("1", "true", "yes"):
        pytest.fail(what, pytrace=False)
    pytest.skip(what)


@pytest.fixture
def empty_database(databases: Databases, database_kind: Kind) -> Iterator[Scratch]:
    """A database with nothing in it, of this test alone."""
    with databases.empty(database_kind) as scratch:
        yield scratch


@pytest.fixture
def migrated_database(databases: Databases, database_kind: Kind) -> Iterator[Scratch]:
    """A database whose schema is at head and whose tables are empty, of this test alone."""
    with databases.migrated(database_kind) as scratch:
        yield scratch


@pytest.fixture
def database_target(empty_database: Scratch) -> Target:
    """`empty_database`, as the database layer takes it."""
    return empty_database.target


@pytest.fixture
def database_env(empty_database: Scratch) -> dict[str, str]:
    """`empty_database`, as a server process takes it: DB_DRIVER with DATABASE_URL or DATABASE_PATH."""
    return empty_database.env


@pytest.fixture
def migrated_target(migrated_database: Scratch) -> Target:
    """`migrated_database`, as the database layer takes it."""
    return migrated_database.target


@pytest.fixture
def migrated_env(migrated_database: Scratch) -> dict[str, str]:
    """`migrated_database`, as a server process takes it."""
    return migrated_database.env


@pytest.fixture
def database_instance(database_kind: Kind) -> Iterator[Instance]:
    """A database server of this test alone, to be stopped, killed or frozen: with `@on("postgres", "mariadb")`.

    Skips where the programs are not installed, as where servers are named in the environment only.
    """
    with ExitStack() as stack:
        try:
            instance = stack.enter_context(own_instance(database_kind))
        except Missing as error:
            pytest.skip(str(error))
        yield instance
