"""Database faults under load: rejected in time with a clear message, no record lost, no restart needed.

One proxy per database lives through all of its faults, one after the other, while clients keep asking:

    fault            SQLite   PostgreSQL   MariaDB   MySQL
    restart          -        yes          yes       its programs (1)
    crash            -        yes          yes       its programs (1)
    frozen           -        yes          yes       its programs (2)
    full-disk        yes      yes          yes       its programs
    failing-disk     yes      -            -         -
    sessions-ended   -        yes          yes       yes
    network-drops    -        yes          yes       yes
    network-flaps    -        yes          yes       yes
    network-stalls   -        yes          yes       yes

Restart, crash, frozen and full-disk need a server of the test's own. Where MySQL is only there as a server that the
environment names, which others use too, (1) network-drops is what its restart looks like to the proxy: connections are
reset and new ones refused; and (2) network-stalls is what its hanging looks like. Sessions that the server ends because
they were silent for too long are in `tests/db/test_outages.py`. A full or failing disk is only to be had as root, and
on Linux; what disks say in other ways is in `tests/db/test_failures.py`.
"""
# ruff: noqa: ASYNC110 (what is waited for happens in other processes)

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define
from sqlalchemy import select

from benchmarks.processes import Upstream
from db import Connection
from db.database import opened
from db.dsn import parse
from db.dsn.target import Target
from db.options import Options
from db.schema import in_flight, requests
from tests.databases.admin import Address, admin_of, with_database, with_endpoint
from tests.databases.disks import Disk, small_disk
from tests.databases.fixtures import lacking, require
from tests.databases.kinds import Kind
from tests.databases.programs import find_program
from tests.databases.scratch import Databases
from tests.databases.servers import Missing, own_instance
from tests.harness import client
from tests.harness.deployment import UPSTREAM_KEY, Deployment, chat_body, chat_headers, provider_settings
from tests.harness.server import running_server
from tests.harness.wire_beside import wire_beside
from tests.scenarios import faults, ledger_checks
from tests.scenarios.faults import Fault, Stage
from tests.scenarios.load import SERVED, Load

_OF_NETWORK = (faults.NETWORK_DROPS, faults.NETWORK_FLAPS, faults.NETWORK_STALLS, faults.SESSIONS_ENDED)
_OF_SERVER = (faults.RESTART, faults.CRASH, faults.FROZEN, faults.FULL_DISK)
TABLE = {
    Kind.SQLITE: (faults.FULL_DISK, *((faults.FAILING_DISK,) if faults.CAN_LIMIT else ())),
    Kind.POSTGRES: (*_OF_NETWORK, *_OF_SERVER),
    Kind.MARIADB: (*_OF_NETWORK, *_OF_SERVER),
    Kind.MYSQL: (*_OF_NETWORK, *(_OF_SERVER if find_program(Kind.MYSQL) else ())),
}

#: Seconds in which a refusal must come: less than the socket's patience, which a hanging admission would have.
PROMPT = 3.5
#: Seconds until a fault must be noticed, and until it must be over after its end, on slow machines.
PATIENCE = 30.0
#: Requests that must be served before a fault, and after it.
ENOUGH = 40
STREAMS = 3
#: The socket waits two seconds longer.
SETTINGS = {"DATABASE_STATEMENT_TIMEOUT": "2s", "LEDGER_HEARTBEAT": "1s"}
MEGABYTES = {Kind.SQLITE: 16, Kind.POSTGRES: 256, Kind.MARIADB: 256, Kind.MYSQL: 512}
#: What only a driver, a server or the interpreter says.
RAW = re.compile(
    r"Traceback|pg8000|pymysql|PyMySQL|sqlite3|sqlalchemy|SQLSTATE|Lost connection|gone away|terminating connection"
    r"|Errno|InnoDB|No space|INSERT INTO|UPDATE |SELECT "
)


@pytest.fixture(scope="module")
def upstream_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("upstream") / "log"


@pytest.fixture(scope="module")
def seeing_upstream(upstream_log: Path) -> Iterator[Upstream]:
    with Upstream.start("--key", UPSTREAM_KEY, "--log", str(upstream_log)) as upstream:
        yield upstream


