from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from msgspec import structs

from db.database import Database, opened
from db.errors import Duplicate
from db.options import Options
from db.queries import audit
from db.queries.audit import Filter
from db.queries.rows import first_id
from db.records import AuditEntry
from tests.databases.scratch import Scratch
from tests.db.queries.factories import an_audit_entry

DAY = timedelta(days=1)
TODAY = datetime(2027, 1, 15, 12, 30, 0, 123456, tzinfo=UTC)
ENTRY = an_audit_entry(
    id=f"{first_id(TODAY)}-7000-8000-000000000000",
    occurred_at=TODAY,
    actor="Jörg 日本",
    address="2001:db8:ffff:ffff:ffff:ffff:192.0.2.128",
    resource_id="größe" * 51,
    outcome="refused",
    status=409,
    error="token_revoked",
    before={"name": "ö \u2028 \\ ' \" %", "limits": [1, None, True], "inner": {"a": 1.5}},
    after={},
)


@pytest.fixture
def database(migrated_database: Scratch) -> Iterator[Database]:
    with opened(migrated_database.target, Options()) as database:
        yield database
        assert database.connections.in_use == 0


def everything(database: Database) -> list[AuditEntry]:
    return database.read_now(audit.page, 1000, None, Filter())


def test_an_entry_is_read_as_it_was_written(database: Database) -> None:
    bare = structs.replace(ENTRY, id=f"{ENTRY.id[:-1]}1", before=None, after=None, error="", outcome="accepted")
    database.write_now(audit.create, ENTRY)
    database.write_now(audit.create, bare)
    assert everything(database) == [bare, ENTRY]
    assert database.read_now(audit.page, 1, bare.id, Filter(resource_id=ENTRY.resource_id)) == [ENTRY]


def test_a_call_has_one_entry(database: Database) -> None:
    database.write_now(audit.create, ENTRY)
    with pytest.raises(Duplicate):
        database.write_now(audit.create, structs.replace(ENTRY, outcome="accepted"))
    assert everything(database) == [ENTRY]


def test_old_entries_are_pruned_in_pieces_the_oldest_first(database: Database) -> None:
    for day in range(10):
        at = TODAY - day * DAY
        database.write_now(audit.create, structs.replace(ENTRY, id=f"{first_id(at)}{ENTRY.id[13:]}", occurred_at=at))
    assert database.write_now(audit.prune, TODAY - 4 * DAY, 3) == 3
    assert [entry.occurred_at for entry in everything(database)] == [TODAY - day * DAY for day in range(7)]
    assert database.write_now(audit.prune, TODAY - 4 * DAY, 3) == 2
    assert database.write_now(audit.prune, TODAY - 4 * DAY, 3) == 0
    assert database.write_now(audit.prune, TODAY - 4 * DAY + timedelta(milliseconds=1), 3) == 1
    assert len(everything(database)) == 4
