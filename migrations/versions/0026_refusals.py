"""Refused requests, for operators who ask for them.

Revision ID: 0026
Revises: 0025
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.types import TypeEngine

revision = "0026"
down_revision: str | None = "0025"
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
TIMESTAMP = sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def upgrade() -> None:
    op.create_table(
        "refusals",
        sa.Column("id", ID, nullable=False),
        sa.Column("refused_at", TIMESTAMP, nullable=False),
        sa.Column("token_id", ID, nullable=False),
        sa.Column("project_id", ID, nullable=False),
        sa.Column("provider", CODE, nullable=False),
        sa.Column("method", CODE, nullable=False),
        sa.Column("path", TEXT, nullable=False),
        sa.Column("code", CODE, nullable=False),
        sa.Column("status", sa.SmallInteger(), nullable=False),
        sa.Column("model", NAME, nullable=False),
        sa.Column("address", CODE, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_refusals"),
        mysql_engine="InnoDB",
        mysql_default_charset="utf8mb4",
    )
    op.create_index("ix_refusals_token_id_id", "refusals", ["token_id", "id"])
    op.create_index("ix_refusals_project_id_id", "refusals", ["project_id", "id"])
    op.create_index("ix_refusals_code_id", "refusals", ["code", "id"])


def downgrade() -> None:
    op.drop_table("refusals")
