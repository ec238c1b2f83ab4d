from __future__ import annotations

import resource
import socket
import stat
from pathlib import Path

import pytest

from benchmarks.processes import family
from llm_proxy.config import Settings
from llm_proxy.worker import connection_limit, serve_config
from tests.cli.conftest import Run
from tests.databases.kinds import Kind, on
from tests.harness.server import ENCRYPTION_KEY, MANAGEMENT_TOKEN, Server, StartServer

NO_SECRETS = {"MANAGEMENT_TOKEN": "", "ENCRYPTION_KEY": ""}


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Where a server of this test may keep a SQLite file."""
    return tmp_path / "data" / "proxy.db"


def started(start_server: StartServer, database: Path, settings: dict[str, str] | None = None) -> Server:
    return start_server({"DATABASE_PATH": str(database)}, settings)


def refused(run: Run, settings: dict[str, str]) -> str:
    """The error of a server that does not start, in this process; it could not listen on its address either."""
    secrets = {"MANAGEMENT_TOKEN": MANAGEMENT_TOKEN, "ENCRYPTION_KEY": ENCRYPTION_KEY}
    wanted = {"LISTEN_ADDR": "203.0.113.1:9", **secrets, **settings}
    done = run("server", env={name: value for name, value in wanted.items() if value})
    assert (done.exit_code, done.stdout) == (2, "")
    return done.stderr


def last_line(server: Server) -> str:
    """What the server said last that is not of its log."""
    return [line for line in server.output.splitlines() if not line.startswith("{")][-1]


def test_a_server_on_sqlite_needs_nothing_and_says_where_its_token_is(
    start_server: StartServer, database: Path, run: Run
) -> None:
    server = started(start_server, database, NO_SECRETS)

    file = database.with_name("proxy.db.management-token")
    token = file.read_text().strip()
    assert server.output.startswith(f"The management token is in {file}\n")
    assert token not in server.output
    assert len(token) == 43
    private = {path.name: stat.S_IMODE(path.stat().st_mode) for path in database.parent.iterdir()}
    assert set(private.values()) == {0o600}
    assert "proxy.db.key" in private

    # Commands on the same machine find the token.
    listed = run("manage", "project", "list", "--manage-api-base-url", server.url, env={"DATABASE_PATH": str(database)})
    assert (listed.exit_code, listed.stderr) == (0, "")


def test_the_token_outlives_the_server(start_server: StartServer, database: Path) -> None:
    file = database.with_name("proxy.db.management-token")
    started(start_server, database, NO_SECRETS).stop()
    first = file.read_text()
    started(start_server, database, NO_SECRETS)

    assert file.read_text() == first


def test_a_token_that_is_set_is_kept_nowhere(start_server: StartServer, database: Path) -> None:
    server = started(start_server, database)

    assert [path.name for path in database.parent.iterdir() if "token" in path.name] == []
    assert MANAGEMENT_TOKEN not in server.output
    assert ENCRYPTION_KEY not in server.output


def test_a_server_with_a_short_management_token_warns_in_its_log_if_that_is_allowed(
    start_server: StartServer, database: Path, run: Run
) -> None:
    weak = {"MANAGEMENT_TOKEN": "hunter2"}
    error = refused(run, {"DATABASE_PATH": str(database), **weak})
    assert error.startswith("error: MANAGEMENT_TOKEN (value hidden): it has fewer than 20 characters")

    allowed = started(start_server, database, weak | {"ALLOW_WEAK_MANAGEMENT_TOKEN": "true"})
    (warning,) = [event for event in allowed.events if event["level"] == "warning"]
    assert "a short MANAGEMENT_TOKEN can be guessed" in warning["event"]
    assert "hunter2" not in allowed.output


def test_sigterm_lets_what_runs_end_and_exits_well(start_server: StartServer, database: Path) -> None:
    server = started(start_server, database)

    with socket.create_connection((server.host, server.port)) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert server.stop() == 0

    assert [event["event"] for event in server.events] == ["serving", "stopped"]
    assert server.events[0]["urls"] == [server.url]


def test_a_second_server_on_the_same_file_is_refused(start_server: StartServer, database: Path) -> None:
    first = started(start_server, database)

    second = start_server({"DATABASE_PATH": str(database)}, ready=False)

    assert second.wait() == 1
    assert last_line(second) == (
        f"error: another llm-proxy process (pid {first.pid}) is using {database}; one process per SQLite file; "
        "stop it first, or use PostgreSQL or MySQL for more than one"
    )
    assert first.is_ready()


def test_looking_is_possible_beside_a_server_and_changing_is_not(
    start_server: StartServer, database: Path, run: Run
) -> None:
    server = started(start_server, database)
    env = {"DATABASE_PATH": str(database)}

    for command in (("ledger", "verify"), ("db", "check"), ("migrate", "status"), ("migrate", "plan")):
        assert (run(*command, env=env).exit_code, run(*command, env=env).stderr) == (0, "")
    down = run("migrate", "down", "--yes", env=env)

    assert down.exit_code == 1
    assert down.stderr.startswith(f"error: another llm-proxy process (pid {server.pid}) is using {database}; ")
    assert server.is_ready()


def test_an_address_that_is_taken(start_server: StartServer, database: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = start_server({"DATABASE_PATH": str(database)}, port=port, ready=False)
        code = server.wait()

    assert code == 1
    assert last_line(server) == (
        f"error: cannot listen on 127.0.0.1:{port}: Address already in use; choose another address with --addr"
    )


def test_wrong_settings_are_all_named(run: Run, database: Path) -> None:
    error = refused(run, {"WORKERS": "2", "LOG_LEVEL": "loud", "DATABASE_PATH": str(database)})

    assert error.splitlines() == [
        "error: 2 settings are wrong:",
        "  LOG_LEVEL='loud': allowed: one of debug, info, warning, error",
        (
            "  WORKERS=2: SQLite serves one process only, because its file has one writer; "
            "set WORKERS=1, or use DB_DRIVER=postgres or mysql"
        ),
    ]
    assert not database.exists()


def test_flags_come_before_the_environment(start_server: StartServer, tmp_path: Path) -> None:
    config = tmp_path / "some.env"
    config.write_text("LOG_FORMAT=text\nLOG_LEVEL=debug\n")
    server = start_server(
        {"DATABASE_PATH": "/nonexistent/x.db"},
        {"LOG_FORMAT": ""},
        "--db",
        str(tmp_path / "flag.db"),
        "--config",
        str(config),
    )

    assert (tmp_path / "flag.db").exists()
    assert " info    serving " in server.output


@pytest.mark.parametrize("driver", ["postgres", "mysql"])
def test_a_shared_database_needs_the_secrets_from_outside(run: Run, driver: str) -> None:
    url = {"postgres": "postgres://u:canary@127.0.0.1:9/d", "mysql": "u:canary@tcp(127.0.0.1:9)/d"}[driver]
    error = refused(run, {"DB_DRIVER": driver, "DATABASE_URL": url, **NO_SECRETS})

    assert [line.split(":")[0] for line in error.splitlines()] == ["error", "  MANAGEMENT_TOKEN", "  ENCRYPTION_KEY"]
    assert "canary" not in error


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_database_that_is_away_is_exit_code_2(start_server: StartServer, workers: str) -> None:
    url = "postgres://u:canary@127.0.0.1:9/d?sslmode=disable"
    server = start_server({}, {"DB_DRIVER": "postgres", "DATABASE_URL": url, "WORKERS": workers}, ready=False)

    assert server.wait() == 2
    assert last_line(server).startswith("error: PostgreSQL at 127.0.0.1:9, database d: ")
    assert "canary" not in server.output
    assert "Traceback" not in server.output


@on(Kind.POSTGRES, Kind.MYSQL)
def test_several_workers_serve_and_end_together(start_server: StartServer, migrated_env: dict[str, str]) -> None:
    server = start_server(migrated_env, {}, "--workers", "2")

    workers = [pid for pid in family(server.pid) if pid != server.pid]
    assert len(workers) == 2
    assert server.stop() == 0
    assert [event["event"] for event in server.events].count("stopped") == 2


@pytest.mark.parametrize(("workers", "shared"), [("1", False), ("2", True)])
def test_workers_share_their_sockets_and_one_process_has_them_for_itself(workers: str, *, shared: bool) -> None:
    environment = {
        "DB_DRIVER": "postgres",
        "DATABASE_URL": "postgres://u:p@localhost/d",
        "MANAGEMENT_TOKEN": MANAGEMENT_TOKEN,
        "ENCRYPTION_KEY": ENCRYPTION_KEY,
        "WORKERS": workers,
    }
    assert serve_config(Settings.load(environment, {}, None, serving=True), ()).shared is shared


@pytest.mark.parametrize(
    ("allowed", "concurrent", "connections"),
    [
        (1024, "1000", 465),
        (1024, "100", 830),
        (4096, "1000", 3002),
        (65536, "1000", 10_000),
        (resource.RLIM_INFINITY, "1000", 10_000),
        (64, "1000", 1),
    ],
)
def test_connections_are_bounded_below_the_limit_on_open_files(
    allowed: int, concurrent: str, connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"now": (32, allowed)}
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits["now"])
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: limits.update(now=wanted))
    environment = {"MANAGEMENT_TOKEN": MANAGEMENT_TOKEN, "MAX_CONCURRENT_REQUESTS": concurrent}
    settings = Settings.load(environment, {}, None, serving=True)
    assert connection_limit(settings) == serve_config(settings, ()).max_connections == connections
    assert limits["now"] == (allowed, allowed)


def test_a_limit_on_open_files_that_cannot_be_raised_is_kept_to(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int, __: tuple[int, int]) -> None:
        raise PermissionError

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    settings = Settings.load({"MANAGEMENT_TOKEN": MANAGEMENT_TOKEN}, {}, None, serving=True)
    assert connection_limit(settings) == 81
