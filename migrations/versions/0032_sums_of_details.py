"""Sums of audio, images and web searches.

Revision ID: 0032
Revises: 0031
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0032"
down_revision: str | None = "0031"
branch_labels = None
depends_on = None

TABLES = ("usage_hourly", "usage_daily")
COLUMNS = ("input_audio_tokens", "output_audio_tokens", "input_image_tokens", "output_image_tokens", "web_searches")


def upgrade() -> None:
    # With defaults of the database's own: a server of the version before keeps writing its rows without them.
    for table in TABLES:
        for name in COLUMNS:
            op.add_column(table, sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))


def downgrade() -> None:
    for table in reversed(TABLES):
        for name in reversed(COLUMNS):
            op.drop_column(table, name)
