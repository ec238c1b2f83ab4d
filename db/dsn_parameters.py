"""The parameters of a DSN: each is understood, known to be without meaning here, or refused by name.

A parameter that is passed over in silence might be the one that was to make the connection safe.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from attrs import define, field

from db.errors import BadDsn
from db.target import Tls

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
#: Parameters of Go's MySQL driver that are about Go, or about what is settled here anyway.
_GO_ONLY = (
    "allowNativePasswords",
    "checkConnLiveness",
    "clientFoundRows",
    "columnsWithAlias",
    "interpolateParams",
    "loc",
    "maxAllowedPacket",
    "multiStatements",
    "parseTime",
)
_CHARSETS = ("utf8mb4", "utf8mb4,utf8", "utf8")


@define
class Parameters:
    """What a DSN's parameters say; `complete` refuses those that nobody asked for.

    Every method raises BadDsn, which names the parameter but not its value.
    """

    _left: dict[str, str] = field(factory=dict, repr=False)

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]]) -> Parameters:
        """Refuse names that come twice: readers differ in which of the two they take."""
        left: dict[str, str] = {}
        for name, value in pairs:
            if name in left:
                raise BadDsn(f"DATABASE_URL: {_shown(name)} is given more than once")
            left[name] = value
        return cls(left)

    def text(self, name: str) -> str | None:
        """A parameter as it is; None where it is missing or empty."""
        return self._left.pop(name, "") or None

    def path(self, *names: str) -> Path | None:
        """A file, under the first of several names that is there."""
        found = [Path(value) for name in names if (value := self.text(name))]
        return found[0] if found else None

    def choice(self, name: str, choices: Iterable[str]) -> str | None:
        """One of several words, in whatever case."""
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
        """Pass over parameters that mean nothing here."""
        for name in names:
            self._left.pop(name, None)

    def refuse(self, name: str, why: str) -> None:
        """Refuse a parameter with a reason, if it is there and not switched off."""
        if self._left.pop(name, "false").lower() not in ("false", "0", ""):
            raise BadDsn(f"DATABASE_URL: {name} {why}")

    def complete(self, known: Iterable[str]) -> None:
        """Refuse what is left."""
        if self._left:
            names = ", ".join(sorted(map(_shown, self._left)))
            raise BadDsn(f"DATABASE_URL: unknown parameter {names}; known are {', '.join(known)}")


def postgres_tls(parameters: Parameters) -> tuple[Tls, Path | None]:
    """`sslmode` and `sslrootcert`, by libpq's rules: `prefer` where nothing is said."""
    mode = _SSLMODES[parameters.choice("sslmode", _SSLMODES) or "prefer"]
    authority = parameters.path("sslrootcert")
    if authority == Path("system"):
        return Tls.VERIFY_FULL, None
    if authority is not None and mode is Tls.REQUIRED:
        mode = Tls.VERIFY_CA
    return mode, authority


def mysql_tls(parameters: Parameters) -> tuple[Tls, Path | None]:
    """`tls` of Go's driver, or `ssl-mode` of MySQL's clients; off where nothing is said."""
    authority = parameters.path("ssl-ca", "ssl_ca")
    go = parameters.choice("tls", _GO_TLS)
    if go is not None:
        return _GO_TLS[go], authority
    for name in ("ssl-mode", "ssl_mode", "sslmode"):
        mode = parameters.choice(name, _MYSQL_SSLMODES)
        if mode is not None:
            return _MYSQL_SSLMODES[mode], authority
    return (Tls.OFF if authority is None else Tls.VERIFY_FULL), authority


def drop_go_only(parameters: Parameters) -> None:
    """Pass over what only Go needs, and refuse what would make the connection another one than it seems."""
    charset = parameters.text("charset")
    if charset is not None and charset.lower() not in _CHARSETS:
        raise BadDsn("DATABASE_URL: charset must be utf8mb4")
    collation = parameters.text("collation")
    if collation is not None and not collation.lower().startswith("utf8mb4_"):
        raise BadDsn("DATABASE_URL: collation must be one of utf8mb4's")
    parameters.refuse("allowCleartextPasswords", "is not supported: the password would be readable on the wire")
    parameters.refuse("allowAllFiles", "is not supported: the server could read files of this machine")
    parameters.drop("allowCleartextPasswords", "allowAllFiles", *_GO_ONLY)


def _shown(name: str) -> str:
    return name if _NAME.fullmatch(name) else "(not a name)"