def a_disk(kind: Kind, stack: ExitStack) -> Disk | None:
    try:
        return stack.enter_context(small_disk(MEGABYTES[kind]))
    except Missing:
        return None


@contextmanager
def staged(kind: Kind, databases: Databases, upstream: Upstream, folder: Path) -> Iterator[Stage]:
    """A proxy on its own database: on a small disk if possible, else on its own server."""
    wire, admin, instance, disk = None, None, None, None
    with ExitStack() as stack:
        if kind is Kind.SQLITE:
            disk = a_disk(kind, stack)
            path = str((folder if disk is None else disk.folder) / "llm-proxy.db")
            env, target = {"DB_DRIVER": "sqlite", "DATABASE_PATH": path}, parse("sqlite", None, path)
        else:
            if find_program(kind):
                disk = a_disk(kind, stack)
                instance = stack.enter_context(own_instance(kind, within=None if disk is None else disk.folder))
                admin, url = admin_of(kind, instance.url), with_database(instance.url, "faults")
                admin.create("faults")
            else:
                require(databases, kind)
                admin, url = databases.server(kind).admin, stack.enter_context(databases.empty(kind)).url
            address = Address.parse(url, default_port=0)
            wire = stack.enter_context(wire_beside(address.host, address.port))
            env = {"DB_DRIVER": kind.driver, "DATABASE_URL": with_endpoint(url, wire.host, wire.port)}
            target = parse(kind.driver, url, "")
        server = stack.enter_context(running_server(env, provider_settings(upstream) | SETTINGS))
        deployment = Deployment(server, upstream)
        yield Stage(kind, target, deployment, deployment.new_secret(), wire, admin, instance, disk)
        assert server.stop() == 0, server.output
        ledger_checks.verify(env)


@pytest.fixture(scope="module")
def stages(
    databases: Databases, seeing_upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Kind], Stage]]:
    """One stage per database, set up when it is first asked for: pytest would make one for each pair of the table."""
    with ExitStack() as stack:

        @cache
        def stage(kind: Kind) -> Stage:
            return stack.enter_context(staged(kind, databases, seeing_upstream, tmp_path_factory.mktemp(kind)))

        yield stage


@pytest.mark.parametrize(
    ("database_kind", "fault"),
    [pytest.param(kind, fault, id=f"{kind}-{fault}") for kind, row in TABLE.items() for fault in row],
    indirect=["database_kind"],
)
async def test_a_database_fault_under_load_loses_no_record(
    stages: Callable[[Kind], Stage], database_kind: Kind, fault: Fault, upstream_log: Path
) -> None:
    stage = await looked(partial(stages, database_kind))
    if stage.lacks(fault):
        lacking(f"{fault} on {stage.kind} needs {'a small disk' if fault.of_disk else 'a server'} of the test's own")
    server = stage.deployment.server
    load = Load(stage.secret, f"{stage.kind}-{fault}")
    said = len(server.output)
    streams = Streams(server.url, stage.secret)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(load.keep_on, server.url, 0.3)
        await until(lambda: load.served >= ENOUGH, "clients are served")
        for _ in range(STREAMS):
            nursery.start_soon(streams.one)
        await until(lambda: streams.begun == STREAMS, "streams begin")
        refused = load.refused
        async with struck(fault, stage):
            if fault.refuses:
                await until(lambda: load.refused > refused, "a client is refused")
                await not_ready(stage)
        served = load.served
        await until(lambda: load.served >= served + ENOUGH, "clients are served again")
        await server.ready()
        load.stopping = True
    # What was running when the fault struck has come to its end all the same.
    assert streams.whole == STREAMS

    told(load)
    logged(server.output[said:], fault)
    await balanced(stage.target, load, upstream_log)


