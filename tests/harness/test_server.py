from __future__ import annotations

import pytest

from tests.databases.admin import Address, with_endpoint
from tests.databases.kinds import Kind, on
from tests.databases.scratch import Databases
from tests.harness.deployment import UPSTREAM_KEY, Deployment
from tests.harness.server import ServerFailed, StartServer
from tests.harness.wire import wire_to


async def test_a_chat_goes_through_a_shared_server(deployment: Deployment) -> None:
    answer = await deployment.chat(deployment.new_secret())
    assert (answer.status, answer.complete) == (200, True)
    assert deployment.upstream.counts()["requests"] == 1
    assert UPSTREAM_KEY.encode() not in answer.body


def test_a_shared_server_starts_each_test_with_counts_at_zero(deployment: Deployment) -> None:
    assert deployment.upstream.counts()["requests"] == 0


@on("sqlite")
def test_a_server_stops_when_it_is_told_to(own_deployment: Deployment) -> None:
    assert own_deployment.server.stop() == 0


@on("sqlite")
def test_a_killed_server_starts_again_at_its_place(start_server: StartServer, migrated_env: dict[str, str]) -> None:
    first = start_server(migrated_env)
    first.kill()
    assert not first.is_ready()
    assert start_server(migrated_env, port=first.port).is_ready()


@on("sqlite")
def test_a_server_that_cannot_start_is_quoted(start_server: StartServer, migrated_env: dict[str, str]) -> None:
    with pytest.raises(ServerFailed, match="REQUEST_TIMEOUT"):
        start_server(migrated_env, {"REQUEST_TIMEOUT": "soon"})


@on("postgres")
async def test_a_server_reaches_its_database_through_a_wire_of_the_test(
    databases: Databases, database_kind: Kind, start_server: StartServer
) -> None:
    with databases.migrated(database_kind) as scratch:
        address = Address.parse(scratch.url, default_port=5432)
        async with wire_to(address.host, address.port) as wire:
            env = scratch.env | {"DATABASE_URL": with_endpoint(scratch.url, wire.host, wire.port)}
            server = start_server(env, ready=False)
            await server.ready()
            assert wire.connections > 0
            assert await server.stopped() == 0
