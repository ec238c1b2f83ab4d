"""The id that the provider gave a request.

Revision ID: 0009
Revises: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.types import TypeEngine

revision = "0009"
down_revision: str | None = "0008"
branch_labels = None
depends_on = None

NAME: TypeEngine[str] = (
    sa.String(255)
    .with_variant(postgresql.VARCHAR(255, collation="C"), "postgresql")
    .with_variant(mysql.VARCHAR(255, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb")
)


def upgrade() -> None:
    op.add_column("requests", sa.Column("provider_request_id", NAME, nullable=True))


def downgrade() -> None:
    op.drop_column("requests", "provider_request_id")
