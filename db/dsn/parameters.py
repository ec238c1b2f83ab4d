"""The parameters of a DSN: each is used, ignored because it changes nothing here, or refused by name.

An unknown parameter is not ignored: it may be the one that makes the connection safe.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from attrs import define, field

from db.dsn.target import Tls
from db.errors import BadDsn

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,40}")
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h))+|0")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}

#: libpq's `sslmode`.
_SSLMODES = {
    "disable": Tls.OFF,
    "allow": Tls.ALLOWED,
    "prefer": Tls.PREFERRED,
    "require": Tls.REQUIRED,
    "verify-ca": Tls.VERIFY_CA,
    "verify-full": Tls.VERIFY_FULL,
}
#: `tls` of Go's MySQL driver, whose booleans have several spellings.
_GO_TLS = {
    "false": Tls.OFF,
    "0": Tls.OFF,
    "true": Tls.VERIFY_FULL,
    "1": Tls.VERIFY_FULL,
    "skip-verify": Tls.REQUIRED,
    "preferred": Tls.PREFERRED,
    "custom": Tls.CUSTOM,
}
#: `ssl-mode` of MySQL's own clients.
_MYSQL_SSLMODES = {
    "disabled": Tls.OFF,
    "preferred": Tls.PREFERRED,
    "required": Tls.REQUIRED,
    "verify_ca": Tls.VERIFY_CA,
    "verify_identity": Tls.VERIFY_FULL,
}
_ON = ("true", "1", "on", "yes")
_OFF = ("false", "0", "off", "no")
_ANY = None

#: Parameters of libpq (PostgreSQL 17 and 18, "Parameter Key Words") that change nothing here, each with the accepted
#: values and the message for any other. With `()`, no value is accepted.
POSTGRES_SETTLED: Mapping[str, tuple[tuple[str, ...] | None, str]] = {
    "client_encoding": (("utf8", "utf-8", "unicode", "auto"), "the encoding is always UTF8"),
    "gssdelegation": (_OFF, "Kerberos is not supported"),
    "gssencmode": (("disable", "prefer"), "Kerberos is not supported"),
    "gsslib": (_ANY, ""),
    "keepalives": (_ANY, ""),
    "keepalives_count": (_ANY, ""),
    "keepalives_idle": (_ANY, ""),
    "keepalives_interval": (_ANY, ""),
    "krbsrvname": (_ANY, ""),
    "load_balance_hosts": (("disable",), "one host is connected to"),
    "max_protocol_version": (_ANY, ""),
    "min_protocol_version": (("3.0",), "version 3.0 of the protocol is spoken"),
    "oauth_client_id": ((), "OAuth is not supported"),
    "oauth_client_secret": ((), "OAuth is not supported"),
    "oauth_issuer": ((), "OAuth is not supported"),
    "oauth_scope": ((), "OAuth is not supported"),
    "options": ((), "set parameters of sessions with ALTER ROLE … SET"),
    "passfile": ((), "give the password in the URL, and the URL in a file with DATABASE_URL_FILE"),
    "replication": (_OFF, "a replication connection runs no SQL"),
    "require_auth": ((), "use channel_binding=require, or sslmode=verify-full"),
    "requirepeer": ((), "who owns the socket is not checked; let nobody else write into its folder"),
    "requiressl": (_OFF, "use sslmode=require"),
    "scram_client_key": ((), "give the password"),
    "scram_server_key": ((), "give the password"),
    "service": ((), "give host, user and database in the URL"),
    "servicefile": ((), "give host, user and database in the URL"),
    "ssl_max_protocol_version": (("tlsv1.3",), "the newest version of TLS that both sides speak is used"),
    "ssl_min_protocol_version": (("tlsv1", "tlsv1.1", "tlsv1.2"), "TLS 1.2 and 1.3 are accepted"),
    "sslcertmode": (
        ("allow",),
        "the client certificate is sent if the server asks for it; or leave sslcert out",
    ),
    "sslcompression": (_OFF, "TLS is never compressed"),
    "sslcrl": ((), "revocation lists are not read"),
    "sslcrldir": ((), "revocation lists are not read"),
    "sslkeylogfile": ((), "session keys are not written to a file"),
    "sslnegotiation": (("postgres",), "TLS begins after a request of PostgreSQL's protocol"),
    "sslpassword": ((), "store the key without a password"),
    "sslsni": (_ON, "the host's name is always sent"),
    "target_session_attrs": (("any", "read-write", "primary"), "the ledger needs a server that takes writes"),
    "tcp_user_timeout": (_ANY, ""),
}
#: Those of Go's MySQL driver (its README, "Parameters"), and the system variables that it names.
MYSQL_SETTLED: Mapping[str, tuple[tuple[str, ...] | None, str]] = {
    "allowAllFiles": (_OFF, "the server could read files of this machine"),
    "allowCleartextPasswords": (_OFF, "the password would be readable on the wire"),
    "allowFallbackToPlaintext": (_OFF, "use tls=preferred"),
    "allowNativePasswords": (_ON, "change the account's authentication plugin (ALTER USER … IDENTIFIED WITH …)"),
    "allowOldPasswords": (_OFF, "passwords of MySQL before 4.1 can be read by others"),
    "autocommit": (_ON, "transactions begin and end explicitly"),
    "charset": (("utf8mb4", "utf8mb4,utf8", "utf8"), "names may hold any character"),
    "checkConnLiveness": (_ANY, ""),
    "clientFoundRows": (_ANY, ""),
    "columnsWithAlias": (_ANY, ""),
    "compress": (_OFF, "the protocol is never compressed"),
    "connectionAttributes": (_ANY, ""),
    "interpolateParams": (_ANY, ""),
    "loc": (_ANY, ""),
    "maxAllowedPacket": (_ANY, ""),
    "multiStatements": (_ANY, ""),
    "parseTime": (_ANY, ""),
    "rejectReadOnly": (_ANY, ""),
    "serverPubKey": ((), "use tls=true, which proves who the server is"),
    "time_zone": (("'+00:00'", "'utc'"), "times are in UTC"),
    "timeTruncate": (_ANY, ""),
    "transaction_isolation": (("'read-committed'",), "transactions are READ COMMITTED"),
}


@define
class Parameters:
    """What a DSN's parameters say; `complete` refuses those that were not read.

    Every method raises BadDsn, which names the parameter but not its value.
    """

    _left: dict[str, str] = field(factory=dict, repr=False)

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]]) -> Parameters:
        """Refuse names that come twice: readers differ in which of the two they take."""
        left: dict[str, str] = {}
        for name, value in pairs:
            if name in left:
                raise BadDsn(f"DATABASE_URL: {shown(name)} is given more than once")
            left[name] = value
        return cls(left)

    def text(self, name: str) -> str | None:
        """A parameter; None if it is missing or empty."""
        return self._left.pop(name, "") or None

    def path(self, *names: str) -> Path | None:
        """A file, from the first of these parameters that is set."""
        found = [Path(value) for name in names if (value := self.text(name))]
        return found[0] if found else None

    def choice(self, name: str, choices: Iterable[str]) -> str | None:
        """One of these words, in upper or lower case."""
        value = self.text(name)
        if value is not None and value.lower() not in (allowed := tuple(choices)):
            raise BadDsn(f"DATABASE_URL: {name} must be one of {', '.join(allowed)}")
        return None if value is None else value.lower()

    def seconds(self, name: str) -> float | None:
        """A whole number of seconds, as libpq takes it; none and 0 mean that it is not set."""
        value = self.text(name)
        if value is not None and not (value.isascii() and value.isdecimal() and len(value) <= 6):
            raise BadDsn(f"DATABASE_URL: {name} must be a whole number of seconds")
        return float(value or 0) or None

    def duration(self, name: str) -> float | None:
        """A duration as Go writes it, in seconds; none and 0 mean that it is not set."""
        value = self.text(name)
        if value is not None and not _DURATION.fullmatch(value):
            raise BadDsn(f"DATABASE_URL: {name} must be a duration such as 5s, 500ms or 1m30s")
        return sum(float(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(value or "")) or None

    def drop(self, *names: str) -> None:
        """Ignore these parameters."""
        for name in names:
            self._left.pop(name, None)

    def settle(self, settled: Mapping[str, tuple[tuple[str, ...] | None, str]]) -> None:
        """Ignore parameters whose value is the behaviour anyway; refuse other values with the reason."""
        for name, (accepted, why) in settled.items():
            value = self._left.pop(name, "")
            if value and accepted is not None and value.lower() not in accepted:
                allowed = accepted[:1] if accepted in (_ON, _OFF) else accepted
                verdict = f"must be {' or '.join(allowed)}" if allowed else "is not supported"
                raise BadDsn(f"DATABASE_URL: {name} {verdict}: {why}")

    def complete(self, known: Iterable[str], advice: str = "") -> None:
        """Refuse unknown parameters."""
        if self._left:
            names = ", ".join(sorted(map(shown, self._left)))
            raise BadDsn(f"DATABASE_URL: unknown parameter {names}; known are {', '.join(known)}{advice}")


def postgres_tls(parameters: Parameters) -> tuple[Tls, Path | None]:
    """`sslmode` and `sslrootcert`, by libpq's rules; the default is `prefer`."""
    # libpq takes the spelling of JDBC too.
    usual = "require" if parameters.choice("ssl", ("true",)) else "prefer"
    mode = _SSLMODES[parameters.choice("sslmode", _SSLMODES) or usual]
    authority = parameters.path("sslrootcert")
    if authority == Path("system"):
        return Tls.VERIFY_FULL, None
    if authority is not None and mode is Tls.REQUIRED:
        mode = Tls.VERIFY_CA
    return mode, authority


def mysql_tls(parameters: Parameters) -> tuple[Tls, Path | None]:
    """`tls` of Go's driver, or `ssl-mode` of MySQL's clients; the default is off."""
    authority = parameters.path("ssl-ca", "ssl_ca")
    go = parameters.choice("tls", _GO_TLS)
    if go is not None:
        return _GO_TLS[go], authority
    for name in ("ssl-mode", "ssl_mode", "sslmode"):
        mode = parameters.choice(name, _MYSQL_SSLMODES)
        if mode is not None:
            return _MYSQL_SSLMODES[mode], authority
    return (Tls.OFF if authority is None else Tls.VERIFY_FULL), authority


def check_collation(parameters: Parameters) -> None:
    collation = parameters.text("collation")
    if collation is not None and not collation.lower().startswith("utf8mb4_"):
        raise BadDsn("DATABASE_URL: collation must begin with utf8mb4_")


def shown(name: str) -> str:
    """The name of a parameter, unless it may be something else."""
    return name if _NAME.fullmatch(name) else "(not a name)"
