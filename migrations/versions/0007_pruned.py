"""How many requests of an hourly sum were pruned from the ledger.

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision: str | None = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # With a default of the database's own: a server of the version before keeps writing its sums without it.
    op.add_column("usage_hourly", sa.Column("pruned", sa.BigInteger(), nullable=False, server_default="0"))


def downgrade() -> None:
    op.drop_column("usage_hourly", "pruned")
