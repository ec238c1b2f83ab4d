"""Fixtures of the database tests. A test that uses one of them runs once per database.

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
from tests.databases.programs import Instance, find_program
from tests.databases.scratch import Databases, Scratch
from tests.databases.servers import Missing, own_instance

#: The databases of a test run.
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
    """The database of this run of the test. If there is none, the test is skipped; if `CI` is set, it fails."""
    kind = Kind(request.param)
    require(databases, kind)
    return kind


def require(databases: Databases, kind: Kind) -> None:
    """Skip the test if there is no server of this kind; fail it if `CI` is set."""
    if kind is Kind.SQLITE:
        return
    try:
        databases.server(kind)
    except Missing as error:
        lacking(str(error))


def require_programs(kind: Kind) -> None:
    """Skip the test if no server of its own can be started; fail it if `CI` is set.

    MySQL passes: Debian has no package of it, so the test uses the server of `databases`.
    """
    if kind is not Kind.MYSQL and find_program(kind) is None:
        lacking(f"no {kind} programs here, for servers that tests start")


def lacking(reason: str) -> NoReturn:
    """Skip a test because this machine lacks something; fail it if `CI` is set."""
    if os.environ.get("CI", "").lower() in ("1", "true", "yes"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture
def empty_database(databases: Databases, database_kind: Kind) -> Iterator[Scratch]:
    """An empty database for this test."""
    with databases.empty(database_kind) as scratch:
        yield scratch


@pytest.fixture
def migrated_database(databases: Databases, database_kind: Kind) -> Iterator[Scratch]:
    """A database for this test: its schema is at head, its tables are empty."""
    with databases.migrated(database_kind) as scratch:
        yield scratch


@pytest.fixture
def database_target(empty_database: Scratch) -> Target:
    """`empty_database`, for the database layer."""
    return empty_database.target


@pytest.fixture
def database_env(empty_database: Scratch) -> dict[str, str]:
    """`empty_database`, as settings of a server process."""
    return empty_database.env


@pytest.fixture
def migrated_target(migrated_database: Scratch) -> Target:
    """`migrated_database`, for the database layer."""
    return migrated_database.target


@pytest.fixture
def migrated_env(migrated_database: Scratch) -> dict[str, str]:
    """`migrated_database`, as settings of a server process."""
    return migrated_database.env


@pytest.fixture
def database_instance(database_kind: Kind) -> Iterator[Instance]:
    """A database server that this test may stop, kill or pause: with `@on("postgres", "mariadb")`.

    If its programs are not installed, the test is skipped; if `CI` is set, it fails.
    """
    with ExitStack() as stack:
        try:
            instance = stack.enter_context(own_instance(database_kind))
        except Missing as error:
            lacking(str(error))
        yield instance
