"""Bring a database to the schema of this version, or back: the revisions of `migrations`, one process at a time.

A database at head is left alone, without a lock. Otherwise the lock is taken, the state is read again, and the
revisions run one by one, each in its own transaction on SQLite and PostgreSQL; an interrupted run is continued. So the
tables of running servers are locked only for one revision at a time. The lock ends with its connection, so a process
that dies blocks no other.

A schema that is newer than this version is never changed. A server works on it anyway if it `suits`: during an
update the new version migrates while the old one still serves, and an old server must be able to restart.

All functions block; a server runs them in a thread.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from attrs import frozen
from sqlalchemy import Connection, MetaData, Table, inspect, text
from sqlalchemy.engine.interfaces import ReflectedColumn
from sqlalchemy.schema import DropTableComment, SetTableComment

from db.database import Database, opened
from db.dsn.target import Target
from db.errors import Contention, Refused, SchemaMismatch
from db.options import Options
from db.queries import tables
from db.schema import metadata

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

#: Maximum number of runs of a migration that loses against other transactions.
_ATTEMPTS = 5

#: The table in which Alembic keeps the revision.
VERSION_TABLE = "alembic_version"
#: The comment of that table while a revision is being undone. If each DDL statement commits at once, an interrupted
#: `down` leaves a revision that counts as applied and is half removed; the next run reads the comment. A database with
#: transactional DDL rolls the comment back too, and SQLite, which has no comments, is one.
_MARK = "undoing "

_FILE = re.compile(r"(\d{4})_([a-z0-9_]+)\.py")
_VERSION = text(f"SELECT version_num FROM {VERSION_TABLE}")  # noqa: S608 - a constant


@frozen
class Revision:
    """One step of the schema's history: `id` is its number in four digits."""

    id: str
    title: str


@frozen
class Status:
    """The revision of a database, and what is left to run.

    Attributes:
        current: the revision that it is at, the one before if undoing it was interrupted; None before the first.
        head: the revision that this version works with.
        pending: what `up` would run, in order.
    """

    current: str | None
    head: str
    pending: tuple[Revision, ...]

    @property
    def at_head(self) -> bool:
        return self.current == self.head


@frozen
class Loss:
    """A table that is deleted, or one of its columns, with the number of rows in the table."""

    table: str
    column: str | None
    rows: int


@cache
def revisions() -> tuple[Revision, ...]:
    """The whole history, oldest first, read from the names of its files."""
    names = sorted(entry.name for entry in (files("migrations") / "versions").iterdir())
    found = [match for name in names if (match := _FILE.fullmatch(name))]
    return tuple(Revision(match[1], match[2].replace("_", " ")) for match in found)


