from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import timedelta
from itertools import permutations

import pytest
from sqlalchemy import Table, delete, insert, select, update

from db import Connection, copy
from db.copy import CopyRefused
from db.database import Database, opened
from db.options import Options
from db.queries import audit, objects, tables
from db.queries.proof import prove
from db.queries.tables import RowsDigest
from db.records import ProviderObject, SettledRequest
from db.schema import credentials, in_flight, limits, projects, requests, tokens, usage_hourly
from tests.databases.fixtures import require
from tests.databases.kinds import Kind
from tests.databases.scratch import Databases
from tests.db.pasts import write_past
from tests.db.queries.factories import (
    NOON,
    a_credential,
    a_limit,
    a_project,
    a_settled_request,
    a_token,
    an_audit_entry,
)

PAIRS = [*permutations(Kind, 2)]
PastOf = Callable[[Kind], Database]


def ignore(*_: object) -> None:
    """Nobody watches."""


@pytest.fixture(scope="module")
def past_of(databases: Databases) -> Iterator[PastOf]:
    """Gives a database of a kind with a past, which is the same for all kinds; tests only read it."""
    with ExitStack() as stack:
        found: dict[Kind, Database] = {}

        def past_of(kind: Kind) -> Database:
            require(databases, kind)
            if kind not in found:
                scratch = stack.enter_context(databases.migrated(kind))
                found[kind] = stack.enter_context(opened(scratch.target, Options()))
                if kind is Kind.SQLITE:
                    write_past(found[kind])
                else:
                    copy.copy(past_of(Kind.SQLITE), found[kind], progress=ignore)
            return found[kind]

        yield past_of


@pytest.fixture
def source(past_of: PastOf, database_kind: Kind) -> Database:
    """A database with a past; the test only reads it."""
    return past_of(database_kind)


@pytest.fixture
def target(databases: Databases, database_kind: Kind) -> Iterator[Database]:
    """An empty database of the same kind, at head."""
    with databases.migrated(database_kind) as scratch, opened(scratch.target, Options()) as database:
        yield database
        assert database.connections.in_use == 0


def all_rows(database: Database) -> dict[str, set[str]]:
    def read(connection: Connection) -> dict[str, set[str]]:
        return {table.name: {repr(tuple(row)) for row in connection.execute(select(table))} for table in copy.TABLES}

    return database.read_now(read)


@pytest.mark.parametrize(("old", "new"), PAIRS, ids=[f"{old}-to-{new}" for old, new in PAIRS])
def test_every_pair_in_both_directions(databases: Databases, past_of: PastOf, old: Kind, new: Kind) -> None:
    require(databases, new)
    source = past_of(old)
    told: list[tuple[str, int, int]] = []
    with databases.migrated(new) as scratch, opened(scratch.target, Options()) as target:
        found = copy.copy(source, target, progress=lambda *step: told.append(step))
        assert [(one.table, one.equal) for one in found] == [(table.name, True) for table in copy.TABLES]
        assert {one.table: one.source.rows for one in found} == copy.counts(source)
        assert copy.counts(target)["requests"] == 1200
        assert [name for name, rows in copy.counts(target).items() if not rows] == []
        assert all_rows(target) == all_rows(source)
        assert target.read_now(prove).differences == []
    assert ("requests", 500, 1200) in told
    assert ("requests", 1200, 1200) in told


def test_a_copy_that_was_cut_off_is_taken_up(source: Database, target: Database) -> None:
    class Cut(Exception):
        pass

    def cut(table: str, done: int, _: int) -> None:
        if (table, done) == ("requests", 1000):
            raise Cut

    with pytest.raises(Cut):
        copy.copy(source, target, progress=cut)
    assert copy.counts(target)["requests"] == 1000
    with pytest.raises(CopyRefused, match=r"is not empty \(requests 1,000\)"):
        copy.check_empty(target)
    assert all(one.equal for one in copy.copy(source, target, resume=True, progress=ignore))
    assert all_rows(target) == all_rows(source)


