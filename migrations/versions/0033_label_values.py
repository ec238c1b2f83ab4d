"""The values of labels that the sums of a day distinguish.

Revision ID: 0033
Revises: 0032
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.types import TypeEngine

revision = "0033"
down_revision: str | None = "0032"
branch_labels = None
depends_on = None

CODE: TypeEngine[str] = (
    sa.String(64)
    .with_variant(postgresql.VARCHAR(64, collation="C"), "postgresql")
    .with_variant(mysql.VARCHAR(64, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")
)


def upgrade() -> None:
    op.create_table(
        "label_values",
        sa.Column("id", CODE, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_label_values"),
        mysql_engine="InnoDB",
        mysql_default_charset="utf8mb4",
    )


def downgrade() -> None:
    op.drop_table("label_values")
