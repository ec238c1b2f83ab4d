"""Wrong settings, flags and `.env` files, and what each of them is told."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path

import pytest

from tests.scenarios.bad_input import CANARY, Command

LOOK = ("db", "check")
SERVE = ("server",)
#: An address that cannot be had: a server that starts against all expectations ends at once.
NOWHERE = {"LISTEN_ADDR": "203.0.113.1:9"}


def wrong(name: str, value: str, allowed: str) -> Command:
    """An environment variable that is wrong by itself."""
    return Command(f"{name}={value}", LOOK, f"{name}={value!r}: {allowed}", env={name: value})


def hidden(name: str, value: str, reason: str) -> Command:
    """The same with a value that is not shown."""
    return Command(f"{name} with a secret: {reason}", LOOK, f"{name} (value hidden): {reason}", env={name: value})


DURATION = "allowed: a duration above zero such as 1h30m, 90s, 500ms, or a number of seconds"
SIZE = "allowed: a size above zero such as 10MB, 512KiB, or a number of bytes"
ROUTE = "allowed: a path such as /metrics, with / at its beginning and not at its end"
ADDRESS = "allowed: :port, host:port or [IPv6 address]:port, such as 127.0.0.1:8080"
KEYS = "allowed: base64 of 32 bytes (openssl rand -base64 32), or several, separated by commas"
ORIGINS = "allowed: a comma-separated list such as https://app.example.com, https://www.example.com; or *"
TOKEN_MISSING = "MANAGEMENT_TOKEN: it is not set, and is required with {}; make one with: openssl rand -hex 32"
KEY_MISSING = (
    "ENCRYPTION_KEY: it is not set, and is required with {}; make one with: openssl rand -base64 32; "
    "or set ALLOW_PLAINTEXT_API_KEYS=true to store API keys unencrypted"
)


def missing(condition: str) -> str:
    """What a server without its secrets is told."""
    lines = ("2 settings are wrong:", TOKEN_MISSING.format(condition), KEY_MISSING.format(condition))
    return "\n  ".join(lines)


SETTINGS = (
    wrong("DB_DRIVER", "oracle", "allowed: one of sqlite, postgres, mysql"),
    wrong("WORKERS", "zero", "allowed: a whole number from 1 to 256"),
    wrong("WORKERS", "0", "allowed: a whole number from 1 to 256"),
    wrong("DATABASE_POOL_SIZE", "1.5", "allowed: a whole number from 1 to 1000"),
    wrong("REQUEST_TIMEOUT", "5 minutes", DURATION),
    wrong("REQUEST_TIMEOUT", "0", DURATION),
    wrong("REQUEST_TIMEOUT", "-5s", DURATION),
    wrong("SHUTDOWN_GRACE", "soon", "allowed: a duration such as 1h30m, 90s, 500ms, or a number of seconds"),
    wrong("MAX_REQUEST_SIZE", "10 elephants", SIZE),
    wrong("MAX_REQUEST_SIZE", "0", SIZE),
    wrong("LOG_LEVEL", "loud", "allowed: one of debug, info, warning, error"),
    wrong("LOG_FORMAT", "xml", "allowed: one of json, text"),
    wrong("SQLITE_SYNCHRONOUS", "OFF", "allowed: one of FULL, NORMAL"),
    wrong("ENABLE_METRICS", "maybe", "allowed: true or false (also yes, no, on, off, 1, 0)"),
    wrong("METRICS_PATH", "metrics", ROUTE),
    wrong("METRICS_PATH", "/a/../b", ROUTE),
    wrong("METRICS_PATH", "/v1/metrics", "the server itself uses /v1; choose another path"),
    wrong("LISTEN_ADDR", "8080", ADDRESS),
    wrong("LISTEN_ADDR", "localhost:99999", ADDRESS),
    wrong("OPENAI_API_URL", "api.openai.com", "a base URL begins with https:// or http://"),
    wrong("API_CONFIG_PATH", "none.yaml", "there is no such file"),
    wrong("API_CONFIG_PATH", "folder", "it is a folder, and must be a file"),
    wrong("DATABASE_TLS_CA", "none.pem", "there is no such file"),
    wrong(
        "CORS_ALLOWED_ORIGINS",
        "app.example.com",
        f"item 'app.example.com' is not valid; {ORIGINS}",
    ),
    wrong(
        "TRUSTED_PROXIES",
        "10.0.0.0/33",
        "item '10.0.0.0/33' is not valid; allowed: a comma-separated list such as 10.0.0.0/8, 127.0.0.1",
    ),
    wrong(
        "TRUSTED_PROXIES",
        "10.0.0.1/8",
        "item '10.0.0.1/8' is an address in the network 10.0.0.0/8; "
        "allowed: a comma-separated list such as 10.0.0.0/8, 127.0.0.1",
    ),
    # What is secret, or may hold something secret, is not shown.
    hidden("OPENAI_API_URL", f"https://me:{CANARY}@api.openai.com", "a base URL has no user and no password"),
    hidden("DB_DRIVER", f"postgres://me:{CANARY}@db/ledger", "allowed: one of sqlite, postgres, mysql"),
    hidden(
        "TRUSTED_PROXIES",
        f"me:{CANARY}@10.0.0.1",
        "item (hidden) is not valid; allowed: a comma-separated list such as 10.0.0.0/8, 127.0.0.1",
    ),
    hidden(
        "MANAGEMENT_TOKEN",
        f"{CANARY} {CANARY}",
        "allowed: 1 to 4096 printable ASCII characters without spaces",
    ),
    hidden("ENCRYPTION_KEY", CANARY, f"key 1 is not base64 of 32 bytes; {KEYS}"),
    hidden(
        "ENCRYPTION_KEY", b64encode(CANARY.encode()).decode(), f"key 1 has {len(CANARY)} bytes; a key has 32; {KEYS}"
    ),
    hidden("ENCRYPTION_KEY", b64encode(bytes(32)).decode() + ",,", f"key 2 is empty; {KEYS}"),
    # Secrets from files.
    wrong("MANAGEMENT_TOKEN_FILE", "none", "the file cannot be read: No such file or directory"),
    wrong("MANAGEMENT_TOKEN_FILE", "folder", "the file cannot be read: Is a directory"),
    wrong("MANAGEMENT_TOKEN_FILE", "empty", "the file is empty"),
    wrong("MANAGEMENT_TOKEN_FILE", "latin", "the file is not UTF-8 text"),
    Command(
        "a secret that is set twice",
        LOOK,
        "MANAGEMENT_TOKEN and MANAGEMENT_TOKEN_FILE: both are set; remove one",
        env={"MANAGEMENT_TOKEN": CANARY, "MANAGEMENT_TOKEN_FILE": "empty"},
    ),
    # What does not go together.
    Command(
        "several workers on SQLite",
        SERVE,
        "WORKERS=4: SQLite serves one process only, because its file has one writer; "
        "set WORKERS=1, or use DB_DRIVER=postgres or mysql",
        env={"WORKERS": "4", **NOWHERE},
    ),
    Command(
        "TLS without files",
        SERVE,
        "2 settings are wrong:"
        "\n  ENABLE_TLS=true: TLS_CERT_FILE is not set; set it to the PEM file, or set ENABLE_TLS=false"
        "\n  ENABLE_TLS=true: TLS_KEY_FILE is not set; set it to the PEM file, or set ENABLE_TLS=false",
        env={"ENABLE_TLS": "true", **NOWHERE},
    ),
    Command(
        "TLS with files that hold none",
        SERVE,
        "TLS_CERT_FILE and TLS_KEY_FILE: not.pem holds no certificate in PEM form",
        env={"ENABLE_TLS": "true", "TLS_CERT_FILE": "not.pem", "TLS_KEY_FILE": "not.pem", **NOWHERE},
    ),
    Command(
        "half a client certificate",
        LOOK,
        "DATABASE_TLS_CERT: it has no effect without DATABASE_TLS_KEY; set both or neither",
        env={"DATABASE_TLS_CERT": "not.pem"},
    ),
    Command(
        "a server in memory without secrets",
        SERVE,
        missing("DATABASE_PATH=:memory:"),
        env={"DATABASE_PATH": ":memory:", **NOWHERE},
    ),
    Command(
        "a server on PostgreSQL without secrets",
        SERVE,
        missing("DB_DRIVER=postgres"),
        env={"DB_DRIVER": "postgres", "DATABASE_URL": f"postgres://me:{CANARY}@127.0.0.1:9/d", **NOWHERE},
    ),
    # Flags and files.
    Command(
        "a flag of the wrong kind",
        ("server", "--workers", "-1"),
        "--workers '-1': allowed: a whole number from 1 to 256",
    ),
    Command("an address without a port", ("server", "--addr", "localhost"), f"--addr 'localhost': {ADDRESS}"),
    Command(
        "an empty flag",
        ("migrate", "up", "--db", ""),
        "--db '': it is empty; set a value, or remove the flag",
    ),
    Command(
        "no such .env file",
        ("migrate", "version", "--config", "none.env"),
        "none.env: the file cannot be read: No such file or directory",
    ),
    Command(
        "a .env file that is a folder",
        ("migrate", "version", "--config", "folder"),
        "folder: the file cannot be read: Is a directory",
    ),
    Command(
        "a .env file that is no text", ("migrate", "version", "--config", "latin"), "latin: the file is not UTF-8 text"
    ),
    Command(
        "a .env file with mistakes",
        ("migrate", "version", "--config", "wrong.env"),
        "3 settings are wrong:"
        "\n  wrong.env, line 1: this is not NAME=value, and not a comment"
        "\n  wrong.env, line 3: LOG_LEVEL is already set on line 2; keep one"
        "\n  wrong.env, line 4: the value of MANAGEMENT_TOKEN begins with a quote and does not end with one",
    ),
)


@pytest.mark.parametrize("row", SETTINGS, ids=str)
def test_a_wrong_setting_is_explained_at_the_start(row: Command, tmp_path: Path) -> None:
    assert row.check(tmp_path) == set()
