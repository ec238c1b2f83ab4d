"""Rules that concern several settings."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Final

from db import dsn
from db.errors import BadDsn
from llm_proxy.config.sources import Found
from llm_proxy.secrets import private_file
from llm_proxy.secrets.management_token import MIN_LENGTH

if TYPE_CHECKING:
    from llm_proxy.config.declaration import Settings

#: First path segments that the server keeps for itself; `reserved` adds the one of METRICS_PATH.
_RESERVED: Final = frozenset({"v1", "manage", "admin", "health", "live", "ready", "metrics", "openapi.json"})
_FREE_FOR_METRICS: Final = frozenset({"admin", "metrics"})


def reserved(settings: Settings) -> frozenset[str]:
    return _RESERVED | {metrics_segment(settings)}


def metrics_segment(settings: Settings) -> str:
    return settings.metrics_path.split("/")[1]


def check(settings: Settings, found: Found, *, serving: bool) -> Iterator[str]:
    """Find settings that contradict each other; `serving` adds what a server needs."""
    yield from _database(settings, found)
    if (segment := metrics_segment(settings)) in _RESERVED - _FREE_FOR_METRICS:
        yield f"METRICS_PATH={settings.metrics_path!r}: the server itself uses /{segment}; choose another path"
    if settings.enable_tls:
        for name in ("TLS_CERT_FILE", "TLS_KEY_FILE"):
            if name not in found.given:
                yield f"ENABLE_TLS=true: {name} is not set; set it to the PEM file, or set ENABLE_TLS=false"
    if serving:
        yield from _secrets(settings, found.given)


def _database(settings: Settings, found: Found) -> Iterator[str]:
    given = found.given
    try:
        target = dsn.parse(found.values.get("DB_DRIVER"), settings.database_url, str(settings.database_path))
    except BadDsn as error:
        yield str(error)
    else:
        # The URL says which driver; but some platforms set DATABASE_URL unasked, and it must not replace the default.
        if target.driver != settings.db_driver and "DB_DRIVER" not in given:
            reason = f"it is set, but DB_DRIVER is not, so SQLite would be used; set DB_DRIVER={target.driver} too"
            yield f"DATABASE_URL (value hidden): {reason}"
        # A certificate's file may contain its key as well.
        if (key := target.tls_key or target.tls_cert) is not None:
            try:
                private_file.check(key)
            except private_file.ExposedFile as error:
                yield f"DATABASE_URL (value hidden): its key file {error}"
            except OSError:
                pass  # connecting reports it
    if settings.db_driver == "sqlite" and settings.workers > 1 and "DATABASE_URL" not in given:
        reason = "SQLite serves one process only, because its file has one writer"
        yield f"WORKERS={settings.workers}: {reason}; set WORKERS=1, or use DB_DRIVER=postgres or mysql"
    pair = {"DATABASE_TLS_CERT", "DATABASE_TLS_KEY"}
    if len(pair & given) == 1:
        (present,), (absent,) = pair & given, pair - given
        yield f"{present}: it has no effect without {absent}; set both or neither"


def _secrets(settings: Settings, given: Collection[str]) -> Iterator[str]:
    token, allowed = settings.management_token, settings.allow_weak_management_token
    if token is not None and len(token) < MIN_LENGTH and not allowed:
        reason = (
            f"it has fewer than {MIN_LENGTH} characters and can be guessed; make one with: openssl rand "
            "-hex 32; or set ALLOW_WEAK_MANAGEMENT_TOKEN=true, which works in this release only"
        )
        yield f"MANAGEMENT_TOKEN (value hidden): {reason}"
    if settings.db_driver != "sqlite":
        condition = f"DB_DRIVER={settings.db_driver}"
    elif str(settings.database_path) == ":memory:":
        condition = "DATABASE_PATH=:memory:"
    else:
        return  # the server makes both, in files beside the database
    missing = f"it is not set, and is required with {condition}"
    if "MANAGEMENT_TOKEN" not in given:
        yield f"MANAGEMENT_TOKEN: {missing}; make one with: openssl rand -hex 32"
    if "ENCRYPTION_KEY" not in given and not settings.allow_plaintext_api_keys:
        fix = "or set ALLOW_PLAINTEXT_API_KEYS=true to store API keys unencrypted"
        yield f"ENCRYPTION_KEY: {missing}; make one with: openssl rand -base64 32; {fix}"
