"""A server with several providers, shared by the tests of a module. On SQLite: these tests are not about databases."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.processes import Upstream
from tests.databases.kinds import Kind
from tests.databases.scratch import Databases
from tests.harness.deployment import Deployment
from tests.scenarios.gateway import open_gateway


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, str]:
    """The settings of a module's gateway; a module that needs others has a fixture of this name."""
    return {}


@pytest.fixture(scope="module")
def strict_providers() -> bool:
    """Whether a module's gateway has the strict providers too; a module overrides it."""
    return False


@pytest.fixture(scope="module")
def module_gateway(
    databases: Databases,
    session_upstream: Upstream,
    gateway_settings: dict[str, str],
    strict_providers: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Deployment]:
    """The server behind `gateway`, for a module's own fixtures of that scope."""
    folder = tmp_path_factory.mktemp("providers")
    with (
        databases.migrated(Kind.SQLITE) as scratch,
        open_gateway(scratch, session_upstream, folder, gateway_settings, strict=strict_providers) as deployment,
    ):
        yield deployment


@pytest.fixture
def gateway(module_gateway: Deployment, upstream: Upstream) -> Deployment:
    """A server with several providers (see `gateway.py`), the upstream's counts at zero."""
    return module_gateway


@pytest.fixture
def closed_connections(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close the connections that SDKs have opened and leave to the garbage collector.

    It may find them during a test of another module, which fails by the warning.
    """
    opened: list[socket.socket] = []
    connect = socket.socket.connect

    def noted(connection: socket.socket, address: Any) -> None:
        opened.append(connection)
        connect(connection, address)

    monkeypatch.setattr(socket.socket, "connect", noted)
    yield
    for connection in opened:
        connection.close()
