"""Requests whose usage could not be read.

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision: str | None = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # With a default of the database's own: a server of the version before keeps settling without it.
    op.add_column("requests", sa.Column("unmetered", sa.Boolean(), nullable=False, server_default="0"))


def downgrade() -> None:
    op.drop_column("requests", "unmetered")
