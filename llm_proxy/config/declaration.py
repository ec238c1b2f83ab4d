"""Every setting of the program, declared once: name, kind, default, help, and whether it is a secret.

A field's name in capitals is its environment variable. The reference page is generated from here.
"""

# ruff: noqa: RUF009 -- the calls in the class body return `attrs.field(...)`, which is what the rule asks for
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import attrs

from llm_proxy.config import checks, dotenv, kinds
from llm_proxy.config.kinds import ListenAddress, Network
from llm_proxy.config.sources import FLAGS, Section, SettingsError, Source, declared, find, find_misspelt
from llm_proxy.secrets import private_file
from llm_proxy.secrets.management_token import MIN_LENGTH

Driver = Literal["sqlite", "postgres", "mysql"]
Synchronous = Literal["FULL", "NORMAL"]
OutagePolicy = Literal["closed", "grace"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["json", "text"]

DATABASE = Section("Database")
SERVER = Section("Server")
SECRETS = Section("Secrets")
PROVIDERS = Section("Providers")


@attrs.frozen(kw_only=True)
class Settings:
    """The configuration of one process. Durations are in seconds, sizes in bytes; `repr` hides secrets."""

    db_driver: Driver = DATABASE.setting(kinds.choice(Driver), "sqlite", "Database; `mysql` is for MariaDB too.")
    database_path: Path = DATABASE.setting(
        kinds.PATH, "./data/llm-proxy.db", "SQLite file; its folder is created if it does not exist.", flag="--db"
    )
    database_url: str | None = DATABASE.optional(
        kinds.TEXT,
        "Address and login of the PostgreSQL or MySQL server; required with those drivers. "
        "`postgres://user:password@host:5432/name?sslmode=require`, or "
        "`user:password@tcp(host:3306)/name?parseTime=true&tls=true`, or `mysql://user:password@host:3306/name?tls=true`.",
        secret=True,
    )
    database_pool_size: int = DATABASE.setting(
        kinds.integer(1, 1000),
        "10",
        "Maximum number of database connections per worker; SQLite has one more, for writes.",
    )
    database_max_idle_conns: int = DATABASE.setting(
        kinds.integer(0, 1000), "5", "Maximum number of idle connections per worker to a database server."
    )
    database_conn_max_lifetime: float = DATABASE.setting(
        kinds.duration(), "1h", "Age at which a connection to a database server is replaced, idle or not."
    )
    database_connect_timeout: float = DATABASE.setting(
        kinds.duration(), "5s", "Timeout for a new connection to a database server."
    )
    database_statement_timeout: float = DATABASE.setting(
        kinds.duration(), "10s", "Timeout for one statement on a database server."
    )
    migration_lock_timeout: float = DATABASE.setting(
        kinds.duration(),
        "60s",
        "Maximum wait for another process that migrates the same database; then the server or `llm-proxy migrate` "
        "gives up. Not used on SQLite, where only one process can use the file.",
    )
    database_tls_ca: Path | None = DATABASE.optional(
        kinds.EXISTING_FILE,
        "PEM file of the certificate authorities for the database server, for `sslmode=verify-ca`, "
        "`sslmode=verify-full` and `tls=custom`.",
    )
    database_tls_cert: Path | None = DATABASE.optional(
        kinds.EXISTING_FILE, "PEM file of the client certificate for the database server."
    )
    database_tls_key: Path | None = DATABASE.optional(kinds.KEY_FILE, "PEM file of the key of `DATABASE_TLS_CERT`.")
    sqlite_synchronous: Synchronous = DATABASE.setting(
        kinds.choice(Synchronous),
        "FULL",
        "`FULL`: every commit survives a power failure. `NORMAL`: a power failure may lose the last commits; a crash "
        "of the process loses none.",
    )
    db_outage_policy: OutagePolicy = DATABASE.setting(
        kinds.choice(OutagePolicy),
        "closed",
        "Behaviour when the database is not available. `closed`: requests get 503. `grace`: recently used tokens keep "
        "working for a limited time.",
    )
    db_outage_grace_window: float = DATABASE.setting(
        kinds.duration(),
        "5m",
        "With `grace`: time for which a worker accepts a token after the database last admitted a request of it.",
    )
    db_outage_grace_requests: int = DATABASE.setting(
        kinds.integer(1, 1_000_000),
        "100",
        "With `grace`: maximum number of requests per token, worker and outage. It is lower if the token's own limit "
        "had less left.",
    )
    db_outage_grace_duration: float = DATABASE.setting(
        kinds.duration(), "5m", "With `grace`: maximum duration of the grace period, from its first request."
    )
    db_outage_spool: Path | None = DATABASE.optional(
        kinds.PATH,
        "Folder for the spool files of `grace`: one per worker, with the requests that are not yet in the database. "
        "Default: the folder of `DATABASE_PATH`.",
    )
    ledger_heartbeat: float = DATABASE.setting(
        kinds.duration(),
        "5s",
        "Interval between two heartbeats of a worker. After four intervals without one, the worker counts as dead, and "
        "its open requests are settled as `unknown`.",
    )
    ledger_retention: float = DATABASE.setting(
        kinds.duration(zero=True),
        "90d",
        "Age at which the ledger rows of requests are deleted; hourly sums are kept. `0` keeps all rows.",
    )
    record_refusals: bool = DATABASE.setting(
        kinds.BOOLEAN,
        "false",
        "Record refused requests in the database, at most 60 a minute of each error code and worker. They are deleted "
        "after `LEDGER_RETENTION`.",
    )
    audit_retention: float = DATABASE.setting(
        kinds.duration(zero=True), "365d", "Age at which entries of the audit log are deleted. `0` keeps all entries."
    )

    listen_addr: ListenAddress = SERVER.setting(
        kinds.LISTEN_ADDRESS, ":8080", "Listen address; without a host, on every interface.", flag="--addr"
    )
    llm_proxy_url: str | None = SERVER.optional(
        kinds.BASE_URL,
        "Base URL of the server for `llm-proxy manage`. Default: this machine, port of `LISTEN_ADDR`, with HTTPS if "
        "`ENABLE_TLS` is set.",
        flag="--manage-api-base-url",
    )
    public_url: str | None = SERVER.optional(
        kinds.PUBLIC_URL,
        "Scheme and host at which clients reach this proxy, e.g. `https://llm.example.com`. URLs in answers that SDKs "
        "follow are replaced by it; without it, the endpoints with such answers are refused.",
    )
    workers: int = SERVER.setting(
        kinds.integer(1, 256),
        "1",
        "Number of worker processes. More than one needs PostgreSQL or MySQL.",
        flag="--workers",
    )
    request_timeout: float = SERVER.setting(
        kinds.duration(),
        "10m",
        "Maximum silence of a provider, before its response and between two reads of it. The provider file can set "
        "other values.",
    )
    max_request_size: int = SERVER.setting(
        kinds.SIZE,
        "100MB",
        "Maximum body size of a request to a provider; a larger one gets 413. kB, MB, GB are powers of 1000; KiB, MiB, "
        "GiB are powers of 1024.",
    )
    client_write_timeout: float = SERVER.setting(
        kinds.duration(),
        "30s",
        "Maximum time in which a client reads nothing of its response. Then its connection is reset, the request to "
        "the provider is cancelled, and it is settled as `client_closed`. A slow reader is not affected.",
    )
    keep_alive_timeout: float = SERVER.setting(
        kinds.duration(),
        "75s",
        "Time for which an idle client connection is kept open. Set it above the idle timeout of your load balancer.",
    )
    shutdown_delay: float = SERVER.setting(
        kinds.duration(zero=True),
        "0s",
        "Delay between SIGTERM and draining; `/ready` is already 503. Set it above your load balancer's check "
        "interval.",
    )
    shutdown_grace: float = SERVER.setting(
        kinds.duration(zero=True),
        "30s",
        "Maximum time for running requests to finish, after SIGTERM and `SHUTDOWN_DELAY`.",
    )
    max_concurrent_requests: int = SERVER.setting(
        kinds.integer(1, 1_000_000),
        "1000",
        "Maximum number of concurrent requests to providers per worker; further requests get 503.",
    )
    log_level: LogLevel = SERVER.setting(kinds.choice(LogLevel), "info", "Lowest level that is logged.")
    log_format: LogFormat = SERVER.setting(
        kinds.choice(LogFormat), "json", "One JSON object per line, or text for people."
    )
    log_file: Path | None = SERVER.optional(
        kinds.PATH, "File to append the log to; also `/dev/stdout`, or a FIFO that a process reads. Default: stderr."
    )
    metrics_path: str = SERVER.setting(kinds.ROUTE, "/metrics", "Path of the Prometheus metrics.")
    enable_metrics: bool = SERVER.setting(kinds.BOOLEAN, "true", "Serve the metrics.")
    cors_allowed_origins: tuple[str, ...] = SERVER.setting(
        kinds.ORIGINS,
        "",
        "Web origins whose pages may call the proxy, comma-separated, e.g. `https://app.example.com`; `*` for all. "
        "A page needs a token like every other client.",
    )
    enable_tls: bool = SERVER.setting(kinds.BOOLEAN, "false", "Serve HTTPS; needs `TLS_CERT_FILE` and `TLS_KEY_FILE`.")
    tls_cert_file: Path | None = SERVER.optional(kinds.EXISTING_FILE, "PEM file of the server's certificate chain.")
    tls_key_file: Path | None = SERVER.optional(kinds.KEY_FILE, "PEM file of the key of `TLS_CERT_FILE`.")
    trusted_proxies: tuple[Network, ...] = SERVER.setting(
        kinds.NETWORKS,
        "",
        "Networks of trusted reverse proxies, comma-separated. The log and the audit log show the client address "
        "from their `X-Forwarded-For`.",
    )

    management_token: str | None = SECRETS.optional(
        kinds.header_text(4096),
        f"Bearer token for the management API, at least {MIN_LENGTH} characters. Required with "
        "PostgreSQL and MySQL. On SQLite the server makes one if it is not set, in a file beside the database.",
        secret=True,
        flag="--management-token",
    )
    allow_weak_management_token: bool = SECRETS.setting(
        kinds.BOOLEAN,
        "false",
        f"Allow a management token of fewer than {MIN_LENGTH} characters, which can be guessed. "
        "The next release does not have this setting.",
    )
    encryption_key: str | None = SECRETS.optional(
        kinds.KEYS,
        "Key that encrypts the providers' API keys in the database: base64 of 32 bytes. In a comma-separated list, the "
        "first encrypts and all decrypt. Required with PostgreSQL and MySQL. On SQLite the server makes one if it is "
        "not set, in a file beside the database.",
        secret=True,
    )
    allow_plaintext_api_keys: bool = SECRETS.setting(
        kinds.BOOLEAN, "false", "Store the providers' API keys unencrypted if `ENCRYPTION_KEY` is not set."
    )

    api_config_path: Path | None = PROVIDERS.optional(
        kinds.EXISTING_FILE, "YAML file of the providers. Default: the built-in providers."
    )
    default_api_provider: str | None = PROVIDERS.optional(
        kinds.TEXT,
        "Provider of projects that are created without one. Default: `default_api` of the file, or `openai`.",
    )
    openai_api_url: str | None = PROVIDERS.optional(
        kinds.BASE_URL, "Base URL of the provider `openai`, without `/v1`; overrides the provider file."
    )
    prices_path: Path | None = PROVIDERS.optional(
        kinds.EXISTING_FILE,
        "YAML file of prices that come before the built-in ones. Default: only the built-in prices.",
    )

    late_usage_poll: float | None = PROVIDERS.optional(
        kinds.duration(),
        "Interval at which providers are asked for the usage of background responses, runs and batches that no client "
        "has asked for, with the project's own key, until 25 hours after they were made. Default: they are not asked.",
    )

    label_headers: tuple[tuple[str, str], ...] = PROVIDERS.setting(
        kinds.LABEL_HEADERS,
        "",
        "Headers of requests that are labels, comma-separated, e.g. `X-User=user`. They are not sent to the provider.",
    )
    label_keys: tuple[str, ...] = PROVIDERS.setting(
        kinds.LABEL_KEYS,
        "",
        "Keys of labels, comma-separated, that the hourly sums distinguish: usage reports can group by them over any "
        "time.",
    )

    @classmethod
    def load(
        cls,
        environ: Mapping[str, str],
        flags: Mapping[str, str] | None = None,
        dotenv_path: Path | None = None,
        *,
        serving: bool = False,
    ) -> Settings:
        """Load all settings; `flags` has environment variables as keys. Raises `SettingsError` with all mistakes.

        `serving` also requires what only a server needs: a management token and an encryption key.
        """
        sources, mistakes = _sources(environ, flags, dotenv_path)
        found = find(declared(cls), sources)
        settings = cls(**{name.lower(): value for name, value in found.values.items()})
        mistakes += [*found.mistakes, *checks.check(settings, found, serving=serving)]
        if mistakes:
            raise SettingsError(mistakes)
        return settings

    @classmethod
    def warnings(
        cls, environ: Mapping[str, str], flags: Mapping[str, str] | None = None, dotenv_path: Path | None = None
    ) -> list[str]:
        return find_misspelt(declared(cls), _sources(environ, flags, dotenv_path)[0])


def read_one(name: str, environ: Mapping[str, str], flags: Mapping[str, str] | None, dotenv_path: Path | None) -> Any:
    """Load one setting, for commands that need no others. Raises `SettingsError`."""
    sources, mistakes = _sources(environ, flags, dotenv_path)
    found = find({name: declared(Settings)[name]}, sources)
    if mistakes or found.mistakes:
        raise SettingsError([*mistakes, *found.mistakes])
    return found.values.get(name, getattr(Settings(), name.lower()))


def _sources(
    environ: Mapping[str, str], flags: Mapping[str, str] | None, dotenv_path: Path | None
) -> tuple[list[Source], list[str]]:
    sources = [Source(FLAGS, flags or {}), Source("", environ)]
    if dotenv_path is None:
        return sources, []
    values, mistakes = dotenv.read(dotenv_path)
    if any(values.get(name) for name, declaration in declared(Settings).items() if declaration.secret):
        try:
            private_file.check(dotenv_path)
        except private_file.ExposedFile as error:
            mistakes.append(f"{dotenv_path}: the file contains a secret and {error}")
    return [*sources, Source(f" in {dotenv_path}", values)], mistakes
