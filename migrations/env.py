"""Alembic's entry: run the revisions on the connection that `db.migrate` hands over, or print their SQL."""

from __future__ import annotations

from alembic import context

from db.schema import metadata
from migrations import resume as resume  # noqa: PLC0414 - imported for what it registers

attributes = context.config.attributes
connection = attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    compare_type=True,
    # SQLite can, once its transactions are begun explicitly; Alembic supposes that it cannot. MySQL cannot.
    transactional_ddl=connection.dialect.name != "mysql",
    render_as_batch=True,
    literal_binds=context.is_offline_mode(),
    on_version_apply=attributes.get("on_version_apply"),
)
with context.begin_transaction():
    context.run_migrations()
