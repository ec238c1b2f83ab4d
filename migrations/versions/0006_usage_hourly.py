"""Sums per hour, token and model.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.types import TypeEngine

revision = "0006"
down_revision: str | None = "0005"
branch_labels = None
depends_on = None

ID: TypeEngine[str] = (
    sa.String(36)
    .with_variant(postgresql.VARCHAR(36, collation="C"), "postgresql")
    .with_variant(mysql.VARCHAR(36, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")
)
NAME: TypeEngine[str] = (
    sa.String(255)
    .with_variant(postgresql.VARCHAR(255, collation="C"), "postgresql")
    .with_variant(mysql.VARCHAR(255, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb")
)
TIMESTAMP = sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def upgrade() -> None:
    op.create_table(
        "usage_hourly",
        sa.Column("hour", TIMESTAMP, nullable=False),
        sa.Column("token_id", ID, nullable=False),
        sa.Column("model", NAME, nullable=False),
        sa.Column("project_id", ID, nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("errors", sa.BigInteger(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("hour", "token_id", "model", name="pk_usage_hourly"),
        mysql_engine="InnoDB",
        mysql_default_charset="utf8mb4",
    )
    op.create_index("ix_usage_hourly_project_id_hour", "usage_hourly", ["project_id", "hour"])
    op.create_index("ix_usage_hourly_token_id", "usage_hourly", ["token_id"])


def downgrade() -> None:
    op.drop_table("usage_hourly")
