"""Databases with a past whose rows go to the edges of their columns, for tests that move or compare whole databases."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import insert

from db import Connection
from db.database import Database
from db.queries import audit, credentials, daily, label_values, ledger, limits, objects, projects, refusals, tokens
from db.records import ProviderObject, Reservation
from db.schema import usage_days
from llm_proxy.identifiers import new_id, request_id
from tests.db.queries.factories import (
    NOON,
    a_credential,
    a_limit,
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
    odd = a_project(
        name=_WIDE,
        active=False,
        api_key="enc:v2:ab12cd34:" + "x" * 5000,
        api_key_last4="",
        allow_unknown_objects=True,
        allow_request_labels=True,
        stream_usage="ask",
    )
    owned = [
        a_token(plain.id),
        a_token(plain.id, name=_WIDE, active=False, revoked_at=NOON, last_used_at=NOON + timedelta(microseconds=1)),
        a_token(odd.id, expires_at=datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), max_requests=2**62),
        a_token(odd.id, digest=bytes(32), max_requests=0, labels={"team": _WIDE}),
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
    # It must be older than the ids of requests, which have the time of the test.
    since = NOON - timedelta(days=365)
    of_models = {"models": {"patterns": [_WIDE]}, "warn_at": 80, "created_at": since}
    limit = a_limit(scope="project", subject=plain.id, metric="tokens", amount=2**53 - 1, **of_models)
    key = limits.counter_id(limit.id, None)
    limits.create(connection, limit)
    limits.open_counter(connection, key, 2**52)
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
            limits={key: 2**52} if place % 5 == 1 else None,
            **_usage(place),
        )
        for place in range(number - 1)
    ]
    late = a_settled_request(
        owned[0], admitted_at=NOON, kind="late", origin_id=settled[0].id, outcome="ok", duration_us=None, **_usage(2)
    )
    objects.record(
        connection,
        [
            ProviderObject("openai", f"batch_{_WIDE}", "batch", plain.id, owned[0].id, settled[0].id, NOON, late.id),
            ProviderObject("openai", "resp_1", "background_response", plain.id, owned[0].id, settled[1].id, NOON, ""),
            ProviderObject("openai", "file-1", "file", odd.id, owned[2].id, settled[2].id, NOON),
        ],
    )
    reservations = [
        Reservation(request_id(), new_id(), owned[0].id, plain.id, "openai", "POST", f"/v1/{place}", NOON, {key: place})
        for place in range(3)
    ]
    ledger.reserve(connection, [*reservations, *(row.reservation for row in settled)])
    ledger.add_late(connection, [late])
    ledger.roll_up(connection, [late])
    for start in range(0, number, 400):
        ledger.settle(connection, settled[start : start + 400])
        ledger.roll_up(connection, settled[start : start + 400])
    label_values.add(connection, [label_values.id_of(NOON.date(), plain.id, "team", value) for value in ("a", _WIDE)])
    counts = {
        token.id: sum(row.reservation.token_id == token.id and row.result.outcome != "void" for row in settled)
        for token in owned
    }
    counts[owned[0].id] += len(reservations)
    ledger.add_to_counters(connection, counts, NOON)
    day = ledger.hour_of(NOON).replace(hour=0)
    connection.execute(insert(usage_days), {"day": day, "marked_at": NOON, "written": False})
    connection.execute(insert(usage_days), {"day": day + timedelta(days=1), "marked_at": NOON, "written": False})
    totals: dict[tuple[Any, ...], dict[str, Any]] = {}
    daily.merge(totals, daily.sum_up(connection, day, sorted([plain.id, odd.id])))
    daily.finish(connection, day, NOON, totals.values())
    return [token.id for token in owned]


def _usage(place: int) -> dict[str, Any]:
    """Nothing for void requests, what the release before wrote, and everything, in turn."""
    if place % 5 == 1:
        return {"requested_model": "", "input_tokens": None, "output_tokens": None}
    before = {"input_tokens": None if place % 13 == 0 else 1_000_000_000, "cached_tokens": place}
    if place % 3 == 0:
        return before
    labels = {"team": _WIDE, "env": "prod"} if place % 2 else None
    return before | {
        "requested_model": ("", "gpt", _WIDE)[place % 3],
        "cache_write_tokens": place,
        "reasoning_tokens": place,
        "cache_write_1h_tokens": place,
        "usage_details": {"web_searches": place},
        "service_tier": "flex",
        "estimated": place % 7 == 0,
        "cost_nanousd": None if place % 11 == 0 else 2**40 + place,
        "cost_basis": "price",
        "price_version": "1.2",
        "labels": labels,
        "summed_labels": labels,
    }
