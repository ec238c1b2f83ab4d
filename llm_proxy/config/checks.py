"""Rules that no single setting can break: what goes together, and what does not."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Final

from db import dsn
from db.errors import BadDsn
from llm_proxy.config.problems import Problem
from llm_proxy.secrets import private_file

if TYPE_CHECKING:
    from llm_proxy.config.declaration import Settings
    from llm_proxy.config.fields import Found

#: Characters. Nothing but its length keeps the management token from being guessed.
SHORTEST_MANAGEMENT_TOKEN: Final = 20

#: Paths that the server answers itself, so that the metrics may not be there.
_RESERVED = ("/v1", "/manage", "/health", "/live", "/ready", "/openapi.json")


def across(settings: Settings, found: Found, *, serving: bool) -> Iterator[Problem]:
    """Say what does not go together among the settings that were `found`; `serving` adds what a server needs."""
    yield from _database(settings, found)
    yield from _paths(settings)
    if settings.enable_tls:
        for name in ("TLS_CERT_FILE", "TLS_KEY_FILE"):
            if name not in found.given:
                yield Problem("ENABLE_TLS=true", f"{name} is not set; name the PEM file, or set ENABLE_TLS=false")
    if serving:
        yield from _secrets(settings, found.given)


def _database(settings: Settings, found: Found) -> Iterator[Problem]:
    given = found.given
    try:
        target = dsn.parse(found.values.get("DB_DRIVER"), settings.database_url, str(settings.database_path))
    except BadDsn as error:
        yield Problem("", str(error))
    else:
        # The address alone would tell the driver; but a default must not quietly give way to a variable that some
        # platform sets unasked.
        if target.driver != settings.db_driver and "DB_DRIVER" not in given:
            reason = f"it is set, but DB_DRIVER is not, so that SQLite would be used; set DB_DRIVER={target.driver} too"
            yield Problem("DATABASE_URL (value hidden)", reason)
        # A certificate's file may hold its key as well.
        if (key := target.tls_key or target.tls_cert) is not None:
            try:
                private_file.check(key)
            except private_file.ExposedFile as error:
                yield Problem("DATABASE_URL (value hidden)", f"its key file {error}")
            except OSError:
                pass  # connecting says what is wrong with it
    if settings.db_driver == "sqlite" and settings.workers > 1 and "DATABASE_URL" not in given:
        reason = (
            "SQLite serves one process only, because its file has one writer; "
            "set WORKERS=1, or use DB_DRIVER=postgres or mysql"
        )
        yield Problem(f"WORKERS={settings.workers}", reason)
    if ("DATABASE_TLS_CERT" in given) != ("DATABASE_TLS_KEY" in given):
        present, absent = "DATABASE_TLS_CERT", "DATABASE_TLS_KEY"
        if absent in given:
            present, absent = absent, present
        yield Problem(present, f"it is of no use without {absent}; set both or neither")


def _paths(settings: Settings) -> Iterator[Problem]:
    path = settings.metrics_path
    for reserved in _RESERVED:
        if path == reserved or path.startswith(f"{reserved}/"):
            yield Problem(f"METRICS_PATH={path!r}", f"{reserved} is taken by the server itself; choose another path")


def _secrets(settings: Settings, given: Collection[str]) -> Iterator[Problem]:
    token, allowed = settings.management_token, settings.allow_weak_management_token
    if token is not None and len(token) < SHORTEST_MANAGEMENT_TOKEN and not allowed:
        reason = (
            f"it has fewer than {SHORTEST_MANAGEMENT_TOKEN} characters and can be guessed; make one with: openssl rand "
            "-hex 32; or set ALLOW_WEAK_MANAGEMENT_TOKEN=true, which works in this release only"
        )
        yield Problem("MANAGEMENT_TOKEN (value hidden)", reason)
    if settings.db_driver != "sqlite":
        condition = f"DB_DRIVER={settings.db_driver}"
    elif str(settings.database_path) == ":memory:":
        condition = "DATABASE_PATH=:memory:"
    else:
        return  # both are kept in files beside the database
    missing = f"it is not set, and is required with {condition}"
    if "MANAGEMENT_TOKEN" not in given:
        yield Problem("MANAGEMENT_TOKEN", f"{missing}; make one with: openssl rand -hex 32")
    if "ENCRYPTION_KEY" not in given and not settings.allow_plaintext_api_keys:
        remedy = (
            "make one with: openssl rand -base64 32; or set ALLOW_PLAINTEXT_API_KEYS=true to store API keys unencrypted"
        )
        yield Problem("ENCRYPTION_KEY", f"{missing}; {remedy}")
