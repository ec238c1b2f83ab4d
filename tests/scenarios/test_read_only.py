"""A failover leaves the proxy with a server that only allows reading: refused with 503, and noticed when it is over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from tests.databases.admin import admin_of, with_database
from tests.databases.fixtures import require_programs
from tests.databases.kinds import SERVERS, Kind, on
from tests.databases.scratch import Databases, Scratch
from tests.databases.servers import own_instance
from tests.harness.deployment import Deployment
from tests.scenarios import ledger_checks

if TYPE_CHECKING:
    from benchmarks.processes import Upstream
    from tests.harness.server import StartServer

#: Seconds until the proxy must be back, on whatever machine this is.
PATIENCE = 30.0
#: The database, and what makes it read-only or not.
Switchable = tuple[Scratch, Callable[..., None]]


@pytest.fixture
def switchable(databases: Databases, database_kind: Kind) -> Iterator[Switchable]:
    """A database that can be made read-only without anybody else noticing."""
    if database_kind is Kind.MARIADB:
        require_programs(database_kind)
        with own_instance(database_kind) as instance:
            # Administrators write whatever is set, so the proxy is none.
            name, url = "ledger", instance.url.replace("root@", "proxy@")
            admin = admin_of(database_kind, instance.url)
            admin.execute(
                f"CREATE DATABASE {name} CHARACTER SET utf8mb4", "CREATE USER proxy", f"GRANT ALL ON {name}.* TO proxy"
            )

            def switch(*, read_only: bool) -> None:
                admin.execute(f"SET GLOBAL read_only = {int(read_only)}")

            yield Scratch(database_kind, name, with_database(url, name), ""), switch
        return
    with databases.empty(database_kind) as scratch:
        admin = databases.server(database_kind).admin

        def switch_postgres(*, read_only: bool) -> None:
            value = "on" if read_only else "off"
            admin.execute(f'ALTER DATABASE "{scratch.name}" SET default_transaction_read_only = {value}')
            if read_only:  # as the old primary goes down with its sessions; nobody ends those of the new one
                admin.end_sessions(scratch.name)

        def switch_mysql(*, read_only: bool) -> None:
            admin.execute(f"ALTER DATABASE `{scratch.name}` READ ONLY = {int(read_only)}")

        switch = switch_postgres if database_kind is Kind.POSTGRES else switch_mysql
        try:
            yield scratch, switch
        finally:
            switch(read_only=False)


@on(*SERVERS)
async def test_a_database_turns_read_only_and_back(
    start_server: StartServer, upstream: Upstream, switchable: Switchable
) -> None:
    scratch, switch = switchable
    server = start_server(scratch.env)
    deployment = Deployment(server, upstream)
    secret: str = await trio.to_thread.run_sync(deployment.new_secret)
    for _ in range(3):
        assert (await deployment.chat(secret)).status == 200

    await trio.to_thread.run_sync(partial(switch, read_only=True))
    for _ in range(3):
        answer = await deployment.chat(secret)
        assert (answer.status, answer.json()["error"]["code"]) == (503, "database_unavailable")

    await trio.to_thread.run_sync(partial(switch, read_only=False))
    with trio.fail_after(PATIENCE):
        while (status := (await deployment.chat(secret)).status) != 200:
            assert status == 503
            await trio.sleep(0.05)
    assert await server.stopped() == 0, server.output
    assert "Traceback" not in server.output
    assert "sqlalchemy" not in server.output
    assert "ServerPool" not in server.output
    ledger_checks.verify(scratch.env)
    assert ledger_checks.outcomes(scratch.target) == {"ok": 4}
