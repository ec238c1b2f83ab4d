"""Each project's key becomes a credential of the same name and id.

The sealed key is bound to its project's id, so a credential with the same id can open it without being encrypted again.


Revision ID: 0017
Revises: 0016
"""

from __future__ import annotations

from alembic import op

revision = "0017"
down_revision: str | None = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        "INSERT INTO credentials (id, name, provider, api_key, api_key_last4, active, created_at, updated_at)"
        " SELECT id, name, provider, api_key, api_key_last4, true, created_at, updated_at FROM projects"
        " WHERE NOT EXISTS (SELECT 1 FROM credentials WHERE credentials.id = projects.id)"
    )
    op.execute(
        "INSERT INTO project_credentials (project_id, provider, credential_id) SELECT id, provider, id FROM projects"
        " WHERE NOT EXISTS (SELECT 1 FROM project_credentials WHERE project_credentials.project_id = projects.id)"
    )


def downgrade() -> None:
    # The rows go with their tables. A project still has its own key, which servers of the release before read.
    pass
