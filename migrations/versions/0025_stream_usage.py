"""Whether streams of a project are asked for their usage.

Revision ID: 0025
Revises: 0024
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.types import TypeEngine

revision = "0025"
down_revision: str | None = "0024"
branch_labels = None
depends_on = None

CODE: TypeEngine[str] = (
    sa.String(64)
    .with_variant(postgresql.VARCHAR(64, collation="C"), "postgresql")
    .with_variant(mysql.VARCHAR(64, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")
)


def upgrade() -> None:
    op.add_column("projects", sa.Column("stream_usage", CODE, nullable=True))


def downgrade() -> None:
    op.drop_column("projects", "stream_usage")
