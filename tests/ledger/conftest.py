"""A migrated database, open, for the tests of the ledger."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from db.database import Database, opened
from db.dsn import Target
from db.options import Options


@pytest.fixture
def database(migrated_target: Target) -> Iterator[Database]:
    with opened(migrated_target, Options()) as database:
        yield database
        assert database.checked_out == 0
