"""Every parameter that libpq and Go's MySQL driver document: honoured, without effect, or refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from attrs import asdict

from db.dsn import Tls, parse
from db.errors import BadDsn

#: A value that changes the target, and what it changes.
Honoured = tuple[str, dict[str, Any]]
#: Values without effect, a value that is refused, and a word of the reason; either may be missing.
Settled = tuple[tuple[str, ...], str, str]

#: https://www.postgresql.org/docs/17/libpq-connect.html#LIBPQ-PARAMKEYWORDS; the last ones are of PostgreSQL 18.
LIBPQ: dict[str, Honoured | Settled] = {
    "host": ("db.internal", {"host": "db.internal"}),
    "hostaddr": ("192.0.2.7", {"host": "192.0.2.7"}),
    "port": ("6543", {"port": 6543}),
    "dbname": ("another", {"database": "another"}),
    "user": ("someone", {"user": "someone"}),
    "password": ("a+b%", {"password": "a+b%"}),
    "passfile": ((), "/home/me/.pgpass", "DATABASE_URL_FILE"),
    "require_auth": ((), "scram-sha-256", "channel_binding"),
    "channel_binding": ("require", {"channel_binding": True}),
    "connect_timeout": ("7", {"connect_timeout": 7.0}),
    "client_encoding": (("UTF8", "utf-8", "auto"), "LATIN1", "UTF8"),
    "options": ((), "-c geqo=off", "ALTER ROLE"),
    "application_name": ("replica 1", {"application_name": "replica 1"}),
    "fallback_application_name": ("replica 1", {"application_name": "replica 1"}),
    "keepalives": (("0", "1"), "", ""),
    "keepalives_idle": (("60",), "", ""),
    "keepalives_interval": (("10",), "", ""),
    "keepalives_count": (("3",), "", ""),
    "tcp_user_timeout": (("5000",), "", ""),
    "replication": (("false", "off", "no", "0"), "database", "SQL"),
    "gssencmode": (("disable", "prefer"), "require", "Kerberos"),
    "sslmode": ("verify-full", {"tls": Tls.VERIFY_FULL}),
    "requiressl": (("0",), "1", "sslmode=require"),
    "sslnegotiation": (("postgres",), "direct", "protocol"),
    "sslcompression": (("0",), "1", "compressed"),
    "sslcert": ("/c.pem", {"tls_cert": Path("/c.pem")}),
    "sslkey": ("/k.pem", {"tls_key": Path("/k.pem")}),
    "sslpassword": ((), "s3cret", "without a password"),
    "sslcertmode": (("allow",), "require", "sslcert"),
    "sslrootcert": ("/ca.pem", {"tls_ca": Path("/ca.pem")}),
    "sslcrl": ((), "/crl.pem", "revocation"),
    "sslcrldir": ((), "/crls", "revocation"),
    "sslsni": (("1",), "0", "always"),
    "requirepeer": ((), "postgres", "socket"),
    "ssl_min_protocol_version": (("TLSv1", "TLSv1.1", "TLSv1.2"), "TLSv1.3", "TLS 1.2"),
    "ssl_max_protocol_version": (("TLSv1.3",), "TLSv1.2", "newest"),
    "krbsrvname": (("postgres",), "", ""),
    "gsslib": (("gssapi",), "", ""),
    "gssdelegation": (("0",), "1", "Kerberos"),
    "service": ((), "ledger", "host"),
    "target_session_attrs": (("any", "read-write", "primary"), "standby", "writes"),
    "load_balance_hosts": (("disable",), "random", "one host"),
    # The spelling of JDBC, which libpq takes in URLs ("Connection URIs").
    "ssl": ("true", {"tls": Tls.REQUIRED}),
    "servicefile": ((), "/etc/pg_service.conf", "host"),
    "min_protocol_version": (("3.0",), "3.2", "protocol"),
    "max_protocol_version": (("3.2", "latest"), "", ""),
    "sslkeylogfile": ((), "/tmp/keys", "session keys"),  # noqa: S108 - a value that is refused
    "scram_client_key": ((), "s3cret", "password"),
    "scram_server_key": ((), "s3cret", "password"),
    "oauth_issuer": ((), "https://issuer.example", "OAuth"),
    "oauth_client_id": ((), "me", "OAuth"),
    "oauth_client_secret": ((), "s3cret", "OAuth"),
    "oauth_scope": ((), "openid", "OAuth"),
}
#: https://github.com/go-sql-driver/mysql#parameters, with the system variables that its section of that name mentions.
GO: dict[str, Honoured | Settled] = {
    "allowAllFiles": (("false", "0"), "true", "files"),
    "allowCleartextPasswords": (("false",), "1", "readable"),
    "allowFallbackToPlaintext": (("false",), "true", "tls=preferred"),
    "allowNativePasswords": (("true", "1"), "false", "account"),
    "allowOldPasswords": (("FALSE",), "true", "4.1"),
    "charset": (("utf8mb4", "utf8mb4,utf8"), "latin1", "utf8mb4"),
    "checkConnLiveness": (("true", "false"), "", ""),
    "collation": (("utf8mb4_general_ci",), "latin1_bin", "utf8mb4"),
    "clientFoundRows": (("true", "false"), "", ""),
    "columnsWithAlias": (("true",), "", ""),
    "compress": (("false",), "true", "compressed"),
    "interpolateParams": (("true",), "", ""),
    "loc": (("US/Pacific",), "", ""),
    "timeTruncate": (("1ms",), "", ""),
    "maxAllowedPacket": (("4194304",), "", ""),
    "multiStatements": (("true",), "", ""),
    "parseTime": (("true", "false"), "", ""),
    "readTimeout": ("30s", {"read_timeout": 30.0}),
    "rejectReadOnly": (("true", "false"), "", ""),
    "serverPubKey": ((), "key", "tls=true"),
    "timeout": ("5s", {"connect_timeout": 5.0}),
    "tls": ("true", {"tls": Tls.VERIFY_FULL}),
    "writeTimeout": ("1m30s", {"write_timeout": 90.0}),
    "connectionAttributes": (("program_name:ledger,env:test",), "", ""),
    "autocommit": (("1", "true"), "0", "transactions"),
    "time_zone": (("'UTC'", "'+00:00'"), "'Europe/Paris'", "UTC"),
    "transaction_isolation": (("'READ-COMMITTED'",), "'REPEATABLE-READ'", "READ COMMITTED"),
}

FORMS = {
    "libpq": ("postgres://u:p@/d", LIBPQ),
    "go": ("u:p@tcp(h)/d", GO),
    "mysql": ("mysql://u:p@h/d", GO),
}
ROWS = [(form, name) for form, (_, documented) in FORMS.items() for name in documented]


@pytest.mark.parametrize(("form", "name"), ROWS)
def test_a_documented_parameter_is_honoured_or_without_effect_or_refused_with_its_reason(form: str, name: str) -> None:
    base, documented = FORMS[form]

    def target(value: str) -> dict[str, Any]:
        written = quote(value, safe="+" if form == "libpq" else "")
        return asdict(parse(None, f"{base}?{name}={written}", None))

    plain, row = asdict(parse(None, base, None)), documented[name]
    if len(row) == 2:
        value, changes = row
        changed = {key: value for key, value in target(value).items() if value != plain[key]}
        assert changed == changes
        return
    accepted, refused, reason = row
    for value in accepted:
        assert target(value) == plain
    assert accepted or refused
    if refused:
        with pytest.raises(BadDsn) as caught:
            target(refused)
        message = str(caught.value)
        assert message.startswith(f"DATABASE_URL: {name} ")
        assert reason in message
        assert "unknown" not in message
        assert "s3cret" not in message


def test_a_parameter_wins_over_what_stands_before_the_question_mark() -> None:
    target = parse(None, "postgres://u:p@h:1/d?user=v&password=q&dbname=e&host=i&port=2", None)
    assert (target.user, target.password, target.database, target.host, target.port) == ("v", "q", "e", "i", 2)


def test_user_password_and_database_may_all_be_parameters() -> None:
    target = parse("postgres", "postgres:///?user=u&password=p%40&dbname=d&host=/run/pg", None)
    assert (target.user, target.password, target.database) == ("u", "p@", "d")
    assert target.unix_socket == "/run/pg/.s.PGSQL.5432"


@pytest.mark.parametrize("value", ["localhost", "192.0.2.300", "[::1]"])
def test_a_hostaddr_that_is_no_address_is_refused(value: str) -> None:
    with pytest.raises(BadDsn, match="hostaddr must be an IPv4 or IPv6 address"):
        parse(None, f"postgres://u:p@/d?hostaddr={value}", None)


def test_a_hostaddr_beside_a_host_is_refused() -> None:
    with pytest.raises(BadDsn, match="give host or hostaddr, not both"):
        parse(None, "postgres://u:p@h/d?hostaddr=::1", None)
    assert parse(None, "postgres://u:p@/d?hostaddr=::1", None).host == "::1"


@pytest.mark.parametrize("base", ["postgres://u:s3cret@h/d", "mysql://u:s3cret@h/d", "u:s3cret@tcp(h)/d"])
@pytest.mark.parametrize("value", ["s3cret%", "s3cret%2", "%zz", "s3cret%u0041", "100%25%"])
def test_a_wrong_percent_escape_in_a_value_is_an_error_that_names_the_parameter(base: str, value: str) -> None:
    with pytest.raises(BadDsn) as caught:
        parse(None, f"{base}?readTimeout=1s&password={value}", None)
    assert str(caught.value) == (
        "DATABASE_URL: the value of password has a % without two hexadecimal digits behind it; write %25 for a %"
    )


def test_an_unknown_parameter_of_mysql_is_told_how_system_variables_are_set() -> None:
    with pytest.raises(BadDsn, match=r"unknown parameter wait_timeout; .* set a system variable on the server or for"):
        parse(None, "u:p@tcp(h)/d?wait_timeout=5", None)
