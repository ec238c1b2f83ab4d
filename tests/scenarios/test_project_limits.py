"""Limits of a project, hammered: clients that disconnect, streams, a server that is killed, several servers at once."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import h11
import trio
from attrs import define, field
from sqlalchemy import select

from benchmarks.processes import Upstream
from db import Connection
from db.database import opened
from db.dsn import Target
from db.options import Options
from db.schema import limit_counters, limits, requests
from tests.databases.kinds import SERVERS, Kind, on
from tests.harness import client
from tests.harness.deployment import Deployment, chat_headers
from tests.harness.server import Server, StartServer
from tests.scenarios import ledger_checks
from tests.scenarios.aftermath import wait_for

CLIENTS, LIMIT, CONCURRENT = 12, 150, 4
#: Workers count as dead after four of these.
SETTINGS = {"LEDGER_HEARTBEAT": "250ms"}
#: What may happen to a client whose server is killed.
_BROKEN = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, h11.ProtocolError)


def body(*, stream: bool) -> bytes:
    more = b', "stream": true' if stream else b""
    return (
        b'{"model": "gpt-scripted", "max_tokens": 20, "messages": [{"role": "user", "content": "Hello"}]' + more + b"}"
    )


@define
class Hammer:
    """Clients of the tokens of one project, until each is told that the limit of requests is reached."""

    servers: list[Server]
    secrets: list[str]
    many: trio.Event = field(factory=trio.Event)
    refusals: Counter[str] = field(factory=Counter)

    async def run(self, upstream: Upstream, restart: Callable[[], Server]) -> None:
        async with client.connect(self.servers[0].url) as lasting, trio.open_nursery() as nursery:
            # It still runs when its server is killed.
            headers = chat_headers(self.secrets[0], ("x-scripted-delay", "600"))
            await lasting.request("POST", "/v1/chat/completions", headers, body(stream=False))
            await trio.to_thread.run_sync(partial(upstream.wait, in_flight=1))
            for number in range(CLIENTS):
                nursery.start_soon(self.keep_on, number)
            await self.many.wait()
            self.servers[0].kill()
            self.servers[0] = await trio.to_thread.run_sync(restart)

    async def keep_on(self, number: int) -> None:
        source, secret = random.Random(number), self.secrets[number % len(self.secrets)]
        refused, asked = False, 0
        while not refused:
            asked += 1
            if asked == 5:
                self.many.set()
            with suppress(*_BROKEN):
                server = self.servers[number % len(self.servers)]
                refused = await self.ask(server, secret, source)
            await trio.sleep(0.01)

    async def ask(self, server: Server, secret: str, source: random.Random) -> bool:
        """One request; returns whether the limit of requests is reached."""
        stream, leaves = source.random() < 0.6, source.random() < 0.3
        pace = (("x-scripted-delay", "0.02"), ("x-scripted-chunks", "5"), ("x-scripted-gap", "0.01"))
        async with client.connect(server.url) as connection:
            await connection.request("POST", "/v1/chat/completions", chat_headers(secret, *pace), body(stream=stream))
            if stream and leaves:
                head = await connection.head()
                if head.status == 200:
                    return False
                answer = b"".join([chunk async for chunk in connection.chunks()])
                return self.refused(client.Response(head.status, head.headers, answer))
            answered = await connection.response()
            return answered.status != 200 and self.refused(answered)

    def refused(self, answer: client.Response) -> bool:
        code = answer.json()["error"]["code"]
        self.refusals[code] += 1
        return bool(code == "request_limit_exceeded")


def counted(target: Target) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    """What each limit has used and reserved, by metric and policy, and the same by the rows of requests."""

    def read(connection: Connection) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
        joined = select(limits.c.metric, limits.c.policy, limit_counters.c.used, limit_counters.c.reserved).join_from(
            limits, limit_counters, limit_counters.c.limit_id == limits.c.id
        )
        used = {f"{row.metric} {row.policy}": (row.used, row.reserved) for row in connection.execute(joined)}
        own = requests.c
        rows = connection.execute(select(own.outcome, own.input_tokens, own.output_tokens, own.limits)).all()
        keys = {
            f"{row.metric} {row.policy}": row.id
            for row in connection.execute(
                select(limits.c.metric, limits.c.policy, limit_counters.c.id).join_from(
                    limits, limit_counters, limit_counters.c.limit_id == limits.c.id
                )
            )
        }
        known = [row for row in rows if row.outcome != "void"]
        found = {"requests settled": len(known), "concurrency settled": 0}
        for name in ("tokens reserved", "tokens settled"):
            found[name] = sum(
                row.limits[keys[name]]
                if row.outcome == "unknown"
                else (row.input_tokens or 0) + (row.output_tokens or 0)
                for row in known
            )
        return used, found

    with opened(target, Options(), exclusive=False) as database:
        return database.read_now(read)


def test_limits_of_a_project_are_exact_through_disconnects_and_a_kill(
    start_server: StartServer,
    upstream: Upstream,
    migrated_env: dict[str, str],
    migrated_target: Target,
    database_kind: Kind,
) -> None:
    processes = 1 if database_kind is Kind.SQLITE else 3
    servers = [start_server(migrated_env, SETTINGS) for _ in range(processes)]
    deployment = Deployment(servers[0], upstream)
    project = deployment.new_project(stream_usage="off")["id"]
    secrets = [deployment.new_secret(project) for _ in range(3)]
    for limit in (
        {"metric": "requests", "window": "total", "amount": LIMIT},
        {"metric": "concurrency", "amount": CONCURRENT, "wait": "5s"},
        {"metric": "tokens", "window": "total", "amount": 10**6, "policy": "reserved", "wait": "5s"},
        {"metric": "tokens", "window": "total", "amount": 10**6},
    ):
        servers[0].manage("POST", "/limits", {"project_id": project, **limit})

    hammer = Hammer(servers, secrets)
    trio.run(hammer.run, upstream, partial(start_server, migrated_env, SETTINGS))

    wait_for(
        lambda: not ledger_checks.outcomes(migrated_target)["in_flight"] or None,
        20,
        lambda: f"reservations are left: {ledger_checks.outcomes(migrated_target)}",
    )
    counts = upstream.counts()
    assert counts["requests"] <= LIMIT
    assert counts["in_flight_peak"] == CONCURRENT
    assert hammer.refusals.keys() <= {"request_limit_exceeded", "rate_limit_exceeded"}
    used, by_rows = counted(migrated_target)
    assert used == {name: (amount, 0) for name, amount in by_rows.items()}
    assert used["requests settled"] == (LIMIT, 0)
    ends = ledger_checks.outcomes(migrated_target)
    assert ends.keys() >= {"ok", "client_closed", "unknown"}, ends
    for server in servers:
        assert server.stop() == 0, server.output
    ledger_checks.verify(migrated_env)


@on(*SERVERS)
async def test_a_client_that_changes_servers_is_not_refused_by_a_limit_of_one_request_at_once(
    start_server: StartServer, upstream: Upstream, migrated_env: dict[str, str]
) -> None:
    servers = [start_server(migrated_env) for _ in range(2)]
    deployment = Deployment(servers[0], upstream)
    token = deployment.new_token()
    servers[0].manage("POST", "/limits", {"token_id": token["id"], "metric": "concurrency", "amount": 1})
    headers = chat_headers(token["token"])
    statuses: Counter[int] = Counter()
    async with client.connect(servers[0].url) as one, client.connect(servers[1].url) as other:
        for connection in itertools.islice(itertools.cycle((one, other)), 200):
            await connection.request("POST", "/v1/chat/completions", headers, body(stream=False))
            statuses[(await connection.response()).status] += 1
    assert statuses == {200: 200}
    assert upstream.counts()["in_flight_peak"] == 1
