"""Fixtures that start real processes, on each of the four databases. What a test starts is stopped when it ends.

`deployment` is a server that the tests of a module share, `own_deployment` one for a single test, `start_server` for
tests that need several, or one with settings of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack

import pytest

from benchmarks.processes import Upstream
from tests.databases.kinds import Kind
from tests.databases.scratch import Databases
from tests.harness import server
from tests.harness.deployment import UPSTREAM_KEY, Deployment, provider_settings
from tests.harness.server import Server, StartServer, running_server


def pytest_unconfigure() -> None:
    """End the process that servers are forks of."""
    server.shared.close()


@pytest.fixture(scope="session")
def session_upstream() -> Iterator[Upstream]:
    """The scripted upstream of all tests that use `upstream` or `deployment`."""
    with Upstream.start("--key", UPSTREAM_KEY) as upstream:
        yield upstream


@pytest.fixture
def upstream(session_upstream: Upstream) -> Upstream:
    """The scripted upstream, with its counts at zero and nothing held."""
    session_upstream.release()
    session_upstream.reset()
    return session_upstream


@pytest.fixture
def start_server(upstream: Upstream) -> Iterator[StartServer]:
    """Starts servers on a database, in front of the scripted upstream: `start_server(migrated_env)`.

    Takes what `running_server` takes. A server that a test leaves running must end well when it is told to.
    """
    with ExitStack() as stack:
        servers: list[Server] = []

        def start(
            env: Mapping[str, str],
            settings: Mapping[str, str] | None = None,
            *arguments: str,
            port: int | None = None,
            ready: bool = True,
        ) -> Server:
            wanted = {**provider_settings(upstream), **(settings or {})}
            server = stack.enter_context(running_server(env, wanted, *arguments, port=port, ready=ready))
            servers.append(server)
            return server

        yield start
        for server in servers:
            if server.process.running:
                server.resume()
                assert server.stop() == 0, server.output


@pytest.fixture
def own_deployment(start_server: StartServer, migrated_env: dict[str, str], upstream: Upstream) -> Deployment:
    """A server of this test alone, for tests that stop, kill or configure it."""
    return Deployment(start_server(migrated_env), upstream)


@pytest.fixture(scope="module")
def module_deployment(databases: Databases, database_kind: Kind, session_upstream: Upstream) -> Iterator[Deployment]:
    """The server behind `deployment`, for a module's own fixtures of that scope."""
    with (
        databases.migrated(database_kind) as scratch,
        running_server(scratch.env, provider_settings(session_upstream)) as server,
    ):
        yield Deployment(server, session_upstream)
        assert server.stop() == 0, server.output


@pytest.fixture
def deployment(module_deployment: Deployment, upstream: Upstream) -> Deployment:
    """A server shared by the tests of a module, for tests that leave it as it is; the upstream's counts at zero."""
    return module_deployment
