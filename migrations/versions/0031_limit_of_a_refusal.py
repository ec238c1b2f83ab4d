"""The limit that refused a request.

Revision ID: 0031
Revises: 0030
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.types import TypeEngine

revision = "0031"
down_revision: str | None = "0030"
branch_labels = None
depends_on = None

ID: TypeEngine[str] = (
    sa.String(36)
    .with_variant(postgresql.VARCHAR(36, collation="C"), "postgresql")
    .with_variant(mysql.VARCHAR(36, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")
)


def upgrade() -> None:
    op.add_column("refusals", sa.Column("limit_id", ID, nullable=True))


def downgrade() -> None:
    op.drop_column("refusals", "limit_id")
