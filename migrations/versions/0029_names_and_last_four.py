"""Find tokens and projects by name and by the last four characters.

Revision ID: 0029
Revises: 0028
"""

from __future__ import annotations

from alembic import op

revision = "0029"
down_revision: str | None = "0028"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_tokens_name_id", "tokens", ["name", "id"])
    op.create_index("ix_tokens_last4_id", "tokens", ["last4", "id"])
    op.create_index("ix_projects_api_key_last4_id", "projects", ["api_key_last4", "id"])


def downgrade() -> None:
    op.drop_index("ix_projects_api_key_last4_id", "projects")
    op.drop_index("ix_tokens_last4_id", "tokens")
    op.drop_index("ix_tokens_name_id", "tokens")
