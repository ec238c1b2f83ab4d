"""Reservations of requests that are not settled yet.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.types import TypeEngine

revision = "0004"
down_revision: str | None = "0003"
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
        "in_flight",
        sa.Column("id", ID, nullable=False),
        sa.Column("worker_id", ID, nullable=False),
        sa.Column("token_id", ID, nullable=False),
        sa.Column("project_id", ID, nullable=False),
        sa.Column("provider", CODE, nullable=False),
        sa.Column("method", CODE, nullable=False),
        sa.Column("path", TEXT, nullable=False),
        sa.Column("admitted_at", TIMESTAMP, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_in_flight"),
        mysql_engine="InnoDB",
        mysql_default_charset="utf8mb4",
        # Every row lives for one request. Dead ones are cleared by their number, not by their share of the table, and
        # without pauses; pages that are never quite full are tidied in passing.
        postgresql_with={
            "fillfactor": 70,
            "autovacuum_vacuum_scale_factor": 0,
            "autovacuum_vacuum_threshold": 1000,
            "autovacuum_vacuum_cost_delay": 0,
            "autovacuum_analyze_scale_factor": 0,
            "autovacuum_analyze_threshold": 10000,
        },
    )
    op.create_index("ix_in_flight_token_id", "in_flight", ["token_id"])
    op.create_index("ix_in_flight_worker_id", "in_flight", ["worker_id"])


def downgrade() -> None:
    op.drop_table("in_flight")
