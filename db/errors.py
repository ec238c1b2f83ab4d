"""The errors of a database, with messages that a user can act on.

A message never holds a password, an SQL statement, a value or a driver's own words; those are in `__cause__`, for
debugging only. Statements and values are hidden there too, but the words of a server may still quote a row.
"""

from __future__ import annotations


class DatabaseError(Exception):
    """Any failure of the database layer; `str()` of it is one sentence or two."""


class BadDsn(DatabaseError):
    """`DATABASE_URL`, `DB_DRIVER`, `DATABASE_PATH` or a TLS file cannot be used as they are."""


class FileInUse(DatabaseError):
    """Another process holds the SQLite file."""


class Unavailable(DatabaseError):
    """The database cannot be reached or cannot serve now. Nothing was written; trying again later may help."""


class Contention(DatabaseError):
    """The transaction lost against others more often than it may be retried. Nothing was written."""


class Locked(Contention):
    """Another transaction held a row for longer than this one was to wait. Nothing was written."""


class CommitUnknown(DatabaseError):
    """The connection was lost while the commit was on its way: the transaction is either wholly there or not at all."""


class Duplicate(DatabaseError):
    """A row with the same unique value exists. Nothing was written."""


class BrokenReference(DatabaseError):
    """A row was to refer to one that does not exist, or one that is referred to was to go. Nothing was written."""


class SchemaMismatch(DatabaseError):
    """The tables are not those that this version works with."""


class Refused(DatabaseError):
    """The database refused a statement for a reason that a retry does not fix. Nothing was written."""


#: Errors of rows that the database refuses, however often they are tried.
REFUSALS = (BrokenReference, Duplicate, Refused)
