"""Tokens: withering, and known by their digest.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.types import TypeEngine

revision = "0002"
down_revision: str | None = "0001"
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
NAME: TypeEngine[str] = (
    sa.String(255)
    .with_variant(postgresql.VARCHAR(255, collation="C"), "postgresql")
    .with_variant(mysql.VARCHAR(255, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb")
)
DIGEST: TypeEngine[bytes] = sa.LargeBinary().with_variant(mysql.BINARY(32), "mysql", "mariadb")
TIMESTAMP = sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def upgrade() -> None:
    op.create_table(
        "tokens",
        sa.Column("id", ID, nullable=False),
        sa.Column("project_id", ID, nullable=False),
        sa.Column("digest", DIGEST, nullable=False),
        sa.Column("last4", CODE, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("expires_at", TIMESTAMP, nullable=True),
        sa.Column("max_requests", sa.BigInteger(), nullable=True),
        sa.Column("request_count", sa.BigInteger(), nullable=False),
        sa.Column("created_at", TIMESTAMP, nullable=False),
        sa.Column("updated_at", TIMESTAMP, nullable=False),
        sa.Column("revoked_at", TIMESTAMP, nullable=True),
        sa.Column("last_used_at", TIMESTAMP, nullable=True),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_tokens_project_id"),
        sa.PrimaryKeyConstraint("id", name="pk_tokens"),
        sa.UniqueConstraint("digest", name="uq_tokens_digest"),
        mysql_engine="InnoDB",
        mysql_default_charset="utf8mb4",
        # Counters change all the time: where a page has room, the new version of a row stays beside the old, and the
        # indexes as they are.
        postgresql_with={"fillfactor": 70},
    )
    op.create_index("ix_tokens_project_id", "tokens", ["project_id"])


def downgrade() -> None:
    op.drop_table("tokens")
