"""Limits of tokens, projects and the whole proxy, and their counters.

Revision ID: 0027
Revises: 0026
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.types import TypeEngine

revision = "0027"
down_revision: str | None = "0026"
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
TEXT: TypeEngine[str] = sa.Text().with_variant(
    mysql.LONGTEXT(charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb"
)
TIMESTAMP = sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def upgrade() -> None:
    op.create_table(
        "limits",
        sa.Column("id", ID, nullable=False),
        sa.Column("scope", CODE, nullable=False),
        sa.Column("subject", ID, nullable=False),
        sa.Column("metric", CODE, nullable=False),
        sa.Column("period", CODE, nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("models", TEXT, nullable=True),
        sa.Column("policy", CODE, nullable=False),
        sa.Column("wait_ms", sa.Integer(), nullable=False),
        sa.Column("warn_at", sa.SmallInteger(), nullable=True),
        sa.Column("allow_unpriced", sa.Boolean(), nullable=False),
        sa.Column("created_at", TIMESTAMP, nullable=False),
        sa.Column("updated_at", TIMESTAMP, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_limits"),
        mysql_engine="InnoDB",
        mysql_default_charset="utf8mb4",
    )
    op.create_index("ix_limits_subject", "limits", ["subject"])
    op.create_table(
        "limit_counters",
        sa.Column("id", CODE, nullable=False),
        sa.Column("limit_id", ID, nullable=False),
        sa.Column("started_at", TIMESTAMP, nullable=True),
        *(
            sa.Column(name, sa.BigInteger(), nullable=False)
            for name in ("used", "reserved", "opening", "unknown", "unpriced")
        ),
        sa.PrimaryKeyConstraint("id", name="pk_limit_counters"),
        mysql_engine="InnoDB",
        mysql_default_charset="utf8mb4",
    )
    op.create_index("ix_limit_counters_limit_id", "limit_counters", ["limit_id"])
    op.create_index("ix_limit_counters_started_at", "limit_counters", ["started_at"])
    op.add_column("tokens", sa.Column("limited", sa.Boolean(), nullable=False, server_default="0"))
    op.add_column("tokens", sa.Column("models", TEXT, nullable=True))
    op.add_column("projects", sa.Column("models", TEXT, nullable=True))
    op.add_column("in_flight", sa.Column("limits", TEXT, nullable=True))
    op.add_column("requests", sa.Column("limits", TEXT, nullable=True))


def downgrade() -> None:
    op.drop_column("requests", "limits")
    op.drop_column("in_flight", "limits")
    op.drop_column("projects", "models")
    op.drop_column("tokens", "models")
    op.drop_column("tokens", "limited")
    op.drop_table("limit_counters")
    op.drop_table("limits")
