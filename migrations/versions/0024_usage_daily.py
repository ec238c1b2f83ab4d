"""Daily sums, and the days that have them.

Revision ID: 0024
Revises: 0023
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.types import TypeEngine

revision = "0024"
down_revision: str | None = "0023"
branch_labels = None
depends_on = None

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
TIMESTAMP = sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")

SUMS = (
    *("requests", "errors", "input_tokens", "output_tokens", "cached_tokens", "client_closed", "unmetered"),
    *("estimated", "unpriced", "cache_write_tokens", "cache_write_1h_tokens", "reasoning_tokens", "cost_nanousd"),
    *("duration_50", "duration_100", "duration_200", "duration_400", "duration_700", "duration_1000"),
    *("duration_1500", "duration_2000", "duration_3000", "duration_5000", "duration_10000", "duration_20000"),
    *("duration_30000", "duration_60000", "duration_120000", "duration_more"),
)


def upgrade() -> None:
    op.create_table(
        "usage_daily",
        sa.Column("scope", NAME, nullable=False),
        sa.Column("day", TIMESTAMP, nullable=False),
        sa.Column("series", NAME, nullable=False),
        sa.Column("provider", CODE, nullable=True),
        sa.Column("answered_model", NAME, nullable=False),
        sa.Column("requested_model", NAME, nullable=True),
        sa.Column("labels", TEXT, nullable=True),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in SUMS),
        sa.PrimaryKeyConstraint("scope", "day", "series", name="pk_usage_daily"),
        mysql_engine="InnoDB",
        mysql_default_charset="utf8mb4",
    )
    op.create_table(
        "usage_days",
        sa.Column("day", TIMESTAMP, nullable=False),
        sa.Column("marked_at", TIMESTAMP, nullable=False),
        sa.Column("written", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("day", name="pk_usage_days"),
        mysql_engine="InnoDB",
        mysql_default_charset="utf8mb4",
    )
    op.create_index("ix_usage_hourly_token_id_hour", "usage_hourly", ["token_id", "hour"])
    op.drop_index("ix_usage_hourly_token_id", "usage_hourly")


def downgrade() -> None:
    op.create_index("ix_usage_hourly_token_id", "usage_hourly", ["token_id"])
    op.drop_index("ix_usage_hourly_token_id_hour", "usage_hourly")
    op.drop_table("usage_days")
    op.drop_table("usage_daily")
