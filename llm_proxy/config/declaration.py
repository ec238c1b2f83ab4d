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
from llm_proxy.config.fields import FLAGS, Layer, Section, declared, find, near_misses
from llm_proxy.config.kinds import ListenAddress, Network
from llm_proxy.config.problems import Problem, SettingsError
from llm_proxy.secrets import private_file

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
    """The configuration of one process. Durations are seconds, sizes bytes; secrets are left out of `repr`."""

    db_driver: Driver = DATABASE.setting(kinds.choice(Driver), "sqlite", "Which database keeps the books.")
    database_path: Path = DATABASE.setting(
        kinds.PATH, "./data/llm-proxy.db", "File of the SQLite database; its folder is made when missing.", flag="--db"
    )
    database_url: str | None = DATABASE.optional(
        kinds.TEXT,
        "Where the PostgreSQL or MySQL server is, and how to log in; required with those drivers. "
        "`postgres://user:password@host:5432/name?sslmode=require`, or "
        "`user:password@tcp(host:3306)/name?parseTime=true&tls=true`, or `mysql://user:password@host:3306/name?tls=true`.",
        secret=True,
    )
    database_pool_size: int = DATABASE.setting(
        kinds.integer(1, 1000),
        "10",
        "Most connections that one worker opens to the database; on SQLite there is one more, which writes.",
    )
    database_max_idle_conns: int = DATABASE.setting(
        kinds.integer(0, 1000),
        "5",
        "Connections to a database server that stay open, in each worker, while there is nothing to do.",
    )
    database_conn_max_lifetime: float = DATABASE.setting(
        kinds.duration(), "1h", "Age at which a connection to a database server is replaced, idle or not."
    )
    database_connect_timeout: float = DATABASE.setting(
        kinds.duration(), "5s", "Longest wait for a new connection to a database server."
    )
    database_statement_timeout: float = DATABASE.setting(
        kinds.duration(), "10s", "Longest that one statement may run on a database server."
    )
    migration_lock_timeout: float = DATABASE.setting(
        kinds.duration(),
        "60s",
        "Longest wait for another process that migrates the same database; then the server or `llm-proxy migrate` "
        "gives up. On SQLite nobody waits: one process has the file.",
    )
    database_tls_ca: Path | None = DATABASE.optional(
        kinds.EXISTING_FILE,
        "PEM file of the authorities that sign the database server's certificate, for `sslmode=verify-ca`, "
        "`sslmode=verify-full` and `tls=custom`.",
    )
    database_tls_cert: Path | None = DATABASE.optional(
        kinds.EXISTING_FILE, "PEM file of the client certificate that the database server asks for."
    )
    database_tls_key: Path | None = DATABASE.optional(kinds.KEY_FILE, "PEM file of the key to `DATABASE_TLS_CERT`.")
    sqlite_synchronous: Synchronous = DATABASE.setting(
        kinds.choice(Synchronous),
        "FULL",
        "`FULL` makes every commit outlast a power cut; `NORMAL` may lose the last ones then, never in a crash.",
    )
    db_outage_policy: OutagePolicy = DATABASE.setting(
        kinds.choice(OutagePolicy),
        "closed",
        "What happens to requests while the database is away: `closed` answers them with 503, `grace` lets tokens that "
        "were used lately go on for a while.",
    )
    db_outage_grace_window: float = DATABASE.setting(
        kinds.duration(),
        "5m",
        "With `grace`: how long a token goes on after the database has last opened it to the same worker.",
    )
    db_outage_grace_requests: int = DATABASE.setting(
        kinds.integer(1, 1_000_000),
        "100",
        "With `grace`: most requests of one token that one worker admits in an outage; never more than the limit of "
        "the token left when the worker last saw it.",
    )
    db_outage_grace_duration: float = DATABASE.setting(
        kinds.duration(),
        "5m",
        "With `grace`: how long it lasts for all tokens together, from its first request on.",
    )
    db_outage_spool: Path | None = DATABASE.optional(
        kinds.PATH,
        "Folder where each worker keeps a file of the requests that it admitted by `grace`, until they are in the "
        "database. Default: the folder of `DATABASE_PATH`.",
    )
    ledger_heartbeat: float = DATABASE.setting(
        kinds.duration(),
        "5s",
        "How often a worker says that it is alive. One that has been silent for four times as long counts as dead, and "
        "its open requests are settled as `unknown`.",
    )
    ledger_retention: float = DATABASE.setting(
        kinds.duration(zero=True),
        "90d",
        "How long the ledger keeps the row of each request; the hourly sums are never deleted. 0 keeps all rows.",
    )

    listen_addr: ListenAddress = SERVER.setting(
        kinds.LISTEN_ADDRESS, ":8080", "Where the server listens; without a host, on every interface.", flag="--addr"
    )
    llm_proxy_url: str | None = SERVER.optional(
        kinds.BASE_URL,
        "Base URL at which `llm-proxy manage` finds the server. Default: this machine, at `LISTEN_ADDR`, with HTTPS if "
        "`ENABLE_TLS` is set.",
        flag="--manage-api-base-url",
    )
    workers: int = SERVER.setting(
        kinds.integer(1, 256), "1", "Worker processes. More than one needs PostgreSQL or MySQL.", flag="--workers"
    )
    request_timeout: float = SERVER.setting(
        kinds.duration(),
        "10m",
        "Longest silence of a provider, before its response and between two pieces of it, where the provider file sets "
        "no other.",
    )
    max_request_size: int = SERVER.setting(
        kinds.SIZE,
        "100MB",
        "Largest body of a request to a provider; a larger one gets 413. kB, MB, GB count in thousands, KiB, MiB, GiB "
        "in 1024s.",
    )
    client_write_timeout: float = SERVER.setting(
        kinds.duration(),
        "30s",
        "Longest that a client may take nothing of an answer. Then its connection is reset, its request to the "
        "provider is broken off, and it is settled as `client_closed`. A client that reads slowly, or waits for the "
        "provider, is left alone.",
    )
    keep_alive_timeout: float = SERVER.setting(
        kinds.duration(),
        "75s",
        "How long a client's connection is kept open between two requests, and before the first. Let it be longer than "
        "that of a load balancer in front.",
    )
    shutdown_delay: float = SERVER.setting(
        kinds.duration(zero=True),
        "0s",
        "How long the server goes on normally after SIGTERM, while `/ready` says that it is about to end. Let it be "
        "longer than a load balancer takes to notice, where one asks for `/ready`.",
    )
    shutdown_grace: float = SERVER.setting(
        kinds.duration(zero=True),
        "30s",
        "How long running requests may take to end after SIGTERM and `SHUTDOWN_DELAY`.",
    )
    max_concurrent_requests: int = SERVER.setting(
        kinds.integer(1, 1_000_000),
        "1000",
        "Requests to providers that one worker handles at once; further ones get 503.",
    )
    log_level: LogLevel = SERVER.setting(kinds.choice(LogLevel), "info", "Least severe messages that are logged.")
    log_format: LogFormat = SERVER.setting(
        kinds.choice(LogFormat), "json", "One JSON object per line, or lines for people."
    )
    log_file: Path | None = SERVER.optional(
        kinds.PATH,
        "File that the log is appended to; also `/dev/stdout`, or a FIFO that a process reads. Default: stderr.",
    )
    metrics_path: str = SERVER.setting(kinds.ROUTE, "/metrics", "Path of the Prometheus metrics.")
    enable_metrics: bool = SERVER.setting(kinds.BOOLEAN, "true", "Whether the metrics are served.")
    cors_allowed_origins: tuple[str, ...] = SERVER.setting(
        kinds.ORIGINS,
        "",
        "Web origins whose pages may call the proxy, separated by commas, such as `https://app.example.com`; `*` for "
        "all. A page needs a token like anybody else.",
    )
    enable_tls: bool = SERVER.setting(
        kinds.BOOLEAN, "false", "Whether the server speaks HTTPS; needs `TLS_CERT_FILE` and `TLS_KEY_FILE`."
    )
    tls_cert_file: Path | None = SERVER.optional(kinds.EXISTING_FILE, "PEM file of the server's certificate chain.")
    tls_key_file: Path | None = SERVER.optional(kinds.KEY_FILE, "PEM file of the key to `TLS_CERT_FILE`.")
    trusted_proxies: tuple[Network, ...] = SERVER.setting(
        kinds.NETWORKS,
        "",
        "Networks of reverse proxies whose `X-Forwarded-For` is believed, separated by commas; the log then shows the "
        "client's own address.",
    )

    management_token: str | None = SECRETS.optional(
        kinds.HEADER_WORD,
        f"Opens the management API; at least {checks.SHORTEST_MANAGEMENT_TOKEN} characters. Required with PostgreSQL "
        "and MySQL; on SQLite one is made when it is not set, and kept in a file beside the database.",
        secret=True,
        flag="--management-token",
    )
    allow_weak_management_token: bool = SECRETS.setting(
        kinds.BOOLEAN,
        "false",
        f"Whether the server may start with a management token of fewer than {checks.SHORTEST_MANAGEMENT_TOKEN} "
        "characters, which can be guessed. The next release does not have this setting any more.",
    )
    encryption_key: str | None = SECRETS.optional(
        kinds.KEYS,
        "Encrypts the providers' API keys in the database: base64 of 32 bytes. Of several, separated by commas, the "
        "first encrypts and all decrypt. On SQLite one is made when it is not set, and kept in a file beside the "
        "database.",
        secret=True,
    )
    allow_plaintext_api_keys: bool = SECRETS.setting(
        kinds.BOOLEAN,
        "false",
        "Whether the server may keep the providers' API keys unencrypted when there is no `ENCRYPTION_KEY`.",
    )

    api_config_path: Path | None = PROVIDERS.optional(
        kinds.EXISTING_FILE, "YAML file of the providers. Default: OpenAI and Anthropic."
    )
    default_api_provider: str | None = PROVIDERS.optional(
        kinds.TEXT, "Provider of projects that name none. Default: `default_api` of the file, else `openai`."
    )
    openai_api_url: str | None = PROVIDERS.optional(
        kinds.BASE_URL, "Base URL that stands in for the one of the provider `openai`, without `/v1`."
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
        """Settle every setting: flags before environment before the `.env` file before defaults.

        `flags` has the names of environment variables as its keys. `serving` adds what only a server must have: a
        management token and an encryption key. Raises `SettingsError` with everything that is wrong.
        """
        layers, problems = _layers(environ, flags, dotenv_path)
        found = find(declared(cls), layers)
        settings = cls(**{name.lower(): value for name, value in found.values.items()})
        problems += [*found.problems, *checks.across(settings, found, serving=serving)]
        if problems:
            raise SettingsError(problems)
        return settings

    @classmethod
    def warnings(
        cls, environ: Mapping[str, str], flags: Mapping[str, str] | None = None, dotenv_path: Path | None = None
    ) -> list[str]:
        """Sentences about what is not wrong, but hardly meant: variables that look like a misspelt setting."""
        layers, _ = _layers(environ, flags, dotenv_path)
        return near_misses(declared(cls), layers)


def read_one(name: str, environ: Mapping[str, str], flags: Mapping[str, str] | None, dotenv_path: Path | None) -> Any:
    """Settle one setting by its name, for commands that need no others; its default where it is not set anywhere.

    Raises `SettingsError` where it is wrong.
    """
    layers, problems = _layers(environ, flags, dotenv_path)
    found = find({name: declared(Settings)[name]}, layers)
    if problems or found.problems:
        raise SettingsError([*problems, *found.problems])
    return found.values.get(name, getattr(Settings(), name.lower()))


def _layers(
    environ: Mapping[str, str], flags: Mapping[str, str] | None, dotenv_path: Path | None
) -> tuple[list[Layer], list[Problem]]:
    layers = [Layer(FLAGS, flags or {}), Layer("", environ)]
    if dotenv_path is None:
        return layers, []
    values, problems = dotenv.read(dotenv_path)
    if any(values.get(name) for name, field in declared(Settings).items() if field.secret):
        try:
            private_file.check(dotenv_path)
        except private_file.ExposedFile as error:
            problems.append(Problem(str(dotenv_path), f"the file holds a secret and {error}"))
    return [*layers, Layer(f" in {dotenv_path}", values)], problems
