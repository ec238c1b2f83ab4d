"""A shared transaction does not wait for transactions with other tokens and requests, even if the tables are small."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from db.database import Database, opened
from db.dsn import Target
from db.options import Options
from db.queries import ledger, projects, tokens
from db.records import Reservation, Token
from llm_proxy.identifiers import request_id
from tests.databases.kinds import on
from tests.db.queries.factories import NOON, a_project, a_settled_request, a_token
from tests.db.rows import contents

PROJECT = a_project()
#: So many of so few that a database finds it cheaper to read the table whole.
OURS, THEIRS = 6, 4
#: Seconds after which a statement that waits fails.
PATIENCE = 3.0


def reserved(owner: Token) -> Reservation:
    return Reservation(request_id(), "worker", owner.id, PROJECT.id, "openai", "POST", "/v1/chat/completions", NOON)


def analyze(connection: Connection) -> None:
    """Let the database know how small the tables are."""
    verb = "ANALYZE" if connection.dialect.name == "postgresql" else "ANALYZE TABLE"
    connection.exec_driver_sql(f"{verb} tokens, in_flight, requests").close()


def admit(connection: Connection, owners: Sequence[Token]) -> list[Reservation]:
    """Reserve a request of each token. The counters get different amounts, as they mostly do."""
    found = ledger.lock_tokens(connection, [owner.digest for owner in owners])
    assert len(found) == len(owners)
    ledger.add_to_counters(connection, {owner.id: number for number, owner in enumerate(owners, start=1)}, NOON)
    reservations = [reserved(owner) for owner in owners]
    ledger.reserve(connection, reservations)
    return reservations


def settle(connection: Connection, owners: Sequence[Token], open_rows: Sequence[Reservation]) -> None:
    pairs = zip(owners, open_rows, strict=True)
    rows = [a_settled_request(owner, id=row.id, worker_id=row.worker_id) for owner, row in pairs]
    ledger.settle(connection, rows)
    ledger.roll_up(connection, rows)


def prepared(database: Database) -> tuple[list[Token], list[Token]]:
    """Tokens of ours and of theirs, each with requests in flight."""
    owners = [a_token(PROJECT.id) for _ in range(OURS + THEIRS)]
    database.write_now(projects.create, PROJECT)
    for owner in owners:
        database.write_now(tokens.create, owner)
    return owners[:OURS], owners[OURS:]


@on("postgres", "mysql", "mariadb")
def test_requests_of_different_tokens_do_not_wait_for_each_other(migrated_target: Target) -> None:
    with (
        opened(migrated_target, Options()) as first,
        opened(migrated_target, Options(statement_timeout=PATIENCE)) as second,
    ):
        ours, theirs = prepared(first)
        open_rows = second.write_now(admit, ours)
        other_rows = first.write_now(admit, theirs)
        first.write_now(analyze)

        def meanwhile(connection: Connection) -> None:
            settle(connection, theirs, other_rows)
            admit(connection, theirs)
            # All of theirs is locked now, until this transaction ends.
            second.write_now(settle, ours, open_rows)
            again = second.write_now(admit, ours)
            second.write_now(settle, ours, again)

        first.write_now(meanwhile)
        assert len(first.read_now(contents)["in_flight"]) == THEIRS
