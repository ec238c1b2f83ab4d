"""Hourly sums of the requests whose clients left before the end.

Revision ID: 0010
Revises: 0009
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision: str | None = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # With a default of the database's own: a server of the version before keeps writing its sums without it.
    op.add_column("usage_hourly", sa.Column("client_closed", sa.BigInteger(), nullable=False, server_default="0"))


def downgrade() -> None:
    op.drop_column("usage_hourly", "client_closed")
