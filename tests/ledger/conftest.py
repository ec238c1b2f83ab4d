"""A migrated database, open, for the tests of the ledger, and a writer that soon tries again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from db.database import Database, opened
from db.dsn import Target
from db.options import Options
from llm_proxy.ledger import writer
from llm_proxy.ledger.outage import spool


@pytest.fixture
def database(migrated_target: Target) -> Iterator[Database]:
    with opened(migrated_target, Options()) as database:
        yield database
        assert database.connections.in_use == 0


@pytest.fixture(autouse=True)
def _impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "RETRY_INTERVAL", 0.02)
    # Disks of test machines may be slow; what a slow one means has a test of its own.
    monkeypatch.setattr(spool, "DISK_DEADLINE", 30.0)
