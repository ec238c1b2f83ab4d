"""Bring a database to the schema of this version, or back: the revisions of `migrations`, one process at a time.

A database that is at head is left alone, without a lock. Otherwise the lock is taken, the state is looked at again,
and the revisions run: in one transaction on SQLite and PostgreSQL, one by one on MySQL and MariaDB, where a run that
was cut off is taken up again. The lock ends with its connection, so a process that dies holds nobody up.

All functions block; a server runs them in a thread.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from attrs import frozen
from sqlalchemy import Connection, inspect, text

from db.database import Database, opened
from db.errors import Refused, SchemaMismatch
from db.options import Options
from db.schema import metadata
from db.target import Target

if TYPE_CHECKING:
    from alembic.config import Config

#: How long to wait for another process that migrates, in seconds.
LOCK_DEADLINE = 60.0

_FILE = re.compile(r"(\d{4})_([a-z0-9_]+)\.py")
_VERSION_TABLE = "alembic_version"
_VERSION = text(f"SELECT version_num FROM {_VERSION_TABLE}")  # noqa: S608 - a constant


@frozen
class Revision:
    """One step of the schema's history: `id` is its number in four digits."""

    id: str
    title: str


@frozen
class Status:
    """Where a database stands.

    Attributes:
        current: the revision that it is at; None before the first.
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
    if not inspect(connection).has_table(_VERSION_TABLE):
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
        raise SchemaMismatch(
            f"the schema is at revision {current}, which this version does not know (its last is {known[-1]}): "
            "a newer llm-proxy migrated it; use that version, or migrate down with it"
        )
    done = 0 if current is None else known.index(current) + 1
    return Status(current, known[-1], revisions()[done:])


def up(
    database: Database, *, deadline: float = LOCK_DEADLINE, report: Callable[[Revision], None] | None = None
) -> tuple[Revision, ...]:
    """Run what is missing, and say what it was.

    Args:
        database: open; a SQLite file is thereby locked.
        deadline: how long to wait for another process that migrates, in seconds.
        report: called after each revision.

    Raises:
        Contention: another process migrated all the while.
        SchemaMismatch: the database belongs to a newer version, or to another program.
    """
    if database.read_now(status).at_head:
        return ()
    with database.migrating(deadline) as connection:
        pending = _pending(connection)
        if pending:
            _run("upgrade", connection, "head", report)
        return pending


def down(
    database: Database,
    to: str | None = None,
    *,
    deadline: float = LOCK_DEADLINE,
    report: Callable[[Revision], None] | None = None,
) -> tuple[Revision, ...]:
    """Undo revisions, newest first, and say which; their tables go with all rows.

    Args:
        database: open; a SQLite file is thereby locked.
        to: the revision to go back to, `base` for before the first; None undoes one.
        deadline: how long to wait for another process that migrates, in seconds.
        report: called after each revision.

    Raises:
        Contention: another process migrated all the while.
        Refused: there is no such revision below the current one.
        SchemaMismatch: the database belongs to a newer version.
    """
    with database.migrating(deadline) as connection:
        current = status(connection).current
        known = revisions()
        done = known[: 0 if current is None else [revision.id for revision in known].index(current) + 1]
        kept = _kept(done, to)
        if len(kept) == len(done):
            return ()
        _run("downgrade", connection, kept[-1].id if kept else "base", report)
        return done[: len(kept) - 1 if kept else None : -1]


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


def upgrade(target: Target, options: Options | None = None) -> tuple[Revision, ...]:
    """Open a database, migrate it `up`, close it."""
    with opened(target, options or Options()) as database:
        return up(database)


def _pending(connection: Connection) -> tuple[Revision, ...]:
    before = status(connection)
    if before.current is None and not inspect(connection).has_table(_VERSION_TABLE):
        strangers = sorted(set(inspect(connection).get_table_names()) & set(metadata.tables))
        if strangers:
            raise SchemaMismatch(
                f"the database has tables of another origin ({', '.join(strangers)}); give llm-proxy one of its own"
            )
    return before.pending


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
