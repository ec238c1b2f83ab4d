"""Classes of tokens, cost and labels of requests, and their hourly sums.

Revision ID: 0021
Revises: 0020
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.types import TypeEngine

revision = "0021"
down_revision: str | None = "0020"
branch_labels = None
depends_on = None

ID: TypeEngine[str] = (
    sa.String(36)
    .with_variant(postgresql.VARCHAR(36, collation="C"), "postgresql")
    .with_variant(mysql.VARCHAR(36, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")
)
CODE: TypeEngine[str] = (
    sa.String(64)
    .with_variant(postgresql.VARCHAR(64, collation="C"), "postgresql")
    .with_variant(mysql.VARCHAR(64, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")
)
NAME: TypeEngine[str] = (
    sa.String(255)
    .with_variant(postgresql.VARCHAR(255, collation="C"), "postgresql")
    .with_variant(mysql.VARCHAR(255, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb")
)
TEXT: TypeEngine[str] = sa.Text().with_variant(
    mysql.LONGTEXT(charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb"
)

COUNT = sa.BigInteger()

#: Table, name, type, and the default of columns that are not null. With defaults of the database's own, or null: a
#: server of the version before keeps writing its rows without them.
COLUMNS: tuple[tuple[str, str, sa.types.TypeEngine[str] | sa.BigInteger | sa.Boolean, str | None], ...] = (
    ("requests", "requested_model", NAME, None),
    ("requests", "cache_write_tokens", COUNT, None),
    ("requests", "cache_write_1h_tokens", COUNT, None),
    ("requests", "reasoning_tokens", COUNT, None),
    ("requests", "usage_details", TEXT, None),
    ("requests", "service_tier", CODE, None),
    ("requests", "estimated", sa.Boolean(), "0"),
    ("requests", "cost_nanousd", COUNT, None),
    ("requests", "cost_basis", CODE, None),
    ("requests", "price_version", CODE, None),
    ("requests", "labels", TEXT, None),
    ("requests", "summed_labels", TEXT, None),
    ("requests", "kind", CODE, "request"),
    ("requests", "origin_id", ID, None),
    ("usage_hourly", "provider", CODE, None),
    ("usage_hourly", "answered_model", NAME, None),
    ("usage_hourly", "requested_model", NAME, None),
    ("usage_hourly", "labels", TEXT, None),
    ("usage_hourly", "unmetered", COUNT, "0"),
    ("usage_hourly", "estimated", COUNT, "0"),
    ("usage_hourly", "unpriced", COUNT, "0"),
    ("usage_hourly", "cache_write_tokens", COUNT, "0"),
    ("usage_hourly", "cache_write_1h_tokens", COUNT, "0"),
    ("usage_hourly", "reasoning_tokens", COUNT, "0"),
    ("usage_hourly", "cost_nanousd", COUNT, "0"),
    *(
        ("usage_hourly", f"duration_{bound}", COUNT, "0")
        for bound in (
            *("50", "100", "200", "400", "700", "1000", "1500", "2000", "3000", "5000", "10000", "20000", "30000"),
            *("60000", "120000", "more"),
        )
    ),
)


def upgrade() -> None:
    for table, name, kind, default in COLUMNS:
        op.add_column(table, sa.Column(name, kind, nullable=default is None, server_default=default))


def downgrade() -> None:
    # The version before takes each row for a request, but for void ones. On MySQL this may be the second run.
    if any(column["name"] == "kind" for column in sa.inspect(op.get_bind()).get_columns("requests")):
        op.execute("UPDATE requests SET outcome = 'void' WHERE kind = 'late'")
    for table, name, _, _ in reversed(COLUMNS):
        op.drop_column(table, name)
