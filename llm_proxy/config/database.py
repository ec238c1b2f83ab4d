"""The database as the settings describe it, and the keys of the API keys in it."""

from __future__ import annotations

from pathlib import Path

from db import dsn
from db.options import Options
from llm_proxy.config.declaration import Settings
from llm_proxy.secrets.encryption import KeyRing, load_or_create_key_file


def database_target(settings: Settings) -> dsn.Target:
    return dsn.parse(settings.db_driver, settings.database_url, str(settings.database_path))


def database_options(settings: Settings) -> Options:
    return Options(
        pool_size=settings.database_pool_size,
        max_idle=settings.database_max_idle_conns,
        max_lifetime=settings.database_conn_max_lifetime,
        connect_timeout=settings.database_connect_timeout,
        statement_timeout=settings.database_statement_timeout,
        migration_lock_timeout=settings.migration_lock_timeout,
        tls_ca=settings.database_tls_ca,
        tls_cert=settings.database_tls_cert,
        tls_key=settings.database_tls_key,
        sqlite_synchronous=settings.sqlite_synchronous,
    )


def key_file(settings: Settings) -> Path | None:
    """The file beside the SQLite file that holds the key if no setting gives it; None if it is not used."""
    if settings.encryption_key is not None or settings.allow_plaintext_api_keys:
        return None
    return settings.database_path.with_name(settings.database_path.name + ".key")


def open_keyring(settings: Settings) -> KeyRing:
    """The keys of `ENCRYPTION_KEY`, or of the key file, which is created if needed. Raises `KeyRingError`."""
    if settings.encryption_key is not None:
        return KeyRing.from_setting(settings.encryption_key, allow_plaintext=settings.allow_plaintext_api_keys)
    path = key_file(settings)
    return KeyRing(allow_plaintext=True) if path is None else load_or_create_key_file(path)
