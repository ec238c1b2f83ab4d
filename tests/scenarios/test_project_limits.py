"""Limits, hammered: clients that disconnect, streams, a server that is killed, several servers at once."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import h11
import trio
from attrs import define, field
from sqlalchemy import select

from benchmarks.processes import Upstream
from db import Connection
from db.database import opened
from db.dsn import Target
from db.options import Options
from db.queries.rows import columns
from db.records import Limit, LimitCounter
from db.schema import limit_counters, limits, requests
from tests.databases.kinds import SERVERS, Kind, on
from tests.harness import client
from tests.harness.deployment import Deployment, chat_headers
from tests.harness.server import Server, StartServer
from tests.scenarios import ledger_checks
from tests.scenarios.aftermath import wait_for

#: Clients, 64 of each of three servers; requests of one project; and requests at once, of a project and of all.
CLIENTS, LIMIT, CONCURRENT, ALL = 192, 100, 4, 12
#: Answers after which a server is killed.
BEFORE_KILL = 100
#: Workers count as dead after four of these.
SETTINGS = {"LEDGER_HEARTBEAT": "250ms"}
PRICES = {"prices": {"openai": {"gpt-scripted": {"input": 1, "output": 100}}}}
#: A budget of about eight worst cases, or fifty requests.
BUDGET = {"metric": "cost", "window": "total", "amount": "0.025"}
#: The limits of each project, and of the whole proxy. The first of each project is the one that its clients use up.
PROJECTS: tuple[tuple[dict[str, Any], ...], ...] = (
    (
        {"metric": "requests", "window": "total", "amount": LIMIT},
        {"metric": "concurrency", "amount": CONCURRENT, "wait": "5s"},
        {"metric": "tokens", "window": "total", "amount": 10**6, "policy": "reserved", "wait": "5s"},
        {"metric": "tokens", "window": "total", "amount": 10**6},
    ),
    (BUDGET, {"metric": "concurrency", "amount": CONCURRENT, "wait": "5s"}),
    ({**BUDGET, "policy": "reserved", "wait": "5s"},),
)
OF_PROXY = {"metric": "concurrency", "amount": ALL, "wait": "5s"}
#: Refusals after which a client gives up, and those that only running requests cause.
FINAL = {"request_limit_exceeded", "budget_exceeded"}
PASSING = {"rate_limit_exceeded", "budget_reserved"}
#: What may happen to a client whose server is killed.
_BROKEN = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, h11.ProtocolError)


def body(*, stream: bool) -> bytes:
    more = b', "stream": true' if stream else b""
    return (
        b'{"model": "gpt-scripted", "max_tokens": 20, "messages": [{"role": "user", "content": "Hello"}]' + more + b"}"
    )


def counted(connection: Connection) -> dict[str, tuple[Limit, LimitCounter]]:
    """Each limit with its counter, by the limit's id; those that have counted nothing are left out."""
    own, its = columns(limits, Limit), columns(limit_counters, LimitCounter)
    joined = select(*own, *its).join_from(limits, limit_counters, limit_counters.c.limit_id == limits.c.id)
    rows = connection.execute(joined)
    return {row[0]: (Limit(*row[: len(own)]), LimitCounter(*row[len(own) :])) for row in rows}


def charges(connection: Connection, found: Mapping[str, tuple[Limit, LimitCounter]]) -> dict[str, list[int]]:
    """What the rows of requests say that each was charged, by the limit's id."""
    own = requests.c
    rows = connection.execute(select(own.outcome, own.input_tokens, own.output_tokens, own.cost_nanousd, own.limits))
    charged: dict[str, list[int]] = {limit_id: [] for limit_id in found}
    for row in rows:
        used = {
            "requests": 1,
            "concurrency": 0,
            "tokens": (row.input_tokens or 0) + (row.output_tokens or 0),
            "cost": row.cost_nanousd or 0,
        }
        for limit, counter in found.values():
            if row.outcome != "void" and counter.id in (row.limits or {}):
                unknown = row.outcome == "unknown" and limit.metric not in ("requests", "concurrency")
                charged[limit.id].append(row.limits[counter.id] if unknown else used[limit.metric])
    return charged