def test_a_resumed_copy_follows_whatever_has_changed(source: Database, target: Database) -> None:
    copy.copy(source, target, progress=ignore)

    def age(connection: Connection) -> None:
        """Make the target what it would be, had it been copied before the source's latest changes."""
        ids = list(connection.scalars(select(requests.c.id).order_by(requests.c.id)))
        connection.execute(delete(requests).where(requests.c.id.in_(ids[5:1190:3])))
        connection.execute(update(requests).where(requests.c.id == ids[6]).values(outcome="unknown", status=None))
        connection.execute(update(tokens).values(request_count=tokens.c.request_count - 1))
        connection.execute(update(usage_hourly).values(requests=0))
        connection.execute(update(projects).values(name=projects.c.name + "x"))
        # Settled in the source since:
        connection.execute(
            insert(in_flight).values(
                id=ids[5],
                worker_id=ids[0],
                token_id=ids[0],
                project_id=ids[0],
                provider="p",
                method="GET",
                path="/",
                admitted_at=NOON,
            )
        )

    target.write_now(age)
    found = copy.copy(source, target, resume=True, progress=ignore)
    assert [one.table for one in found if not one.equal] == []
    assert all_rows(target) == all_rows(source)


@pytest.mark.parametrize("piece", [1, 500])
@pytest.mark.parametrize("kind", ["project", "credential"])
def test_a_resumed_copy_follows_names_that_moved_to_other_rows(
    databases: Databases, target: Database, monkeypatch: pytest.MonkeyPatch, kind: str, piece: int
) -> None:
    table = projects if kind == "project" else credentials
    monkeypatch.setattr(copy, "PIECE", piece)

    class Cut(Exception):
        pass

    def cut(name: str, done: int, _: int) -> None:
        if (name, done) == (table.name, 1):
            raise Cut

    def create(connection: Connection, name: str) -> None:
        row = a_project(name=name) if kind == "project" else a_credential(name=name)
        connection.execute(insert(table).values(**_values(row)))

    def rename(connection: Connection, names: Sequence[str]) -> None:
        """Give these names to the rows in the order of their ids."""
        rows = list(connection.scalars(select(table.c.id).order_by(table.c.id)))
        for names_now in (rows, names):
            for id_, name in zip(rows, names_now, strict=True):
                connection.execute(update(table).where(table.c.id == id_).values(name=name))

    with databases.migrated(Kind.SQLITE) as scratch, opened(scratch.target, Options()) as source:
        for name in ("prod-new", "prod", "test"):
            source.write_now(create, name)
        copy.copy(source, target, progress=ignore)
        for names in (("prod", "prod-old", "test"), ("prod-old", "test", "prod"), ("test", "prod-old", "other")):
            source.write_now(rename, names)
            if piece == 1:
                with pytest.raises(Cut):
                    copy.copy(source, target, resume=True, progress=cut)
            assert all(one.equal for one in copy.copy(source, target, resume=True, progress=ignore))
        source.write_now(rename, ("prod", "test", "prod-old"))
        target.write_now(create, "of its own")
        before = all_rows(target)
        with pytest.raises(CopyRefused, match="that the source does not have"):
            copy.copy(source, target, resume=True, progress=ignore)
        assert all_rows(target) == before


def test_what_the_source_has_pruned_goes(source: Database, target: Database) -> None:
    copy.copy(source, target, progress=ignore)
    old = a_settled_request(a_token(a_project().id), id="00000000-0000-7000-8000-000000000000")
    target.write_now(lambda connection: connection.execute(insert(requests).values(**_values(old))).close())
    target.write_now(audit.create, an_audit_entry(id=old.id))
    target.write_now(objects.record, [ProviderObject("p", "file-1", "file", "p", "t", "r", NOON, None)])
    target.write_now(lambda connection: connection.execute(insert(limits).values(**_values(a_limit()))).close())
    assert all(one.equal for one in copy.copy(source, target, resume=True, progress=ignore))


