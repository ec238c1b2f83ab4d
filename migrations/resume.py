"""MySQL and MariaDB commit every statement that defines something, so a revision may have been done in part.

Such a revision runs again from its beginning. It skips each change that the server reports as done.
"""

from __future__ import annotations

from typing import Any

from alembic.ddl.mysql import MySQLImpl
from sqlalchemy.exc import DBAPIError

#: Table exists, unknown table, column exists, index exists, nothing to drop, foreign key exists.
_DONE = frozenset((1050, 1051, 1060, 1061, 1091, 1826))


class ResumingMySQLImpl(MySQLImpl):
    """Alembic's way to define things on MySQL and MariaDB; takes the place of its own by having the same name."""

    __dialect__ = "mysql"

    def _exec(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super()._exec(*args, **kwargs)
        except DBAPIError as error:
            if error.orig is None or error.orig.args[0] not in _DONE:
                raise
            return None
