"""A schema as the database itself describes it, to compare two of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect

from db import Connection
from db.schema import metadata

#: Our tables, without the one that Alembic keeps.
TABLES = tuple(sorted(metadata.tables))


def describe(connection: Connection) -> dict[str, Mapping[str, Any]]:
    """Columns, keys, constraints and indexes of all our tables that are there."""
    found = inspect(connection)
    return {
        table: {
            "columns": [_column(column) for column in found.get_columns(table)],
            "primary key": found.get_pk_constraint(table),
            "unique": sorted((c["name"] or "", c["column_names"]) for c in found.get_unique_constraints(table)),
            "indexes": sorted(
                (i["name"] or "", i["column_names"], bool(i["unique"])) for i in found.get_indexes(table)
            ),
            "foreign keys": [
                (key["name"], key["constrained_columns"], key["referred_table"], key["referred_columns"])
                for key in found.get_foreign_keys(table)
            ],
        }
        for table in TABLES
        if found.has_table(table)
    }


def differences(connection: Connection) -> list[Any]:
    """What Alembic would do to bring the tables to the declared schema."""
    options = {"compare_type": True, "compare_server_default": True}
    return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))


def _column(column: Mapping[str, Any]) -> tuple[Any, ...]:
    kind = column["type"]
    details = [getattr(kind, name, None) for name in ("length", "collation", "timezone", "fsp")]
    return column["name"], type(kind).__name__, *details, column["nullable"], column["default"]