@pytest.mark.parametrize("table", ["requests", "projects"])
def test_a_target_that_was_in_use_is_not_overwritten(source: Database, target: Database, table: str) -> None:
    copy.copy(source, target, progress=ignore)
    own = a_settled_request(a_token(a_project().id)) if table == "requests" else a_project(name="of its own")

    def use(connection: Connection) -> None:
        found = {"requests": requests, "projects": projects}[table]
        connection.execute(insert(found).values(**_values(own)))
        connection.execute(update(tokens).values(request_count=tokens.c.request_count + 1))

    target.write_now(use)
    before = all_rows(target)
    with pytest.raises(
        CopyRefused, match=f"has rows in {table} that the source does not have, such as {_values(own)['id']}"
    ):
        copy.copy(source, target, resume=True, progress=ignore)
    assert all_rows(target) == before


def test_a_value_that_came_out_differently_is_found(source: Database, target: Database) -> None:
    copy.copy(source, target, progress=ignore)
    assert copy.digest_of(source, requests) == copy.digest_of(target, requests)
    one = target.read_now(lambda connection: connection.scalars(select(requests.c.id)).first())
    target.write_now(
        lambda connection: connection.execute(
            update(requests).where(requests.c.id == one).values(settled_at=NOON + timedelta(microseconds=1))
        ).close()
    )
    there, here = copy.digest_of(source, requests), copy.digest_of(target, requests)
    assert there.rows == here.rows
    assert there != here


def test_a_copy_that_differs_in_the_end_says_so(
    source: Database, target: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(connection: Connection, table: Table, rows: Sequence[tuple[object, ...]]) -> None:
        add(connection, table, rows[1:] if table is requests else rows)

    add = tables.add
    monkeypatch.setattr(tables, "add", lose)
    found = {one.table: one for one in copy.copy(source, target, progress=ignore)}
    assert not found["requests"].equal
    assert found["requests"].source.rows - found["requests"].target.rows == 3


def test_a_source_of_another_version_is_not_copied(databases: Databases, database_kind: Kind) -> None:
    with (
        databases.empty(database_kind) as scratch,
        opened(scratch.target, Options()) as source,
        pytest.raises(CopyRefused, match=r"the schema is at base, and .* run 'llm-proxy migrate up' on it"),
    ):
        copy.check_schema(source)


def test_every_table_is_copied_but_those_of_processes(source: Database) -> None:
    from db.migrate import version  # noqa: PLC0415 - beside the one test that looks at tables from outside
    from db.schema import metadata  # noqa: PLC0415 - as above

    assert source.read_now(version) is not None
    assert {table.name for table in copy.TABLES} == set(metadata.tables) - {"workers"}


def test_a_digest_knows_rows_whatever_their_order() -> None:
    rows = [(1, "a", None, NOON), (2, "b", True, NOON), (3, "1", False, NOON)]
    one, other, third = RowsDigest(), RowsDigest(), RowsDigest()
    one.add(rows)
    other.add(reversed(rows))
    third.add([*rows[:2], (3, 1, False, NOON)])
    assert one == other
    assert one != third
    assert len(str(one)) == 16


def _values(record: object) -> dict[str, object]:
    if isinstance(record, SettledRequest):
        return record.by_column()
    return {name: getattr(record, name) for name in record.__slots__ if not name.startswith("__")}  # type: ignore[attr-defined]  # records have slots


def test_the_order_of_an_objects_members_is_no_difference() -> None:
    one, other, third = RowsDigest(), RowsDigest(), RowsDigest()
    one.add([("id", {"a": 1, "b": {"c": 2, "d": 3}})])
    other.add([("id", {"b": {"d": 3, "c": 2}, "a": 1})])
    third.add([("id", {"a": 1, "b": {"c": 3, "d": 2}})])
    assert one == other != third
