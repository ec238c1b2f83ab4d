"""Bring a database to the schema of this version, or back: the revisions of `migrations`, one process at a time.

A database that is at head is left alone, without a lock. Otherwise the lock is taken, the state is looked at again,
and the revisions run: in one transaction on SQLite and PostgreSQL, one by one on MySQL and MariaDB, where a run that
was cut off is taken up again. The lock ends with its connection, so a process that dies holds nobody up.

A schema that is newer than this version is never touched. A server works on it nevertheless where it `suits`: during
an update the new version migrates while the old one still serves, and an old server must be able to come back.

All functions block; a server runs them in a thread.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from attrs import frozen
from sqlalchemy import Connection, inspect, text

from db.database import Database
from db.errors import Contention, Refused, SchemaMismatch
from db.schema import metadata
from db.suitability import misfits
from db.undoing import VERSION_TABLE, mark, marked, unmark

if TYPE_CHECKING:
    from alembic.config import Config

#: How often a migration runs at most that loses against transactions of others.
_ATTEMPTS = 5

_FILE = re.compile(r"(\d{4})_([a-z0-9_]+)\.py")
_VERSION = text(f"SELECT version_num FROM {VERSION_TABLE}")  # noqa: S608 - a constant


@frozen
class Revision:
    """One step of the schema's history: `id` is its number in four digits."""

    id: str
    title: str


@frozen
class Status:
    """Where a database stands.

    Attributes:
        current: the revision that it is at, one back where undoing it was cut off; None before the first.
        head: the revision that this version works with.
        pending: what `up` would run, in order.
    """

    current: str | None
    head: str
    pending: tuple[Revision, ...]

    @property
    def at_head(self) -> bool:
        """Whether there is nothing to do."""
        return self.current == self.head


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
    """Where the database stands. Raises SchemaMismatch when a newer llm-proxy has been there."""
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
    """Run what is missing, and say what it was.

    Args:
        database: open; a SQLite file is thereby locked.
        report: called after each revision.
        waiting: told in a sentence whom it waits for.

    Raises:
        Contention: another process migrated all the while; the message says which.
        SchemaMismatch: the database belongs to a newer version, or to another program.
    """
    if database.read_now(status).at_head:
        return ()
    for attempt in itertools.count(1):
        locked = False
        try:
            with database.migrating(database.options.migration_lock_timeout, waiting) as connection:
                locked = True
                pending = _pending(connection)
                if pending:
                    _forget(connection, pending[0])
                    _run("upgrade", connection, "head", report)
                return pending
        except Contention:
            # Servers that go on meanwhile use the tables in another order; now and then the database picks us to lose.
            if not locked or attempt == _ATTEMPTS:
                raise
    raise AssertionError


def prepare(database: Database, waiting: Callable[[str], None] | None = None) -> str | None:
    """Make the schema one that a server of this version can work on: `up`, unless it is newer and suits.

    Returns:
        What the server's operator should know: that the schema is newer. None where it is at head.

    Raises:
        As `up` does; SchemaMismatch when a newer schema does not suit says what is amiss.
    """
    found, amiss = database.read_now(_look)
    if found is None or not _is_newer(found):
        up(database, waiting=waiting)
        return None
    if amiss:
        raise SchemaMismatch(f"{_unknown(found)}, and this one cannot work on it: {amiss[0]}; use the newer version")
    return f"{_unknown(found)}; this one can work on it"


def suits(connection: Connection) -> bool:
    """Whether a server of this version can work on the schema as it is: at head, or newer and with all it needs."""
    found, amiss = _look(connection)
    return found is not None and (found == revisions()[-1].id or _is_newer(found)) and not amiss


def down(
    database: Database,
    to: str | None = None,
    *,
    report: Callable[[Revision], None] | None = None,
    waiting: Callable[[str], None] | None = None,
) -> tuple[Revision, ...]:
    """Undo revisions, newest first, and say which; their tables go with all rows.

    Args:
        database: open; a SQLite file is thereby locked.
        to: the revision to go back to, `base` for before the first; None undoes one.
        report: called after each revision.
        waiting: told in a sentence whom it waits for.

    Raises:
        Contention: another process migrated all the while; the message says which.
        Refused: there is no such revision below the current one.
        SchemaMismatch: the database belongs to a newer version.
    """
    with database.migrating(database.options.migration_lock_timeout, waiting) as connection:
        kept, undone = steps_down(connection, to)
        for revision, before in zip(undone, [*undone[1:], *kept[-1:], None], strict=False):
            mark(connection, revision.id)
            _run("downgrade", connection, "base" if before is None else before.id, report)
            unmark(connection)
        return undone


def steps_down(connection: Connection, to: str | None) -> tuple[tuple[Revision, ...], tuple[Revision, ...]]:
    """The revisions that `down` keeps, oldest first, and those that it undoes, newest first. Raises as `down` does."""
    found = status(connection)
    done = revisions()[: len(revisions()) - len(found.pending)]
    if found.pending and found.pending[0].id == version(connection):
        done += found.pending[:1]  # half undone
    kept = _kept(done, to)
    return kept, done[len(kept) :][::-1]


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


def _look(connection: Connection) -> tuple[str | None, list[str]]:
    """The revision, and what a server of this version would miss there if it is one that is newer."""
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
    """Let a revision that is half undone, and therefore pending, count as not applied."""
    if version(connection) is None:
        return
    if version(connection) == pending.id:
        number = revisions().index(pending)
        if number:
            before = {"before": revisions()[number - 1].id}
            connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = :before"), before)  # noqa: S608 - likewise
        else:
            connection.execute(text(f"DELETE FROM {VERSION_TABLE}"))  # noqa: S608 - likewise
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
    from alembic import command  # noqa: PLC0415 - slow to import, and most starts are at head

    config = _config(connection, sql)
    if report is not None:
        told = {revision.id: revision for revision in revisions()}
        config.attributes["on_version_apply"] = lambda step, **_: report(told[step.up_revision_id])
    getattr(command, direction)(config, to, sql=sql is not None)


def _config(connection: Connection, sql: io.StringIO | None) -> Config:
    from alembic.config import Config  # noqa: PLC0415 - likewise

    config = Config(output_buffer=sql) if sql is not None else Config()
    config.set_main_option("script_location", str(files("migrations")).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
