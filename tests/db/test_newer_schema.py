"""A schema that a newer version has made: nobody touches it, and who can work on it does."""

from __future__ import annotations

from pathlib import Path

import pytest

from db import migrate
from db.database import Database, opened
from db.dsn.target import Target
from db.errors import SchemaMismatch
from db.options import Options
from tests.databases.kinds import on
from tests.db.next_release import HARMFUL, HARMLESS, migrate_as_next_release
from tests.db.rows import contents, fill_new


def test_what_is_only_more_suits(migrated_target: Target, tmp_path: Path) -> None:
    with opened(migrated_target, Options()) as database:
        assert database.read_now(migrate.suits)
        assert migrate.prepare(database) is None
    number = migrate_as_next_release(migrated_target, tmp_path / "next", HARMLESS)
    with opened(migrated_target, Options()) as database:
        assert database.read_now(migrate.misfits) == []
        assert database.read_now(migrate.suits)
        assert not database.read_now(migrate.is_at_head)
        words = migrate.prepare(database)
        assert words is not None
        assert words.startswith(f"the schema is at revision {number}, which this version does not know")
        assert words.endswith("; this one can work on it")
        database.write_now(fill_new, ())
        assert all(len(rows) == 2 for rows in database.read_now(contents).values())


@on("sqlite", "postgres", "mysql")
@pytest.mark.parametrize(("upgrade", "missing"), HARMFUL.items())
def test_what_is_missing_is_named(migrated_target: Target, tmp_path: Path, upgrade: str, missing: str) -> None:
    if "zone" in upgrade and migrated_target.driver == "sqlite":
        upgrade = f'op.drop_table("workers")\nop.create_table("workers", {_WORKERS})'
    migrate_as_next_release(migrated_target, tmp_path / "next", upgrade)
    with opened(migrated_target, Options()) as database:
        assert not database.read_now(migrate.suits)
        with pytest.raises(SchemaMismatch, match=f"this one cannot work on it: {missing}.*; use the newer version"):
            migrate.prepare(database)


#: SQLite adds no column that must be filled.
_WORKERS = ", ".join(
    f'sa.Column("{name}", sa.Text(), nullable=False)'
    for name in ("id", "hostname", "pid", "version", "started_at", "seen_at", "zone")
)


def test_behind_is_not_newer(fresh: Database) -> None:
    assert not fresh.read_now(migrate.suits)
    assert migrate.prepare(fresh) is None
    assert fresh.read_now(migrate.suits)
    migrate.down(fresh)
    assert not fresh.read_now(migrate.suits)