@define
class Hammer:
    """Clients of tokens, each until it is told that a limit is used up.

    Attributes:
        secrets: of the tokens, those of different projects in turn.
        most: the most that was used and reserved of each limit at any time, by the limit's id.
    """

    servers: list[Server]
    secrets: Sequence[str]
    most: Counter[str] = field(factory=Counter)
    refusals: Counter[str] = field(factory=Counter)
    _answers: int = 0
    _enough: trio.Event = field(factory=trio.Event)

    async def run(self, target: Target, upstream: Upstream, restart: Callable[[], Server]) -> None:
        async with client.connect(self.servers[0].url) as lasting, trio.open_nursery() as watching:
            # It still runs when its server is killed.
            headers = chat_headers(self.secrets[0], ("x-scripted-delay", "600"))
            await lasting.request("POST", "/v1/chat/completions", headers, body(stream=False))
            await trio.to_thread.run_sync(partial(upstream.wait, in_flight=1))
            watching.start_soon(self.watch, target)
            async with trio.open_nursery() as nursery:
                for number in range(CLIENTS):
                    nursery.start_soon(self.keep_on, number)
                await self._enough.wait()
                self.servers[0].kill()
                self.servers[0] = await trio.to_thread.run_sync(restart)
            watching.cancel_scope.cancel()

    async def watch(self, target: Target) -> None:
        with opened(target, Options(), exclusive=False) as database:
            while True:
                for limit_id, (_, counter) in (await database.read(counted)).items():
                    self.most[limit_id] = max(self.most[limit_id], counter.used + counter.reserved)
                await trio.sleep(0.03)

    async def keep_on(self, number: int) -> None:
        source, secret = random.Random(number), self.secrets[number // len(self.servers) % len(self.secrets)]
        refused = False
        while not refused:
            with suppress(*_BROKEN):
                server = self.servers[number % len(self.servers)]
                refused = await self.ask(server, secret, source)
                self._answers += 1
            if self._answers >= BEFORE_KILL:
                self._enough.set()
            await trio.sleep(0.03)

    async def ask(self, server: Server, secret: str, source: random.Random) -> bool:
        """One request; returns whether a limit is used up."""
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
        return code in FINAL


def test_limits_are_exact_through_disconnects_and_a_kill(
    start_server: StartServer,
    upstream: Upstream,
    migrated_env: dict[str, str],
    migrated_target: Target,
    database_kind: Kind,
    tmp_path: Path,
) -> None:
    (tmp_path / "prices.yaml").write_text(json.dumps(PRICES))
    start = partial(start_server, migrated_env, SETTINGS | {"PRICES_PATH": str(tmp_path / "prices.yaml")})
    servers = [start() for _ in range(1 if database_kind is Kind.SQLITE else 3)]
    deployment, manage = Deployment(servers[0], upstream), servers[0].manage
    of_proxy = manage("POST", "/limits", OF_PROXY)["id"]
    ids, secrets = [], []
    for wanted in PROJECTS:
        project = deployment.new_project(stream_usage="off")["id"]
        first, *_ = [manage("POST", "/limits", {"project_id": project, **limit})["id"] for limit in wanted]
        ids.append(first)
        secrets.append([deployment.new_secret(project) for _ in range(3)])

    hammer = Hammer(servers, list(itertools.chain(*zip(*secrets, strict=True))))
    trio.run(hammer.run, migrated_target, upstream, start)

    wait_for(
        lambda: not ledger_checks.outcomes(migrated_target)["in_flight"] or None,
        20,
        lambda: f"reservations are left: {ledger_checks.outcomes(migrated_target)}",
    )
    assert hammer.refusals.keys() <= FINAL | PASSING
    with opened(migrated_target, Options(), exclusive=False) as database:
        found = database.read_now(counted)
        charged = database.read_now(charges, found)
    assert len(found) == sum(map(len, PROJECTS), 1)
    for limit, counter in found.values():
        assert (counter.used, counter.reserved) == (sum(charged[limit.id]), 0), limit
        assert not limit.reserves or hammer.most[limit.id] <= limit.amount, limit
    of_requests, settled, reserved = (found[limit_id] for limit_id in ids)
    assert of_requests[1].used == LIMIT
    # The bound of the policy: what is in flight when the limit is reached.
    over = settled[1].used - settled[0].amount
    assert 0 <= over < CONCURRENT * max(charged[ids[1]]), over
    assert reserved[1].used <= reserved[0].amount
    assert hammer.most[ids[2]] > 0.9 * reserved[0].amount
    ends, counts = ledger_checks.outcomes(migrated_target), upstream.counts()
    assert counts["requests"] <= ends.total() - ends["void"]
    assert hammer.most[of_proxy] == ALL
    # The provider may notice a disconnect later than the proxy, which has given the place to another request by then.
    assert counts["in_flight_peak"] < 2 * ALL
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
