"""Whether the tokens of a project may name objects that no project is known to have created.

Revision ID: 0018
Revises: 0017
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision: str | None = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("projects", sa.Column("allow_unknown_objects", sa.Boolean(), nullable=False, server_default="0"))


def downgrade() -> None:
    op.drop_column("projects", "allow_unknown_objects")
