"""How many rows of late usage of each hour were pruned.

Revision ID: 0028
Revises: 0027
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0028"
down_revision: str | None = "0027"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # With a default of the database's own: a server of the version before keeps writing its rows without it.
    op.add_column("usage_hourly", sa.Column("pruned_late", sa.BigInteger(), nullable=False, server_default="0"))


def downgrade() -> None:
    op.drop_column("usage_hourly", "pruned_late")
