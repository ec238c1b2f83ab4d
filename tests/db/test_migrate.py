from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pymysql
import pytest
from sqlalchemy import inspect, text

from db import Connection, migrate, schema
from db.database import Database, opened
from db.dsn import Target
from db.errors import Contention, Refused, SchemaMismatch, Unavailable
from db.migrate import Revision
from db.options import Options
from tests.databases.kinds import Kind, on
from tests.databases.scratch import Databases
from tests.db.rows import agree, contents, fill, fill_new
from tests.db.schemas import TABLES, describe, differences

HEAD = migrate.revisions()[-1].id


@pytest.fixture
def migrated(migrated_target: Target) -> Iterator[Database]:
    """A database at head, open, of this test alone."""
    with opened(migrated_target, Options()) as database:
        yield database
        assert database.connections.in_use == 0


def set_version(connection: Connection, version: str) -> None:
    connection.execute(text("UPDATE alembic_version SET version_num = :v"), {"v": version})


def ours(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names()) & set(TABLES)


def test_revisions_are_one_line_without_gaps() -> None:
    assert [revision.id for revision in migrate.revisions()] == [f"{n + 1:04}" for n in range(len(migrate.revisions()))]
    before = None
    for entry in sorted((files("migrations") / "versions").iterdir(), key=lambda entry: entry.name):
        if not entry.name.endswith(".py"):
            continue
        source = entry.read_text()
        assert f'revision = "{entry.name[:4]}"' in source
        assert f"down_revision: str | None = {before!r}".replace("'", '"') in source
        before = entry.name[:4]


def test_revisions_stand_on_their_own() -> None:
    """What a revision means must not change with the code."""
    for entry in (files("migrations") / "versions").iterdir():
        if entry.name.endswith(".py"):
            modules = re.findall(r"^(?:from|import) (\w+)", entry.read_text(), re.MULTILINE)
            assert set(modules) <= {"__future__", "alembic", "sqlalchemy"}


def test_up_makes_the_declared_schema(fresh: Database, databases: Databases, database_kind: Kind) -> None:
    assert fresh.read_now(migrate.status) == migrate.Status(None, HEAD, migrate.revisions())
    assert not fresh.read_now(migrate.is_at_head)
    told: list[Revision] = []
    assert migrate.up(fresh, report=told.append) == migrate.revisions() == tuple(told)
    assert fresh.read_now(migrate.is_at_head)
    assert fresh.read_now(migrate.version) == HEAD
    assert fresh.read_now(differences) == []
    with databases.empty(database_kind) as other, opened(other.target, Options()) as declared:
        declared.write_now(schema.metadata.create_all)
        assert fresh.read_now(describe) == declared.read_now(describe)


def test_a_difference_would_be_seen(migrated: Database) -> None:
    before = migrated.read_now(describe)
    migrated.write_now(lambda connection: connection.exec_driver_sql("CREATE INDEX ix_more ON workers (pid)").close())
    assert migrated.read_now(describe) != before
    assert len(migrated.read_now(differences)) == 1


def test_at_head_nothing_is_done_and_no_lock_taken(migrated: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Database, "migrating", None)
    assert migrate.up(migrated) == ()


def test_rows_survive_every_revision_up_and_down(fresh: Database) -> None:
    """Up one by one with rows in every table, then down one by one: what a revision does not drop, stays."""
    states: list[dict[str, list[tuple[Any, ...]]]] = []
    shapes = []
    for revision in migrate.revisions():
        with fresh.migrating(5) as connection:
            migrate._run("upgrade", connection, revision.id, None)
        before = states[-1] if states else {}
        fresh.write_now(fill_new, set(before))
        after = fresh.read_now(contents)
        assert all(agree(rows, after[name]) for name, rows in before.items())
        states.append(after)
        shapes.append(fresh.read_now(describe))
    assert all(len(rows) == 2 for rows in states[-1].values())
    for number in reversed(range(len(migrate.revisions()))):
        assert migrate.down(fresh) == (migrate.revisions()[number],)
        left = fresh.read_now(contents)
        expected = states[number - 1] if number else {}
        assert left == expected
        assert fresh.read_now(describe) == (shapes[number - 1] if number else {})
    assert fresh.read_now(ours) == set()
    assert migrate.up(fresh) == migrate.revisions()


