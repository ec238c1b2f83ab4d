"""Which credential a project uses at a provider.

Revision ID: 0016
Revises: 0015
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.types import TypeEngine

revision = "0016"
down_revision: str | None = "0015"
branch_labels = None
depends_on = None

ID: TypeEngine[str] = (
    sa.String(36)
    .with_variant(postgresql.VARCHAR(36, collation="C"), "postgresql")
    .with_variant(mysql.VARCHAR(36, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")
)
CODE: TypeEngine[str] = (
    sa.String(64)
    .with_variant(postgresql.VARCHAR(64, collation="C"), "postgresql")
    .with_variant(mysql.VARCHAR(64, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")
)


def upgrade() -> None:
    op.create_table(
        "project_credentials",
        sa.Column("project_id", ID, nullable=False),
        sa.Column("provider", CODE, nullable=False),
        sa.Column("credential_id", ID, nullable=False),
        sa.PrimaryKeyConstraint("project_id", "provider", name="pk_project_credentials"),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_project_credentials_project_id"),
        sa.ForeignKeyConstraint(["credential_id"], ["credentials.id"], name="fk_project_credentials_credential_id"),
        mysql_engine="InnoDB",
        mysql_default_charset="utf8mb4",
    )
    op.create_index("ix_project_credentials_credential_id", "project_credentials", ["credential_id"])


def downgrade() -> None:
    op.drop_table("project_credentials")
