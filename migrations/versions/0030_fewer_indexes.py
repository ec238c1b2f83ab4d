"""Drop indexes of open reservations: each request pays for them, and no query needs them.

Revision ID: 0030
Revises: 0029
"""

from __future__ import annotations

from alembic import op

revision = "0030"
down_revision: str | None = "0029"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index("ix_in_flight_worker_id", "in_flight")
    op.drop_index("ix_in_flight_token_id", "in_flight")


def downgrade() -> None:
    op.create_index("ix_in_flight_token_id", "in_flight", ["token_id"])
    op.create_index("ix_in_flight_worker_id", "in_flight", ["worker_id"])
