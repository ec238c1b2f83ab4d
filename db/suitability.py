"""Whether a schema that a newer version has made still serves this one: everything is there, and nothing else is asked.

Rows are read and written with their columns named, so that further tables, columns and indexes do no harm. What does
is a table or column that has gone, and a new column that an INSERT has to fill.
"""

from __future__ import annotations

from sqlalchemy import Connection, inspect
from sqlalchemy.engine.interfaces import ReflectedColumn

from db.schema import metadata


def misfits(connection: Connection) -> list[str]:
    """What this version would stumble over, each in a few words; empty when it can work on the schema."""
    found = inspect(connection)
    there = set(found.get_table_names())
    amiss: list[str] = []
    for table in metadata.sorted_tables:
        if table.name not in there:
            amiss.append(f"there is no table {table.name}")
            continue
        known = [column.name for column in table.columns]
        columns = {column["name"]: column for column in found.get_columns(table.name)}
        amiss += [f"{table.name} has no column {name}" for name in known if name not in columns]
        amiss += [
            f"{table.name}.{name} must be filled, and this version does not know with what"
            for name, column in columns.items()
            if name not in known and not column["nullable"] and not _fills_itself(column)
        ]
    return amiss


def _fills_itself(column: ReflectedColumn) -> bool:
    return column["default"] is not None or "computed" in column or "identity" in column
