"""A migration that ends between any two of its statements: the next one continues, and rows stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial

import pytest
from sqlalchemy import inspect

from db import Connection, migrate
from db.database import Database, opened
from db.dsn.target import Target
from db.options import Options
from tests.databases.kinds import Kind
from tests.databases.scratch import Databases, upgrade
from tests.db import crashes
from tests.db.crashes import FAILED, End
from tests.db.rows import agree, contents, fill_new
from tests.db.schemas import describe, texts

TRANSACTIONAL = (Kind.SQLITE, Kind.POSTGRES)
ENDS = {End.KILL: -9, End.FAIL: FAILED}
#: Changes from one killed run to the next, where a transaction holds them. One that escapes it would be found after any
#: later one as well, and runs in which a statement fails end at each of them.
STEP = 7
#: More changes than any history makes: for a run that goes wrong without end.
ENOUGH = 500
columns_at = cache(migrate._columns_at)


def found(connection: Connection) -> object:
    """All that a change changes, but for rows."""
    return migrate.version(connection), texts(connection)


def outline(connection: Connection) -> object:
    """Enough to see that a transaction has left nothing behind."""
    return migrate.version(connection), sorted(inspect(connection).get_table_names())


def is_whole(connection: Connection) -> bool:
    """Whether the tables and columns are those of the revision, no more and no less."""
    version = migrate.version(connection)
    return migrate._columns(connection) == ({} if version is None else columns_at(version))


def walk(database: Database, kind: Kind, end: End, run: Callable[..., None], *arguments: object) -> int:
    """Run again and again until it comes to its end, and look after each time. Says after how many changes that was.

    Where a transaction holds a revision, a run leaves whole revisions only. On MySQL and MariaDB each begins with what
    the one before has left, and adds the least that is more.
    """
    together = kind in TRANSACTIONAL
    step = STEP if together and end is End.KILL else 1
    look = outline if together else found
    before = database.read_now(look)
    kept = database.read_now(contents)
    after = 1 if end is End.KILL else 0
    for number in range(ENOUGH):
        status = crashes.run(run, database.target, *arguments, end, after)
        if status == 0:
            return number * step
        assert status == ENDS[end]
        left = database.read_now(look)
        assert not together or database.read_now(is_whole)
        after = after + step if left == before else step
        before = left
        rows = database.read_now(contents) if after % 5 == 0 or not together else {}
        assert all(agree(kept[name], rows[name]) for name in kept.keys() & rows.keys())
    raise AssertionError("it never came to its end")


@pytest.fixture(scope="module")
def shape(databases: Databases, database_kind: Kind) -> object:
    """The schema as it is where nothing was cut off."""
    with databases.migrated(database_kind) as scratch, opened(scratch.target, Options()) as database:
        return database.read_now(describe)


@pytest.fixture
def watcher(database_target: Target) -> Iterator[Database]:
    """An empty database, to look at while others have it."""
    with opened(database_target, Options()):
        pass  # a SQLite file has to be there
    with opened(database_target, Options(), exclusive=False) as database:
        yield database


def fill_the_rest(target: Target) -> None:
    with opened(target, Options()) as database:
        full = {name for name, rows in database.read_now(contents).items() if rows}
        database.write_now(fill_new, full)


@pytest.mark.parametrize("end", list(ENDS))
def test_cut_off_anywhere_it_goes_on(watcher: Database, database_kind: Kind, shape: object, end: End) -> None:
    walked = partial(walk, watcher, database_kind, end)
    ids = [revision.id for revision in migrate.revisions()]
    # Each run in a transaction does again what the one before has done.
    one_by_one = database_kind in TRANSACTIONAL and end is End.FAIL
    cuts = walked(crashes.up_to, ids[0])
    fill_the_rest(watcher.target)
    cuts += sum(walked(crashes.up_to, revision) for revision in (ids[1:] if one_by_one else ["head"]))
    # For each revision a table and its place in the history, at least.
    assert cuts >= 2 * len(ids)
    assert watcher.read_now(describe) == shape
    assert watcher.read_now(migrate.is_at_head)
    # The key of each project became a credential.
    full = {name for name, rows in watcher.read_now(contents).items() if rows}
    assert full == {"projects", "credentials", "project_credentials"}
    fill_the_rest(watcher.target)
    ends = [*reversed(ids[:-1]), "base"] if one_by_one else ["base"]
    assert sum(walked(crashes.down_to, revision) for revision in ends) >= len(ids)
    assert watcher.read_now(describe) == {}
    assert upgrade(watcher.target) == migrate.revisions()
    assert watcher.read_now(describe) == shape


@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_what_was_half_undone_is_made_again(watcher: Database, database_kind: Kind, shape: object, after: int) -> None:
    """`up` after a `down` that was cut off: the revision counts as applied, and its table has gone already."""
    upgrade(watcher.target)
    fill_the_rest(watcher.target)
    before = watcher.read_now(contents)
    assert crashes.run(crashes.down_to, watcher.target, "base", End.KILL, after) == -9
    pending = watcher.read_now(migrate.status).pending
    if database_kind in TRANSACTIONAL:
        assert watcher.read_now(is_whole)
    assert upgrade(watcher.target) == pending
    assert watcher.read_now(describe) == shape
    rows = watcher.read_now(contents)
    # What was undone comes back empty, all else is as it was.
    undone = {name for name in rows if rows[name] != before[name]}
    tables = {"audit", "label_values", "limits", "limit_counters", "provider_objects", "refusals"}
    with_columns = {"in_flight", "projects", "requests", "tokens", "usage_daily", "usage_hourly"}
    assert undone <= tables | with_columns
    assert upgrade(watcher.target) == ()
