"""Which ledger row has the usage of an object whose usage comes later than its request.

Revision ID: 0023
Revises: 0022
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.types import TypeEngine

revision = "0023"
down_revision: str | None = "0022"
branch_labels = None
depends_on = None

ID: TypeEngine[str] = (
    sa.String(36)
    .with_variant(postgresql.VARCHAR(36, collation="C"), "postgresql")
    .with_variant(mysql.VARCHAR(36, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")
)

_INDEX = "ix_provider_objects_usage_id_created_at"
_AWAITED = sa.text("usage_id = ''")


def upgrade() -> None:
    # Null: the usage of objects that were created before, or by a server of the version before, is not booked later.
    op.add_column("provider_objects", sa.Column("usage_id", ID, nullable=True))
    columns = ["usage_id", "created_at"]
    op.create_index(_INDEX, "provider_objects", columns, sqlite_where=_AWAITED, postgresql_where=_AWAITED)


def downgrade() -> None:
    op.drop_index(_INDEX, table_name="provider_objects")
    op.drop_column("provider_objects", "usage_id")