def test_down_to_a_revision(migrated: Database) -> None:
    known = migrate.revisions()
    told: list[Revision] = []
    assert migrate.down(migrated, "0002", report=told.append) == known[:1:-1] == tuple(told)
    assert migrated.read_now(migrate.version) == "0002"
    assert migrate.down(migrated, "0002") == ()
    for unknown in ("0003", "9999", "head"):
        with pytest.raises(Refused, match="choose one of base, 0001"):
            migrate.down(migrated, unknown)
    assert migrate.down(migrated, "base") == known[1::-1]
    assert migrated.read_now(migrate.status).current is None
    assert migrate.down(migrated) == ()


def test_a_newer_schema_is_left_alone(migrated: Database) -> None:
    migrated.write_now(set_version, "9999")
    assert not migrated.read_now(migrate.is_at_head)
    for attempt in (migrate.up, migrate.down, migrate.plan):
        with pytest.raises(SchemaMismatch, match="revision 9999, which this version does not know"):
            attempt(migrated)


def test_tables_of_another_program_are_left_alone(fresh: Database) -> None:
    fresh.write_now(lambda connection: connection.exec_driver_sql("CREATE TABLE tokens (id INTEGER)").close())
    with pytest.raises(SchemaMismatch, match="another origin \\(tokens\\)"):
        migrate.up(fresh)
    assert fresh.read_now(ours) == {"tokens"}
    assert fresh.read_now(migrate.version) is None


def test_the_plan_is_what_up_would_run(fresh: Database, migrated_target: Target) -> None:
    plan = migrate.plan(fresh)
    assert fresh.read_now(ours) == set()
    assert [name for name in TABLES if f"CREATE TABLE {name} (" in plan] == list(TABLES)
    follow(fresh, plan)
    assert fresh.read_now(migrate.is_at_head)
    assert migrate.plan(fresh) == ""
    with opened(migrated_target, Options()) as migrated:
        assert fresh.read_now(describe) == migrated.read_now(describe)


def test_the_plan_is_for_what_is_missing(migrated: Database) -> None:
    """From anywhere in the history, and after a plan `down` and `up` go on as after `up`."""
    shape = migrated.read_now(describe)
    assert len(migrate.down(migrated, "0003")) == len(migrate.revisions()) - 3
    follow(migrated, migrate.plan(migrated))
    assert migrated.read_now(describe) == shape
    assert migrate.up(migrated) == ()
    assert migrate.down(migrated, "base") == migrate.revisions()[::-1]
    assert migrate.up(migrated) == migrate.revisions()


def follow(database: Database, plan: str) -> None:
    """Run the SQL of a plan by hand."""

    def run(connection: Connection) -> None:
        for statement in plan.split(";\n"):
            lines = [line for line in statement.splitlines() if not line.startswith("--")]
            if any(lines) and "".join(lines).strip() not in ("BEGIN", "COMMIT"):
                connection.execute(text("\n".join(lines).replace(":", "\\:"))).close()

    database.write_now(run)


