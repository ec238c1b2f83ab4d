"""List the requests of one outcome.

Revision ID: 0012
Revises: 0011
"""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision: str | None = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_requests_outcome_id", "requests", ["outcome", "id"])


def downgrade() -> None:
    op.drop_index("ix_requests_outcome_id", "requests")
