"""Copy a database into another one of any kind, and prove that both have the same rows.

Tables are copied one after the other, each in the order of its primary key, in pieces of one transaction. So an
interrupted copy has some whole tables and the beginning of one more. To resume it, compare piece by piece and fix what
differs. At the end the target is read again, and the digests of its rows are compared with those of the source.

`workers` is not copied: its rows are about processes. Open reservations are copied, and belong to no worker of the
target: the first server there settles them as `unknown`, as it does with those of any process that died.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from attrs import define, frozen
from sqlalchemy import Connection, Table, update

from db import migrate
from db.database import Database
from db.errors import DatabaseError
from db.queries import tables
from db.queries.tables import Key, Row, RowsDigest
from db.schema import (
    audit,
    credentials,
    in_flight,
    label_values,
    limit_counters,
    limits,
    project_credentials,
    projects,
    provider_objects,
    refusals,
    requests,
    tokens,
    usage_daily,
    usage_days,
    usage_hourly,
)

#: What is copied, in this order. Requests come first: rows of a target that has been in use since show there, before
#: anything is changed. Tokens refer to projects, and projects to credentials by rows between them.
TABLES: tuple[Table, ...] = (
    requests,
    usage_hourly,
    usage_daily,
    usage_days,
    label_values,
    projects,
    credentials,
    project_credentials,
    tokens,
    limits,
    limit_counters,
    in_flight,
    provider_objects,
    audit,
    refusals,
)

#: Rows in one transaction: few enough for a statement of any database, and for a memory that does not grow.
PIECE = 500

#: Called with the table, the number of copied rows, and the number of rows at the start.
Progress = Callable[[str, int, int], None]


class CopyRefused(DatabaseError):
    """Copying this source into this target would lose or mix up something. Nothing was written."""


@frozen
class Comparison:
    """One table on both sides."""

    table: str
    source: RowsDigest
    target: RowsDigest

    @property
    def equal(self) -> bool:
        return self.source == self.target


def check_schema(source: Database) -> None:
    """Make sure that the source has the tables of this version.

    Raises:
        CopyRefused: it is behind.
        db.errors.SchemaMismatch: a newer llm-proxy has been there.
    """
    status = source.read_now(migrate.status)
    if not status.at_head:
        raise CopyRefused(
            f"{source.target}: the schema is at {status.current or 'base'}, and {status.head} is needed; "
            "run 'llm-proxy migrate up' on it, or start a server of this version once"
        )


def counts(database: Database) -> dict[str, int]:
    return {table.name: database.read_now(tables.count, table) for table in TABLES}


def check_empty(target: Database) -> None:
    """Make sure that the target, at head, has no rows. Raises CopyRefused."""
    found = {name: number for name, number in counts(target).items() if number}
    if found:
        rows = ", ".join(f"{name} {number:,}" for name, number in found.items())
        raise CopyRefused(
            f"{target.target} is not empty ({rows}): use an empty database, or --resume to continue a copy of the "
            "same source"
        )


def copy(source: Database, target: Database, *, resume: bool = False, progress: Progress) -> list[Comparison]:
    """Copy all rows, then compare both sides.

    Args:
        source: at head.
        target: at head; empty unless `resume`.
        resume: make the target equal to the source: add, change and delete rows.
        progress: called after each piece.

    Raises:
        CopyRefused: the target has rows that cannot come from this source.
    """
    found = [_Copy(source, target, table, resume=resume, progress=progress).run() for table in TABLES]
    return [Comparison(table.name, digest, digest_of(target, table)) for table, digest in found]


def digest_of(database: Database, table: Table) -> RowsDigest:
    """Read a whole table for its digest, in constant memory."""
    digest = RowsDigest()
    for rows in _pieces(database, table):
        digest.add(rows)
    return digest


def _pieces(database: Database, table: Table) -> Iterator[list[Row]]:
    after: Key | None = None
    while rows := database.read_now(tables.stretch, table, after, None, PIECE):
        yield rows
        after = tables.key_of(table, rows[-1])


@define
class _Copy:
    """The copy of one table."""

    source: Database
    target: Database
    table: Table
    resume: bool
    progress: Progress

    def run(self) -> tuple[Table, RowsDigest]:
        """Copy it; return it with the digest of what the source held while it was read."""
        table = self.table
        digest = RowsDigest()
        whole = self.source.read_now(tables.count, table)
        oldest = self.source.read_now(tables.first_key, table) if self.resume else None
        if self.resume and table in (projects, credentials):
            self._free_names(oldest)
        after: Key | None = None
        self.progress(table.name, 0, whole)
        for rows in _pieces(self.source, table):
            last = tables.key_of(table, rows[-1])
            if self.resume:
                self._repair(rows, after, last, oldest)
            else:
                self.target.write_now(tables.add, table, rows)
            digest.add(rows)
            after = last
            self.progress(table.name, digest.rows, whole)
        if self.resume:
            self._repair([], after, None, oldest)
        return table, digest

    def _free_names(self, oldest: Key | None) -> None:
        """Give rows of the target whose name has changed their id as a name, until they get the new one.

        Names are unique, and the old one may be that of another row now, in this piece or an earlier one.
        """
        place = self.table.columns.keys().index("name")
        wanted, there = (
            {tables.key_of(self.table, row): row[place] for rows in _pieces(side, self.table) for row in rows}
            for side in (self.source, self.target)
        )
        self._check_surplus([key for key in there if key not in wanted], oldest)
        ids = [key[0] for key, name in there.items() if name != wanted[key]]
        for start in range(0, len(ids), PIECE):
            self.target.write_now(_name_by_id, self.table, ids[start : start + PIECE])

    def _repair(self, rows: list[Row], after: Key | None, last: Key | None, oldest: Key | None) -> None:
        """Make the target's rows behind `after` up to `last` those of the source."""
        table = self.table
        wanted = {tables.key_of(table, row): row for row in rows}
        while True:
            # One more than a piece holds: if there are that many, what follows is looked at in the next turn.
            present = self.target.read_now(tables.stretch, table, after, last, PIECE + 1)
            turn_ends = len(present) <= PIECE
            there = {tables.key_of(table, row): row for row in present}
            surplus = [key for key in there if key not in wanted]
            self._check_surplus(surplus, oldest)
            changed = [row for key, row in wanted.items() if key in there and there[key] != row]
            reached = None if turn_ends else tables.key_of(table, present[-1])
            missing = [row for key, row in wanted.items() if key not in there and (reached is None or key <= reached)]
            if missing or changed or surplus:
                self.target.write_now(_apply, table, missing, changed, surplus)
            if turn_ends:
                return
            after = reached
            wanted = {key: row for key, row in wanted.items() if reached is None or key > reached}

    def _check_surplus(self, surplus: list[Key], oldest: Key | None) -> None:
        """Refuse rows of the target that no copy of this source can have brought.

        Projects, credentials, tokens and hourly sums are never deleted. Requests and the audit log are, from the oldest
        on (LEDGER_RETENTION, AUDIT_RETENTION). Of all others, rows go while the source is in use.
        """
        table = self.table
        if table not in (projects, credentials, tokens, usage_hourly, requests, audit):
            return
        strange = surplus
        if table in (requests, audit):
            strange = [key for key in surplus if oldest is None or key >= oldest]
        if strange:
            raise CopyRefused(
                f"{self.target.target} has rows in {table.name} that the source does not have, such as "
                f"{_shown(strange[0])}: it is no copy of this source, or has been in use since; give an empty database"
            )


def _apply(connection: Connection, table: Table, missing: list[Row], changed: list[Row], surplus: list[Key]) -> None:
    tables.remove(connection, table, surplus)
    for row in changed:
        tables.change(connection, table, row)
    tables.add(connection, table, missing)


def _name_by_id(connection: Connection, table: Table, ids: Sequence[str]) -> None:
    connection.execute(update(table).where(table.c.id.in_(ids)).values(name=table.c.id))


def _shown(key: Key) -> str:
    return " / ".join(str(part) for part in key)
