"""Index the provider's ids of requests that failed.

Revision ID: 0014
Revises: 0013
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision: str | None = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    failed = sa.text("outcome <> 'ok'")
    op.create_index(
        "ix_requests_provider_request_id_id",
        "requests",
        ["provider_request_id", "id"],
        sqlite_where=failed,
        postgresql_where=failed,
    )


def downgrade() -> None:
    op.drop_index("ix_requests_provider_request_id_id", "requests")
