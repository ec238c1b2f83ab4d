"""The schema of a version to come: this one's history with one revision more, which a test writes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import pytest

from db import migrate
from db.dsn.target import Target
from tests.databases import scratch

#: What a running server must not notice: something more of everything.
HARMLESS = """
    op.create_table("of_the_future", sa.Column("id", sa.Integer(), primary_key=True))
    op.add_column("tokens", sa.Column("more", sa.String(20), nullable=True))
    op.add_column("in_flight", sa.Column("weight", sa.Integer(), nullable=False, server_default=sa.text("1")))
    op.add_column("requests", sa.Column("more", sa.BigInteger(), nullable=True))
    op.create_index("ix_requests_more", "requests", ["more"])
"""
#: Each of these keeps an older server from working; what it says then.
HARMFUL = {
    'op.drop_table("usage_hourly")': "there is no table usage_hourly",
    'with op.batch_alter_table("requests") as table: table.drop_column("streamed")': "requests has no column streamed",
    'op.add_column("workers", sa.Column("zone", sa.Integer(), nullable=False))': "workers.zone must be filled",
}


@contextmanager
def next_release(folder: Path, upgrade: str) -> Iterator[str]:
    """Be a version whose last revision does `upgrade`; gives its number."""
    last = migrate.revisions()[-1].id
    number = f"{int(last) + 1:04}"
    source = Path(str(files("migrations")))
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("__pycache__"))
    lines = "\n".join(f"    {line.strip()}" for line in upgrade.strip().splitlines())
    (folder / "versions" / f"{number}_to_come.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\n\n"
        f'revision = "{number}"\ndown_revision = "{last}"\nbranch_labels = depends_on = None\n\n\n'
        f"def upgrade() -> None:\n{lines}\n\n\ndef downgrade() -> None:\n    pass\n"
    )
    _forget()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(migrate, "files", lambda _: folder)
        try:
            assert migrate.revisions()[-1].id == number
            yield number
        finally:
            _forget()


def _forget() -> None:
    """Let the next run read the revisions again."""
    migrate.revisions.cache_clear()
    migrate._scripts.cache_clear()


def migrate_as_next_release(target: Target, folder: Path, upgrade: str) -> str:
    """Migrate a database as the next release would; gives the revision that it is at then."""
    with next_release(folder, upgrade) as number:
        assert [revision.id for revision in scratch.upgrade(target)] == [number]
    return number
