"""Drop the index of all provider request ids.

Revision ID: 0013
Revises: 0012
"""

from __future__ import annotations

from alembic import op

revision = "0013"
down_revision: str | None = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index("ix_requests_provider_request_id_id", "requests")


def downgrade() -> None:
    op.create_index("ix_requests_provider_request_id_id", "requests", ["provider_request_id", "id"])
