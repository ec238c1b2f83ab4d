"""Find a request by the provider's id.

Revision ID: 0011
Revises: 0010
"""

from __future__ import annotations

from alembic import op

revision = "0011"
down_revision: str | None = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_requests_provider_request_id_id", "requests", ["provider_request_id", "id"])


def downgrade() -> None:
    op.drop_index("ix_requests_provider_request_id_id", "requests")
