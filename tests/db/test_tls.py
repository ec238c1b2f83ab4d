"""TLS with real servers: which connections are accepted in each mode, and with which certificate."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from attrs import evolve, frozen
from click.testing import CliRunner

from db.database import opened
from db.dialects.wire import client_context
from db.dsn import Target, Tls, parse
from db.errors import BadDsn, Unavailable
from db.options import Options
from llm_proxy.cli import program
from tests.databases.fixtures import require_programs
from tests.databases.kinds import SERVERS, Kind, on
from tests.databases.scratch import Databases
from tests.db.certified import Certified, CertifiedPostgres, certified
from tests.harness.certificates import Authority

NOT_ACCEPTED = "certificate was not accepted: "
#: Under TLS 1.3 a server may close before its reason is read: clients send as soon as the handshake is done.
REFUSED_CLIENT = "client certificate|user name or password was refused|TLS failed|connection was lost"
NO_TLS = "does not offer TLS"

#: What becomes of a connection, by mode and by what the server presents: encrypted, plain, or refused with a word.
POSTGRES = {
    "disable": {"right": "plain", "stranger": "plain", "elsewhere": "plain", "expired": "plain", "none": "plain"},
    "allow": {"right": "plain", "stranger": "plain", "elsewhere": "plain", "expired": "plain", "none": "plain"},
    "prefer": {"right": "tls", "stranger": "tls", "elsewhere": "tls", "expired": "tls", "none": "plain"},
    "require": {"right": "tls", "stranger": "tls", "elsewhere": "tls", "expired": "tls", "none": NO_TLS},
    "verify-ca": {
        "right": "tls",
        "stranger": NOT_ACCEPTED,
        "elsewhere": "tls",
        "expired": f"{NOT_ACCEPTED}certificate has expired",
        "none": NO_TLS,
    },
    "verify-full": {
        "right": "tls",
        "stranger": NOT_ACCEPTED,
        "elsewhere": f"{NOT_ACCEPTED}Hostname mismatch",
        "expired": f"{NOT_ACCEPTED}certificate has expired",
        "none": NO_TLS,
    },
}
MYSQL = {
    "": POSTGRES["disable"],
    "false": POSTGRES["disable"],
    "preferred": POSTGRES["prefer"],
    "skip-verify": POSTGRES["require"],
    "true": POSTGRES["verify-full"],
    "custom": POSTGRES["verify-full"],
}
PRESENTED = ("right", "stranger", "elsewhere", "expired", "none")


@frozen
class Files:
    """An authority, and certificates: of servers for the right host and others, of clients."""

    authority: Authority
    stranger: Authority
    client: Path
    false_client: Path
    servers: dict[str, Path | None]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    authority = Authority.make(tmp_path_factory.mktemp("authority"))
    stranger = Authority.make(tmp_path_factory.mktemp("stranger"))
    return Files(
        authority,
        stranger,
        client=authority.issue("client", "client.example"),
        false_client=stranger.issue("client", "client.example"),
        servers={
            "right": authority.issue("right", "localhost"),
            "stranger": stranger.issue("right", "localhost"),
            "elsewhere": authority.issue("elsewhere", "elsewhere.example"),
            "expired": authority.issue("expired", "localhost", expired=True),
            "none": None,
        },
    )


@pytest.fixture(scope="module")
def server(databases: Databases, database_kind: Kind, files: Files) -> Iterator[Certified]:
    require_programs(database_kind)
    with certified(database_kind, files.authority, databases.server(database_kind)) as server:
        yield server


def right(files: Files) -> Path:
    certificate = files.servers["right"]
    assert certificate is not None
    return certificate


def url_of(target: Target, mode: str) -> str:
    where = f"{target.host}:{target.port}"
    if target.driver == "postgres":
        return f"postgres://{target.user}:{target.password}@{where}/{target.database}?sslmode={mode}"
    tls = f"&tls={mode}" if mode else ""
    return f"{target.user}:{target.password}@tcp({where})/{target.database}?parseTime=true{tls}"


def connect(url: str, options: Options) -> str | None:
    """The TLS version that a connection has."""
    with opened(parse(None, url, None), options) as database:
        facts = database.read_now(database.describe)
        assert database.connections.in_use == 0
    return facts.tls


def judge(url: str, options: Options, expected: str) -> None:
    if expected == "plain":
        assert connect(url, options) is None
    elif expected == "tls":
        assert str(connect(url, options)).startswith("TLSv1.")
    else:
        with pytest.raises(Unavailable, match=expected):
            connect(url, options)


@on(*SERVERS)
@pytest.mark.parametrize("presented", PRESENTED)
def test_who_is_let_in_under_each_mode(
    server: Certified, database_kind: Kind, files: Files, presented: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = server.present(files.servers[presented])
    for mode, expected in (POSTGRES if database_kind is Kind.POSTGRES else MYSQL).items():
        options = Options(tls_ca=files.authority.file)
        if mode == "true":  # against the system's authorities
            monkeypatch.setenv("SSL_CERT_FILE", str(files.authority.file))
            options = Options()
        judge(url_of(target, mode), options, expected[presented])
        monkeypatch.undo()


@on(*SERVERS)
def test_the_system_does_not_know_the_authority_of_a_test(server: Certified, files: Files, database_kind: Kind) -> None:
    target = server.present(right(files))
    modes = ("verify-ca", "verify-full") if database_kind is Kind.POSTGRES else ("true",)
    for mode in modes:
        judge(url_of(target, mode), Options(), NOT_ACCEPTED)


@on(*SERVERS)
def test_a_file_of_the_url_wins_over_the_setting(server: Certified, files: Files, database_kind: Kind) -> None:
    url = url_of(server.present(right(files)), "verify-full" if database_kind is Kind.POSTGRES else "custom")
    name = "sslrootcert" if database_kind is Kind.POSTGRES else "ssl-ca"
    judge(f"{url}&{name}={quote(str(files.authority.file), safe='')}", Options(tls_ca=Path("/nonexistent")), "tls")
    with pytest.raises(BadDsn, match="DATABASE_TLS_CA /nonexistent"):
        connect(url, Options(tls_ca=Path("/nonexistent")))


@on(*SERVERS)
def test_a_server_that_lets_nobody_in_without_tls(server: Certified, files: Files, database_kind: Kind) -> None:
    target = server.insisting(right(files))
    if database_kind is Kind.POSTGRES:
        expected = {"disable": "may ask for TLS", "allow": "tls", "prefer": "tls", "require": "tls"}
    else:
        expected = {"": "refused", "false": "refused", "preferred": "tls", "skip-verify": "tls"}
    target = evolve(target, database="postgres" if database_kind is Kind.POSTGRES else "information_schema")
    for mode, outcome in expected.items():
        judge(url_of(target, mode), Options(), outcome)


@on("postgres")
def test_a_server_that_lets_nobody_in_with_tls(server: Certified, files: Files) -> None:
    """As libpq, which tries the other way in both of the modes that leave it open."""
    assert isinstance(server, CertifiedPostgres)
    target = server.avoiding(right(files))
    for mode, outcome in {"disable": "plain", "allow": "plain", "prefer": "plain", "require": "may ask for"}.items():
        judge(url_of(target, mode), Options(), outcome)


@on(*SERVERS)
def test_a_server_that_wants_to_know_its_clients(server: Certified, files: Files, database_kind: Kind) -> None:
    target = server.demanding(right(files))
    for mode in ("prefer", "require", "verify-full") if database_kind is Kind.POSTGRES else ("preferred", "custom"):
        url = url_of(target, mode)
        known = Options(tls_ca=files.authority.file, tls_cert=files.client, tls_key=files.client)
        judge(url, known, "tls")
        judge(url, evolve(known, tls_cert=None, tls_key=None), REFUSED_CLIENT)
        judge(url, evolve(known, tls_cert=files.false_client, tls_key=files.false_client), REFUSED_CLIENT)


@on(*SERVERS)
def test_the_settings_reach_the_connection(
    server: Certified, files: Files, database_kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`llm-proxy db check` with a client certificate, as an operator would look at it."""
    monkeypatch.chdir(tmp_path)
    target = server.demanding(right(files))
    env = {
        "DB_DRIVER": target.driver,
        "DATABASE_URL": url_of(target, "verify-full" if database_kind is Kind.POSTGRES else "custom"),
        "DATABASE_TLS_CA": str(files.authority.file),
        "DATABASE_TLS_CERT": str(files.client),
        "DATABASE_TLS_KEY": str(files.client),
    }
    result = CliRunner().invoke(program, ["db", "check", "--json"], prog_name="llm-proxy", env=env)
    assert result.stderr == ""
    assert json.loads(result.stdout)["tls"].startswith("TLSv1.")
    result = CliRunner().invoke(
        program, ["db", "check"], prog_name="llm-proxy", env=env | {"DATABASE_TLS_CA": str(files.stranger.file)}
    )
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert NOT_ACCEPTED in result.stderr


