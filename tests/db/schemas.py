"""A schema as the database itself describes it, to compare two of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect

from db import Connection
from db.schema import metadata
from tests.databases.admin import POSTGRES_DEFINITION

T = TypeVar("T")

#: Our tables, without the one that Alembic keeps.
TABLES = tuple(sorted(metadata.tables))


def describe(connection: Connection) -> dict[str, Mapping[str, Any]]:
    """Columns, keys, constraints and indexes of all our tables that are there."""
    found = inspect(connection)
    # Of all tables at once: PostgreSQL answers with a few statements then, and not with some for each table.
    columns = _by_table(found.get_multi_columns(filter_names=TABLES))
    primary_keys = _by_table(found.get_multi_pk_constraint(filter_names=TABLES))
    uniques = _by_table(found.get_multi_unique_constraints(filter_names=TABLES))
    indexes = _by_table(found.get_multi_indexes(filter_names=TABLES))
    foreign_keys = _by_table(found.get_multi_foreign_keys(filter_names=TABLES))
    return {
        table: {
            "columns": [_column(column) for column in columns[table]],
            "primary key": primary_keys[table],
            "unique": sorted((c["name"] or "", c["column_names"]) for c in uniques[table]),
            "indexes": sorted((i["name"] or "", i["column_names"], bool(i["unique"])) for i in indexes[table]),
            "foreign keys": [
                (key["name"], key["constrained_columns"], key["referred_table"], key["referred_columns"])
                for key in foreign_keys[table]
            ],
        }
        for table in columns
    }


def texts(connection: Connection) -> object:
    """The schema as the database writes it down: with all that `describe` reads, in one statement for each table."""

    def rows(statement: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in connection.exec_driver_sql(statement)]

    if connection.dialect.name == "sqlite":
        return sorted(rows("SELECT name, sql FROM sqlite_master"), key=str)
    if connection.dialect.name == "postgresql":
        return rows(POSTGRES_DEFINITION)
    return [rows(f"SHOW CREATE TABLE {table}") for (table,) in rows("SHOW TABLES")]


def differences(connection: Connection) -> list[Any]:
    """What Alembic would do to bring the tables to the declared schema."""
    options = {"compare_type": True, "compare_server_default": True}
    return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))


def _by_table(found: Mapping[Any, T]) -> dict[str, T]:
    """Without the schema, which the inspector names beside each table."""
    return {table: of for (_, table), of in found.items()}


def _column(column: Mapping[str, Any]) -> tuple[Any, ...]:
    kind = column["type"]
    details = [getattr(kind, name, None) for name in ("length", "collation", "timezone", "fsp")]
    return column["name"], type(kind).__name__, *details, column["nullable"], column["default"]
