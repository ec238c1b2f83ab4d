"""The audit log of a server: no change is without its entry after SIGKILL, and an entry has the address of its call."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime

import pytest
import trio
from sqlalchemy import Connection, insert, select

from db.database import opened
from db.dsn.target import Target
from db.options import Options
from db.queries import audit
from db.queries.audit import Filter
from db.schema import requests, tokens
from llm_proxy.identifiers import new_id
from tests.databases.kinds import Kind, on
from tests.db.queries.factories import a_settled_request, a_token, an_audit_entry
from tests.harness.server import MANAGEMENT_TOKEN, Server, StartServer

KILLS = 5
MANAGE = [("Authorization", f"Bearer {MANAGEMENT_TOKEN}"), ("Content-Type", "application/json")]
CLIENT = "203.0.113.7"


async def change_until_killed(server: Server, project_id: str, seconds: float) -> None:
    """Create tokens and rename each, from eight clients, until the server is killed."""
    killed = False

    async def change() -> None:
        try:
            await change_on()
        except OSError:
            # A connection that the kill has broken may be noticed before the cancellation.
            if not killed:
                raise

    async def change_on() -> None:
        while True:
            body = json.dumps({"project_id": project_id}).encode()
            response = await server.request("POST", "/manage/tokens", MANAGE, body)
            assert response.status == 201, response
            path = f"/manage/tokens/{response.json()['id']}"
            assert (await server.request("PATCH", path, MANAGE, b'{"name": "renamed"}')).status == 200

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(change)
        await trio.sleep(seconds)
        killed = True
        server.kill()
        nursery.cancel_scope.cancel()


def test_every_change_has_its_entry_after_kill(
    start_server: StartServer, migrated_env: dict[str, str], migrated_target: Target
) -> None:
    source = random.Random(12)
    project_id = ""
    for _ in range(KILLS):
        server = start_server(migrated_env)
        project_id = project_id or server.manage("POST", "/projects", {"name": "p", "api_key": "sk-1234"})["id"]
        trio.run(change_until_killed, server, project_id, source.uniform(0.4, 0.8))

    def state(connection: Connection) -> tuple[dict[str, str], dict[str, list[str]]]:
        rows = {row.id: row.name for row in connection.execute(select(tokens.c.id, tokens.c.name))}
        entries: dict[str, list[str]] = {}
        for entry in reversed(audit.page(connection, 1_000_000, None, Filter(resource="token", outcome="accepted"))):
            entries.setdefault(entry.resource_id, []).append(entry.operation)
        return rows, entries

    with opened(migrated_target, Options()) as database:
        rows, entries = database.read_now(state)
    assert len(rows) > KILLS * 5, "too little load to prove anything"
    assert entries == {
        identity: ["createToken", *(["updateToken"] if name == "renamed" else [])] for identity, name in rows.items()
    }


@on(Kind.SQLITE)
async def test_an_entry_has_the_address_behind_trusted_proxies(
    start_server: StartServer, migrated_env: dict[str, str]
) -> None:
    server = start_server(migrated_env, {"TRUSTED_PROXIES": "127.0.0.0/8, 10.0.0.0/8"})

    async def address(*forwarded: str) -> str:
        fields = [*MANAGE, *(("X-Forwarded-For", value) for value in forwarded)]
        assert (await server.request("GET", "/manage/nowhere", fields)).status == 404
        response = await server.request("GET", "/manage/audit?limit=1", fields)
        return str(response.json()["data"][0]["address"])

    assert await address(CLIENT) == CLIENT
    assert await address(f"192.0.2.1, {CLIENT}, 10.0.0.1") == CLIENT, "what the client itself has sent is not used"
    assert await address("2001:db8::1", "10.0.0.1") == "2001:db8::1"
    assert await address("=cmd") == "127.0.0.1"
    assert await address() == "127.0.0.1"


@on(Kind.SQLITE)
async def test_a_forwarded_address_of_nobody_who_is_trusted_is_not_used(
    start_server: StartServer, migrated_env: dict[str, str]
) -> None:
    server = start_server(migrated_env)
    fields = [*MANAGE, ("X-Forwarded-For", CLIENT)]
    assert (await server.request("GET", "/manage/nowhere", fields)).status == 404
    (entry,) = (await server.request("GET", "/manage/audit", fields)).json()["data"]
    assert entry["address"] == "127.0.0.1"


@on(Kind.SQLITE)
async def test_the_end_of_a_server_writes_the_number_of_refused_calls(
    start_server: StartServer, migrated_env: dict[str, str], migrated_target: Target
) -> None:
    server = start_server(migrated_env)
    for _ in range(25):
        assert (await server.request("GET", "/manage/projects")).status == 401
    assert await server.stopped() == 0, server.output
    with opened(migrated_target, Options()) as database:
        newest, *rest = await trio.to_thread.run_sync(database.read_now, audit.page, 100, None, Filter())
    assert newest.after == {"calls": 5}
    assert [(entry.status, entry.after) for entry in rest] == [(401, None)] * 20


@on(Kind.SQLITE)
@pytest.mark.parametrize("setting", ["AUDIT_RETENTION", "LEDGER_RETENTION"])
def test_each_retention_prunes_its_own_table(
    start_server: StartServer, migrated_env: dict[str, str], migrated_target: Target, setting: str
) -> None:
    old = {"id": "00000000-0000-7000-8000-000000000000"}
    then = datetime(2001, 1, 1, tzinfo=UTC)
    request = a_settled_request(a_token(new_id()), **old, admitted_at=then, outcome="void").by_column()

    def fill(connection: Connection) -> None:
        audit.create(connection, an_audit_entry(**old, occurred_at=then))
        connection.execute(insert(requests).values(**request))

    def left(connection: Connection) -> tuple[int, int]:
        return len(audit.page(connection, 10, None, Filter())), len(connection.execute(select(requests.c.id)).all())

    with opened(migrated_target, Options()) as database:
        database.write_now(fill)
    both = {"AUDIT_RETENTION": "0", "LEDGER_RETENTION": "0"}
    server = start_server(migrated_env, both | {setting: "10d"})
    server.wait_said('"source":"retention"')
    assert server.stop() == 0, server.output
    with opened(migrated_target, Options()) as database:
        assert database.read_now(left) == ((0, 1) if setting == "AUDIT_RETENTION" else (1, 0))
