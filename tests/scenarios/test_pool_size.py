"""A server says when it starts that its pools do not fit into what the database takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.databases.kinds import SERVERS, Kind, on

if TYPE_CHECKING:
    from tests.harness.server import StartServer


@on(*SERVERS)
def test_pools_above_the_connection_limit_are_warned_about(
    migrated_env: dict[str, str], start_server: StartServer, database_kind: Kind
) -> None:
    """One worker logs it; several workers log it once, by their supervisor. The server still serves."""
    workers = 2 if database_kind is Kind.MARIADB else 1
    server = start_server(migrated_env, {"DATABASE_POOL_SIZE": "1000", "WORKERS": str(workers)})
    if workers == 1:
        warnings = [event["event"] for event in server.events if event["level"] == "warning"]
    else:
        warnings = [line for line in server.output.splitlines() if line.startswith("warning: ")]
    (warning,) = warnings
    assert f"one server alone may open {1000 * workers} connections, more than the " in warning
    assert warning.endswith("; lower DATABASE_POOL_SIZE or WORKERS")


@on("postgres")
def test_pools_below_the_connection_limit_are_not_warned_about(
    migrated_env: dict[str, str], start_server: StartServer
) -> None:
    server = start_server(migrated_env)
    assert "connections" not in server.output
