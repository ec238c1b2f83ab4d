"""A spool: records on this machine's disk that will be written to the database later.

It is a SQLite file with one owner, the process that holds its lock. The lock ends with the process, however it ends, so
that another one can open the file then. Everything here blocks: call it in a thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from attrs import define, field
from sqlalchemy import Column, Connection, Integer, LargeBinary, MetaData, Table, delete, insert, select

from db.database import Database
from db.dialects.bulk import BulkInsert
from db.dsn.target import Target
from db.errors import BadDsn, DatabaseError, Unavailable
from db.options import Options

_metadata = MetaData()
_records = Table(
    "spool",
    _metadata,
    Column("id", Integer, primary_key=True),
    Column("record", LargeBinary, nullable=False),
)
# A new row: SQLite chooses its id.
_insert = BulkInsert(insert(_records), ["id", "record"])


@define(eq=False)
class SpoolFile:
    """An open spool. It stays open, and locked, until `close`."""

    path: Path
    _database: Database = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a spool; create it, and its folder, for its owner only if it does not exist.

        Raises:
            FileInUse: another process has opened it.
            Unavailable: the file cannot be opened; a damaged one is renamed to `….damaged`.
        """
        database = Database(Target("sqlite", path), Options(pool_size=1, sqlite_synchronous="FULL"))
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            database.open()
            database.write_now(_metadata.create_all)
        except OSError as error:
            raise Unavailable(f"{path} cannot be created: {error.strerror}") from error
        except BadDsn as error:
            # The rest of the message is advice about another setting.
            raise Unavailable(str(error).removeprefix("DATABASE_PATH ").partition(";")[0]) from error
        except DatabaseError as error:
            database.close()
            if _is_damage(error):
                _set_aside(path)
            raise
        return cls(path, database)

    def append(self, records: Sequence[bytes], *, from_empty: bool = False) -> None:
        """Write records in one transaction, which deletes all earlier ones first if `from_empty`.

        They are on the disk when this returns. Raises as `Database.write` does.
        """
        self._database.write_now(_append, records, from_empty)

    def read(self) -> tuple[list[bytes], bool]:
        """Read the records, oldest first; True if the file is damaged, so that some are missing.

        Raises as `Database.read` does.
        """
        records: list[bytes] = []
        try:
            self._database.read_now(_read, records)
        except DatabaseError as error:
            if not _is_damage(error):
                raise
            return records, True
        return records, False

    def remove(self, *, damaged: bool = False) -> None:
        """Delete the file, or rename it to `….damaged`. Raises OSError.

        A process that dies in here leaves a file that can be opened again, or none.
        """
        if damaged:
            _set_aside(self.path)
        # The lock comes last: nobody else opens the file as long as it is there.
        for suffix in ("-wal", "-shm", "", ".lock"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file. If it was not removed, another process may open it now."""
        self._database.close()


def _append(connection: Connection, records: Sequence[bytes], from_empty: bool) -> None:  # noqa: FBT001 - `write_now` passes no keywords
    if from_empty:
        connection.execute(delete(_records))
    _insert(connection, [{"id": None, "record": record} for record in records])


def _read(connection: Connection, records: list[bytes]) -> None:
    # If this runs again, it starts again.
    records.clear()
    for record in connection.scalars(select(_records.c.record).order_by(_records.c.id)):
        records.append(record)  # noqa: PERF402 - the records before a damaged page are kept


def _set_aside(path: Path) -> None:
    path.rename(path.with_name(path.name + ".damaged"))


def _is_damage(error: DatabaseError) -> bool:
    code: int = getattr(getattr(error.__cause__, "orig", None), "sqlite_errorcode", 0)
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
