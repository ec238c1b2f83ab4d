"""Labels of tokens, and whether a project's requests may have labels of their own.

Revision ID: 0022
Revises: 0021
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql
from sqlalchemy.types import TypeEngine

revision = "0022"
down_revision: str | None = "0021"
branch_labels = None
depends_on = None

TEXT: TypeEngine[str] = sa.Text().with_variant(
    mysql.LONGTEXT(charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb"
)


def upgrade() -> None:
    op.add_column("tokens", sa.Column("labels", TEXT, nullable=True))
    op.add_column("projects", sa.Column("allow_request_labels", sa.Boolean(), nullable=False, server_default="0"))


def downgrade() -> None:
    op.drop_column("projects", "allow_request_labels")
    op.drop_column("tokens", "labels")