def version(connection: Connection) -> str | None:
    """The revision that the database is at; None before the first."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    current: str | None = connection.scalar(_VERSION)
    return current


def is_at_head(connection: Connection) -> bool:
    """Whether the schema is the one that this version works with. Two cheap queries."""
    return version(connection) == revisions()[-1].id


def status(connection: Connection) -> Status:
    """The status of the database. Raises SchemaMismatch if a newer llm-proxy migrated it."""
    current = version(connection)
    known = [revision.id for revision in revisions()]
    if current is not None and current not in known:
        raise SchemaMismatch(f"{_unknown(current)}; use that version, or migrate down with it")
    done = 0 if current is None else known.index(current) + 1
    if current is not None and marked(connection) == current:
        done -= 1
        current = known[done - 1] if done else None
    return Status(current, known[-1], revisions()[done:])


def up(
    database: Database,
    *,
    report: Callable[[Revision], None] | None = None,
    waiting: Callable[[str], None] | None = None,
) -> tuple[Revision, ...]:
    """Run the missing revisions and return them.

    Args:
        database: open; a SQLite file is thereby locked.
        report: called after each revision.
        waiting: called with a sentence that names the process it waits for.

    Raises:
        Contention: another process held the lock until the deadline; the message names it.
        SchemaMismatch: the database belongs to a newer version, or to another program.
    """
    if database.read_now(status).at_head:
        return ()
    done: tuple[Revision, ...] = ()
    failures = 0
    while True:
        locked = False
        try:
            with database.migrating(database.options.migration_lock_timeout, waiting) as connection:
                locked = True
                pending = _pending(connection)
                # Nobody uses an empty database yet.
                step = pending if len(pending) == len(revisions()) else pending[:1]
                if step:
                    _forget(connection, step[0])
                    _run("upgrade", connection, step[-1].id, report)
        except Contention:
            # Running servers lock tables in another order; sometimes the database chooses this transaction to lose.
            failures += 1
            if not locked or failures == _ATTEMPTS:
                raise
        else:
            done, failures = done + step, 0
            if step == pending:
                return done


def prepare(database: Database, waiting: Callable[[str], None] | None = None) -> str | None:
    """Make the schema one that a server of this version can work on: `up`, unless it is newer and suits.

    Returns:
        A note for the operator that the schema is newer; None if it is at head.

    Raises:
        As `up` does; SchemaMismatch if a newer schema does not suit, with what is missing.
    """
    found, missing = database.read_now(_look)
    if found is None or not _is_newer(found):
        up(database, waiting=waiting)
        return None
    if missing:
        raise SchemaMismatch(f"{_unknown(found)}, and this one cannot work on it: {missing[0]}; use the newer version")
    return f"{_unknown(found)}; this one can work on it"


def suits(connection: Connection) -> bool:
    """Whether a server of this version can work on the schema as it is: at head, or newer and with all it needs."""
    found, missing = _look(connection)
    return found is not None and (found == revisions()[-1].id or _is_newer(found)) and not missing


def down(
    database: Database,
    to: str | None = None,
    *,
    report: Callable[[Revision], None] | None = None,
    waiting: Callable[[str], None] | None = None,
) -> tuple[Revision, ...]:
    """Undo revisions, newest first, and return them; their tables are dropped with all rows.

    Args:
        database: open; a SQLite file is thereby locked.
        to: the revision to go back to, `base` for before the first; None undoes one.
        report: called after each revision.
        waiting: called with a sentence that names the process it waits for.

    Raises:
        Contention: another process held the lock until the deadline; the message names it.
        Refused: there is no such revision below the current one.
        SchemaMismatch: the database belongs to a newer version.
    """
    done: tuple[Revision, ...] = ()
    while True:
        with database.migrating(database.options.migration_lock_timeout, waiting) as connection:
            kept, undone = steps_down(connection, to)
            if undone:
                to = to or (kept[-1].id if kept else "base")
                below = [*undone[1:], *kept[-1:]]
                mark(connection, undone[0].id)
                _run("downgrade", connection, below[0].id if below else "base", report)
                unmark(connection)
        done += undone[:1]
        if len(undone) < 2:
            return done


def steps_down(connection: Connection, to: str | None) -> tuple[tuple[Revision, ...], tuple[Revision, ...]]:
    """The revisions that `down` keeps, oldest first, and those that it undoes, newest first. Raises as `down` does."""
    found = status(connection)
    done = revisions()[: len(revisions()) - len(found.pending)]
    if found.pending and found.pending[0].id == version(connection):
        done += found.pending[:1]  # half undone
    kept = _kept(done, to)
    return kept, done[len(kept) :][::-1]


def losses(database: Database, to: str | None = None) -> tuple[Loss, ...] | None:
    """Find what `down` would delete, by comparing the schema with a fresh one at the revision `to`.

    Returns:
        The tables and columns; None when there is no revision to undo.

    Raises:
        Refused, SchemaMismatch: as `down` does.
    """
    # On a connection that may write: one that only reads leaves SQLite's log behind when it is closed.
    kept, undone = database.write_now(steps_down, to)
    if not undone:
        return None
    left = _columns_at(kept[-1].id) if kept else {}

    def look(connection: Connection) -> tuple[Loss, ...]:
        found = []
        for table, columns in _columns(connection).items():
            gone = sorted(columns - left[table]) if table in left else [None]
            if gone:
                rows = tables.count(connection, metadata.tables[table])
                found += [Loss(table, column, rows) for column in gone]
        return tuple(found)

    return database.read_now(look)


def plan(database: Database) -> str:
    """The SQL that `up` would run; empty at head."""

    def describe(connection: Connection) -> str:
        before = status(connection)
        if before.at_head:
            return ""
        out = io.StringIO()
        _run("upgrade", connection, f"{before.current or 'base'}:head", None, out)
        return out.getvalue()

    return database.read_now(describe)


def _columns_at(revision: str) -> dict[str, set[str]]:
    with opened(Target("sqlite"), Options()) as fresh:
        up(fresh)
        down(fresh, revision)
        return fresh.read_now(_columns)


def _columns(connection: Connection) -> dict[str, set[str]]:
    names = list(metadata.tables)
    found = {name: columns for (_, name), columns in inspect(connection).get_multi_columns(filter_names=names).items()}
    return {name: {column["name"] for column in found[name]} for name in names if name in found}


def _look(connection: Connection) -> tuple[str | None, list[str]]:
    """The revision, and if it is newer, what a server of this version would miss."""
    found = version(connection)
    newer = found is not None and _is_newer(found)
    return found, misfits(connection) if newer else []


def _is_newer(found: str) -> bool:
    return re.fullmatch(r"\d{4}", found) is not None and found > revisions()[-1].id


def _unknown(found: str) -> str:
    return (
        f"the schema is at revision {found}, which this version does not know (its last is {revisions()[-1].id}): "
        "a newer llm-proxy migrated it"
    )


def _pending(connection: Connection) -> tuple[Revision, ...]:
    before = status(connection)
    if before.current is None and not inspect(connection).has_table(VERSION_TABLE):
        strangers = sorted(set(inspect(connection).get_table_names()) & set(metadata.tables))
        if strangers:
            raise SchemaMismatch(
                f"the database has tables of another origin ({', '.join(strangers)}); give llm-proxy one of its own"
            )
    return before.pending


def _forget(connection: Connection, pending: Revision) -> None:
    """Make a half undone revision, which is pending, count as not applied."""
    if version(connection) is None:
        return
    if version(connection) == pending.id:
        number = revisions().index(pending)
        if number:
            before = {"before": revisions()[number - 1].id}
            connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = :before"), before)  # noqa: S608 - a constant
        else:
            connection.execute(text(f"DELETE FROM {VERSION_TABLE}"))  # noqa: S608 - a constant
    unmark(connection)


def _kept(done: tuple[Revision, ...], to: str | None) -> tuple[Revision, ...]:
    if to is None:
        return done[:-1]
    if to == "base":
        return ()
    for number, revision in enumerate(done, start=1):
        if revision.id == to:
            return done[:number]
    reachable = ", ".join(["base", *(revision.id for revision in done[:-1])])
    raise Refused(f"there is no revision {to} to go back to; choose one of {reachable}")


def _run(
    direction: str,
    connection: Connection,
    to: str,
    report: Callable[[Revision], None] | None,
    sql: io.StringIO | None = None,
) -> None:
    """Do what `alembic upgrade` and `alembic downgrade` do, without reading all revisions again for each run."""
    from alembic.runtime.environment import EnvironmentContext  # noqa: PLC0415 - slow to import; most starts are at head

    script = _scripts()
    config = _config()
    config.attributes["connection"] = connection
    if sql is not None:
        config.output_buffer = sql
    if report is not None:
        told = {revision.id: revision for revision in revisions()}
        config.attributes["on_version_apply"] = lambda step, **_: report(told[step.up_revision_id])
    start, _, end = to.rpartition(":")
    steps = script._upgrade_revs if direction == "upgrade" else script._downgrade_revs  # noqa: SLF001 - as Alembic does

    def path(current: Any, _: Any) -> list[Any]:
        return list(steps(end, current))

    run = {"fn": path, "as_sql": sql is not None, "starting_rev": start or None, "destination_rev": end}
    with EnvironmentContext(config, script, **run):
        script.run_env()


@cache
def _scripts() -> ScriptDirectory:
    from alembic.script import ScriptDirectory  # noqa: PLC0415 - slow to import

    return ScriptDirectory.from_config(_config())


def _config() -> Config:
    from alembic.config import Config  # noqa: PLC0415 - slow to import

    config = Config()
    config.set_main_option("script_location", str(files("migrations")).replace("%", "%%"))
    return config


def misfits(connection: Connection) -> list[str]:
    """What this version needs and a newer schema does not have, each as a phrase; empty if it can work on the schema.

    Rows are read and written with their columns named, so further tables, columns and indexes do no harm. A missing
    table or column does, and so does a new column that an INSERT has to fill.
    """
    found = inspect(connection)
    there = set(found.get_table_names())
    missing: list[str] = []
    for table in metadata.sorted_tables:
        if table.name not in there:
            missing.append(f"there is no table {table.name}")
            continue
        known = [column.name for column in table.columns]
        columns = {column["name"]: column for column in found.get_columns(table.name)}
        missing += [f"{table.name} has no column {name}" for name in known if name not in columns]
        missing += [
            f"{table.name}.{name} must be filled, and this version does not know with what"
            for name, column in columns.items()
            if name not in known and not column["nullable"] and not _fills_itself(column)
        ]
    return missing


def _fills_itself(column: ReflectedColumn) -> bool:
    return column["default"] is not None or "computed" in column or "identity" in column


def mark(connection: Connection, revision: str) -> None:
    """Record that a revision is being undone, unless a run that was interrupted has recorded it."""
    if connection.dialect.supports_comments and marked(connection) != revision:
        connection.execute(SetTableComment(Table(VERSION_TABLE, MetaData(), comment=_MARK + revision)))


def unmark(connection: Connection) -> None:
    """Remove the record of `mark`, if there is one."""
    if _comment(connection).startswith(_MARK):
        connection.execute(DropTableComment(Table(VERSION_TABLE, MetaData())))


def marked(connection: Connection) -> str | None:
    """The revision that was being undone; None if there is none, or no version table yet."""
    comment = _comment(connection)
    return comment.removeprefix(_MARK) if comment.startswith(_MARK) else None


def _comment(connection: Connection) -> str:
    if not connection.dialect.supports_comments:
        return ""
    return inspect(connection).get_table_comment(VERSION_TABLE)["text"] or ""
