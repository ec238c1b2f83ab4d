"""Databases with a past whose rows go to the edges of their columns, for tests that move or compare whole databases."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from db import Connection
from db.database import Database
from db.queries import audit, credentials, ledger, projects, refusals, tokens
from db.records import Reservation
from llm_proxy.identifiers import new_id, request_id
from tests.db.queries.factories import (
    NOON,
    a_credential,
    a_project,
    a_refusal,
    a_settled_request,
    a_token,
    an_audit_entry,
)

_WIDE = "Grüße, 世界 🙂 'quoted' \"twice\" \\ % ? $1 :name"


def write_past(database: Database, requests: int = 1200) -> list[str]:
    """Write projects, tokens, settled requests and open reservations that balance; return the tokens' ids."""
    return database.write_now(_write, requests)


def _write(connection: Connection, number: int) -> list[str]:
    plain = a_project(name="plain")
    odd = a_project(name=_WIDE, active=False, api_key="enc:v2:ab12cd34:" + "x" * 5000, api_key_last4="")
    owned = [
        a_token(plain.id),
        a_token(plain.id, name=_WIDE, active=False, revoked_at=NOON, last_used_at=NOON + timedelta(microseconds=1)),
        a_token(odd.id, expires_at=datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), max_requests=2**62),
        a_token(odd.id, digest=bytes(32), max_requests=0),
    ]
    for project in (plain, odd):
        projects.create(connection, project)
    for project in (plain, odd):
        made = a_credential(name=project.name, api_key=project.api_key, active=project.active)
        credentials.create(connection, made)
        credentials.assign(connection, project.id, [made])
    for token in owned:
        tokens.create(connection, token)
    for changes in (None, {}, {"name": _WIDE * 1000}):
        audit.create(connection, an_audit_entry(actor=_WIDE, resource_id="", before=changes, after=changes))
    refusals.create(connection, [a_refusal(model=_WIDE, path=_WIDE * 100), a_refusal(token_id="", project_id="")])
    settled = [
        a_settled_request(
            owned[place % 4],
            outcome=("ok", "void", "unknown", "client_closed", "upstream_error")[place % 5],
            status=None if place % 5 == 2 else 200 + place % 300,
            model=("", "gpt-5", _WIDE)[place % 3],
            path="/v1/" + "x" * (3000 if place % 100 == 0 else 10),
            streamed=place % 2 == 0,
            admitted_at=NOON + timedelta(minutes=place, microseconds=place),
            first_byte_us=None if place % 7 == 0 else place,
            duration_us=2**62 if place % 11 == 0 else None,
            input_tokens=None if place % 13 == 0 else 1_000_000_000,
        )
        for place in range(number)
    ]
    reservations = [
        Reservation(request_id(), new_id(), owned[0].id, plain.id, "openai", "POST", f"/v1/{place}", NOON)
        for place in range(3)
    ]
    ledger.reserve(connection, [*reservations, *(row.reservation for row in settled)])
    for start in range(0, number, 400):
        ledger.settle(connection, settled[start : start + 400])
        ledger.roll_up(connection, settled[start : start + 400])
    counts = {
        token.id: sum(row.reservation.token_id == token.id and row.result.outcome != "void" for row in settled)
        for token in owned
    }
    counts[owned[0].id] += len(reservations)
    ledger.add_to_counters(connection, counts, NOON)
    return [token.id for token in owned]