def test_a_revision_that_fails_leaves_what_was_before(
    fresh: Database, database_kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing if tables can be made in a transaction; on MySQL and MariaDB, what was done stays and is continued."""

    def stop(revision: Revision) -> None:
        if revision.id == "0004":
            raise RuntimeError

    with pytest.raises(RuntimeError):
        migrate.up(fresh, report=stop)
    assert fresh.connections.in_use == 0
    transactional = database_kind in (Kind.SQLITE, Kind.POSTGRES)
    assert (fresh.read_now(ours) == set()) is transactional
    migrate.up(fresh)
    assert fresh.read_now(differences) == []


@on("sqlite", "postgres")
def test_tables_are_locked_for_one_revision_at_a_time(migrated: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    migrate.down(migrated, "0014")

    def stop_at(number: str) -> Callable[[Revision], None]:
        def stop(revision: Revision) -> None:
            if revision.id == number:
                raise RuntimeError

        return stop

    with pytest.raises(RuntimeError):
        migrate.up(migrated, report=stop_at("0017"))
    assert migrated.read_now(migrate.version) == "0016"
    assert migrate.up(migrated)[0].id == "0017"
    with pytest.raises(RuntimeError):
        migrate.down(migrated, "0014", report=stop_at("0017"))
    assert migrated.read_now(migrate.version) == "0017"
    assert [revision.id for revision in migrate.down(migrated, "0014")] == ["0017", "0016", "0015"]


def test_one_that_loses_against_others_runs_again(fresh: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of the version before runs meanwhile, and a database with a deadlock picks who loses."""
    run, lost = migrate._run, 0

    def lose(*arguments: Any) -> None:
        nonlocal lost
        lost += 1
        if lost <= losses:
            raise Contention("lost")
        run(*arguments)

    monkeypatch.setattr(migrate, "_run", lose)
    losses = 99
    with pytest.raises(Contention, match="lost"):
        migrate.up(fresh)
    assert lost == 5
    lost, losses = 0, 2
    assert migrate.up(fresh) == migrate.revisions()
    assert lost == 3


@on("mysql", "mariadb")
@pytest.mark.parametrize("cut", [1, 3, 4, 9, 14])
def test_a_run_that_was_cut_off_is_taken_up(fresh: Database, monkeypatch: pytest.MonkeyPatch, cut: int) -> None:
    """Stop before the nth definition, as a crash would, in the middle of revisions too."""
    query = pymysql.connections.Connection.query
    left = cut

    def crash(self: pymysql.connections.Connection[Any], sql: str | bytes, *rest: bool, **named: bool) -> int:
        nonlocal left
        words = sql.decode() if isinstance(sql, bytes) else sql
        if words.lstrip().startswith("CREATE"):
            if left == 0:
                self.close()
                raise pymysql.err.OperationalError(2013, "crash")
            left -= 1
        return query(self, sql, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(pymysql.connections.Connection, "query", crash)
        with pytest.raises(Unavailable, match="connection was lost"):
            migrate.up(fresh)
    migrate.up(fresh)
    assert fresh.read_now(differences) == []
    assert fresh.read_now(migrate.is_at_head)


@on("sqlite")
def test_foreign_keys_hold_again_after_migrating(migrated: Database) -> None:
    assert migrated.write_now(lambda c: c.exec_driver_sql("PRAGMA foreign_keys").scalar_one()) == 1
    with pytest.raises(SchemaMismatch, match="rows refer to others"), migrated.migrating(1) as connection:
        fill(connection, schema.tokens)
    assert migrated.write_now(lambda c: c.exec_driver_sql("PRAGMA foreign_keys").scalar_one()) == 1
    assert migrated.read_now(contents)["tokens"] == []


@on("postgres")
def test_the_busiest_table_is_cleaned_by_number_not_by_share(migrated: Database) -> None:
    query = "SELECT unnest(reloptions) FROM pg_class WHERE relname = 'in_flight'"
    options = set(migrated.read_now(lambda connection: connection.exec_driver_sql(query).scalars().all()))
    assert {"fillfactor=70", "autovacuum_vacuum_scale_factor=0", "autovacuum_vacuum_threshold=1000"} <= options


def test_where_the_revisions_are(tmp_path: Path) -> None:
    """They are found from any folder, as those of an installed program must be."""
    done = subprocess.run(
        [sys.executable, "-c", "from db import migrate; print(len(migrate.revisions()))"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(schema.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) == len(migrate.revisions())