@define
class Streams:
    """Streamed answers that last for two seconds: how many have begun, and how many came to their end."""

    url: str
    secret: str
    begun: int = 0
    whole: int = 0

    async def one(self) -> None:
        headers = chat_headers(self.secret, ("x-scripted-chunks", "20"), ("x-scripted-gap", "0.1"))
        async with client.connect(self.url) as connection:
            await connection.request("POST", "/v1/chat/completions", headers, chat_body(stream=True))
            assert (await connection.head("POST")).status == 200
            self.begun += 1
            body = b"".join([chunk async for chunk in connection.chunks()])
            self.whole += body.endswith(b"data: [DONE]\n\n")


@asynccontextmanager
async def struck(fault: Fault, stage: Stage) -> AsyncIterator[None]:
    """The fault lasts as long as it means to, and no longer than the block: others come after it."""
    since = trio.current_time()
    await trio.to_thread.run_sync(fault.strike, stage)
    try:
        yield
        await trio.sleep_until(since + fault.seconds)
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(fault.heal, stage)


async def looked(look: Callable[[], Any]) -> Any:
    return await trio.to_thread.run_sync(look)


async def until(holds: Callable[[], bool], what: str) -> None:
    with trio.move_on_after(PATIENCE):
        while not holds():
            await trio.sleep(0.02)
        return
    pytest.fail(f"not within {PATIENCE} s: {what}")


async def not_ready(stage: Stage) -> None:
    """The proxy says that it is not ready, in time, and that it lives, at once."""
    call = stage.deployment.server.call
    with trio.fail_after(PATIENCE):
        # On a full disk there may be room for a heartbeat now and then.
        while (ready := await looked(partial(call, "GET", "/ready"))).status != 503:
            await trio.sleep(0.05)
    assert set(ready.content["failing"]) & {"database", "writer"}
    asked = trio.current_time()
    assert {(await looked(partial(call, "GET", path))).status for path in ("/live", "/health")} == {200}
    assert trio.current_time() - asked < PROMPT


def told(load: Load) -> None:
    """Nobody was told anything but the truth, and everybody in time."""
    assert load.unanswered == 0
    assert load.statuses.keys() <= {SERVED, 503}, load.statuses
    for answer in load.answers.values():
        assert not RAW.search(answer.body.decode()), answer.body
        if answer.status != SERVED:
            assert answer.json()["error"]["code"] == "database_unavailable"
            assert int(answer.header("Retry-After") or 0) >= 1
    assert load.slowest < PROMPT


def logged(text: str, fault: Fault) -> None:
    """The operator was told why, in our own words, and that it is over."""
    assert not RAW.search(text), RAW.findall(text)
    lines = [json.loads(line) for line in text.splitlines() if '"the database is' in line]
    if fault.refuses:
        reasons = [line["reason"] for line in lines if line["event"] == "the database is away"]
        assert any(re.search(fault.reason, reason) for reason in reasons), reasons
    assert not lines or lines[-1]["event"] == "the database is back", lines


async def balanced(target: Target, load: Load, upstream_log: Path) -> None:
    """Every request that the provider saw is in the ledger exactly once, with the status that the client got."""

    def settled(connection: Connection) -> bool:
        return not connection.execute(select(in_flight.c.id)).all()

    def rows(connection: Connection) -> list[tuple[str, str]]:
        mine = requests.c.path.like(f"/v1/models/{load.name}-%")
        return [
            (row.path, row.outcome)
            for row in connection.execute(select(requests.c.path, requests.c.outcome).where(mine))
        ]

    with opened(target, Options(), exclusive=False) as database:
        with trio.fail_after(PATIENCE):
            while not await database.read(settled):
                await trio.sleep(0.05)
        found = await database.read(rows)
    assert ledger_checks.differences(target) == []
    lines = (await trio.Path(upstream_log).read_text()).splitlines()
    targets = (json.loads(line)["target"] for line in lines)
    seen = Counter(path for path in targets if path in load.answers)
    written = Counter(path for path, _ in found)
    assert set(seen.values()) == set(written.values()) == {1}
    assert seen.keys() <= written.keys()
    served = {path for path, answer in load.answers.items() if answer.status == SERVED}
    assert served == seen.keys()
    outcomes = dict(found)
    assert {outcomes[path] for path in served} == {"rejected"}
    # Admitted, and refused because nobody knew: given back.
    assert {outcomes[path] for path in written.keys() - served} <= {"void"}