@on("postgres")
def test_a_login_that_proves_nothing(shared_target: Target) -> None:
    """Without TLS there is no channel that a login could be bound to."""
    with (
        opened(evolve(shared_target, tls=Tls.OFF, channel_binding=True), Options()) as database,
        pytest.raises(Unavailable, match="channel binding"),
    ):
        database.read_now(lambda _: None)


@pytest.mark.parametrize(
    ("tls", "options", "words"),
    [
        (Tls.VERIFY_FULL, Options(tls_ca=Path("/nonexistent/ca.pem")), "DATABASE_TLS_CA /nonexistent/ca.pem"),
        (Tls.VERIFY_CA, Options(tls_ca=Path(__file__)), "no certificates"),
        (Tls.CUSTOM, Options(), "needs DATABASE_TLS_CA"),
        (Tls.REQUIRED, Options(tls_key=Path("/k.pem")), "needs DATABASE_TLS_CERT"),
        (Tls.REQUIRED, Options(tls_cert=Path("/nonexistent/c.pem")), "no certificate with its key"),
    ],
)
def test_files_that_cannot_be_used(tls: Tls, options: Options, words: str) -> None:
    with pytest.raises(BadDsn, match=words):
        client_context(Target("postgres", tls=tls), options)


def test_no_context_without_tls() -> None:
    assert client_context(Target("postgres", tls=Tls.OFF), Options(tls_ca=Path("/nonexistent"))) is None


def test_a_system_without_authorities_borrows_some(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    context = client_context(Target("mysql", tls=Tls.VERIFY_FULL), Options())
    assert context is not None
    assert context.cert_store_stats()["x509_ca"] > 50
