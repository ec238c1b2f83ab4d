from __future__ import annotations

import base64

import pytest

from llm_proxy.config import ListenAddress, Settings, SettingsError, parse_duration

KEY = base64.b64encode(bytes(range(32))).decode()
SHORT_KEY = base64.b64encode(bytes(16)).decode()

DURATION = "allowed: a duration above zero such as 1h30m, 90s, 500ms, or a number of seconds"
BOOLEAN = "allowed: true or false (also yes, no, on, off, 1, 0)"
ADDRESS = "allowed: :port, host:port or [IPv6 address]:port, such as 127.0.0.1:8080"
ROUTE = "allowed: a path such as /metrics, with / at its beginning and not at its end"
ORIGINS = "allowed: a comma-separated list such as https://app.example.com, https://www.example.com; or *"
KEYS = "allowed: base64 of 32 bytes (openssl rand -base64 32), or several, separated by commas"
HEADER = "allowed: 1 to 4096 printable ASCII characters without spaces"
SIZE = "allowed: a size above zero such as 10MB, 512KiB, or a number of bytes"
BAD_HOST = "its host or port is not valid; write it like https://api.example.com:8443"
NO_FILE = "there is no such file"


def mistake(name: str, value: str) -> str:
    with pytest.raises(SettingsError) as caught:
        Settings.load({name: value})
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("DB_DRIVER", "oracle", "allowed: one of sqlite, postgres, mysql"),
        ("DB_DRIVER", "postgresql", "allowed: one of sqlite, postgres, mysql; did you mean postgres?"),
        ("DATABASE_POOL_SIZE", "0", "allowed: a whole number from 1 to 1000"),
        ("DATABASE_POOL_SIZE", "ten", "allowed: a whole number from 1 to 1000"),
        ("DATABASE_POOL_SIZE", "1_0", "allowed: a whole number from 1 to 1000"),
        ("DATABASE_MAX_IDLE_CONNS", "-1", "allowed: a whole number from 0 to 1000"),
        ("DATABASE_CONNECT_TIMEOUT", "0", DURATION),
        ("DATABASE_CONNECT_TIMEOUT", "5 s", DURATION),
        ("DATABASE_STATEMENT_TIMEOUT", "-3s", DURATION),
        ("DATABASE_TLS_CA", "/no/ca.pem", NO_FILE),
        ("SQLITE_SYNCHRONOUS", "OFF", "allowed: one of FULL, NORMAL"),
        ("DB_OUTAGE_POLICY", "open", "allowed: one of closed, grace"),
        ("SHUTDOWN_GRACE", "1w", "allowed: a duration such as 1h30m, 90s, 500ms, or a number of seconds"),
        ("LISTEN_ADDR", "8080", ADDRESS),
        ("LISTEN_ADDR", ":65536", ADDRESS),
        ("LISTEN_ADDR", "::1:8080", ADDRESS),
        ("LISTEN_ADDR", "[1.2.3.4]:80", ADDRESS),
        ("LISTEN_ADDR", "host:", ADDRESS),
        ("WORKERS", "0", "allowed: a whole number from 1 to 256"),
        ("WORKERS", "1.5", "allowed: a whole number from 1 to 256"),
        ("REQUEST_TIMEOUT", "forever", DURATION),
        ("MAX_REQUEST_SIZE", "10 megabytes", SIZE),
        ("MAX_REQUEST_SIZE", "0", SIZE),
        ("MAX_CONCURRENT_REQUESTS", "0", "allowed: a whole number from 1 to 1000000"),
        ("LOG_LEVEL", "loud", "allowed: one of debug, info, warning, error"),
        ("LOG_FORMAT", "xml", "allowed: one of json, text"),
        ("METRICS_PATH", "metrics", ROUTE),
        ("METRICS_PATH", "/a/../b", ROUTE),
        ("METRICS_PATH", "/", ROUTE),
        ("METRICS_PATH", "/metrics/", ROUTE),
        ("ENABLE_METRICS", "maybe", BOOLEAN),
        ("ENABLE_METRICS", "2", BOOLEAN),
        ("ENABLE_TLS", "y", BOOLEAN),
        ("ALLOW_PLAINTEXT_API_KEYS", "t", BOOLEAN),
        (
            "CORS_ALLOWED_ORIGINS",
            "https://a.example, example.com",
            f"item 'example.com' is not valid; {ORIGINS}",
        ),
        (
            "TRUSTED_PROXIES",
            "10.0.0.0/8,10.0.0.1/8",
            "item '10.0.0.1/8' is an address in the network 10.0.0.0/8; "
            + "allowed: a comma-separated list such as 10.0.0.0/8, 127.0.0.1",
        ),
        ("API_CONFIG_PATH", "/no/providers.yaml", NO_FILE),
        ("PUBLIC_URL", "llm.example.com", "a base URL begins with https:// or http://"),
        ("PUBLIC_URL", "ftp://llm.example.com", "a base URL begins with https:// or http://"),
        (
            "PUBLIC_URL",
            "https://llm.example.com/v1",
            "it has a path; write scheme and host only, like https://llm.example.com",
        ),
        ("PUBLIC_URL", "https://llm.example.com:0", BAD_HOST),
        ("OPENAI_API_URL", "api.openai.com", "a base URL begins with https:// or http://"),
        ("OPENAI_API_URL", "https://", BAD_HOST),
        ("OPENAI_API_URL", "https://api.example:http", BAD_HOST),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(name: str, value: str, reason: str) -> None:
    assert mistake(name, value) == f"{name}={value!r}: {reason}"


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("PUBLIC_URL", "https://llm.example.com?a", "a base URL has no query and no fragment"),
        ("OPENAI_API_URL", "https://api.example?x=1", "a base URL has no query and no fragment"),
        ("MANAGEMENT_TOKEN", "two words", HEADER),
        ("MANAGEMENT_TOKEN", "schlüssel", HEADER),
        ("ENCRYPTION_KEY", "swordfish!", f"key 1 is not base64 of 32 bytes; {KEYS}"),
        ("ENCRYPTION_KEY", f"{KEY},", f"key 2 is empty; {KEYS}"),
        # An @ in a value may be the end of a password, whatever the setting.
        ("OPENAI_API_URL", "https://me:hunter2@api.example", "a base URL has no user and no password"),
        ("PUBLIC_URL", "https://me:hunter2@llm.example", "a base URL has no user and no password"),
        ("DB_DRIVER", "postgres://me:hunter2@db/x", "allowed: one of sqlite, postgres, mysql"),
        (
            "CORS_ALLOWED_ORIGINS",
            "https://me:hunter2@app.example",
            f"item (hidden) is not valid; {ORIGINS}",
        ),
        ("ENCRYPTION_KEY", f"{KEY},{SHORT_KEY}", f"key 2 has 16 bytes; a key has 32; {KEYS}"),
    ],
)
def test_a_wrong_secret_is_not_shown(name: str, value: str, reason: str) -> None:
    assert mistake(name, value) == f"{name} (value hidden): {reason}"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90.0),
        ("0.25", 0.25),
        ("1h30m", 5400.0),
        ("1h30m10.5s", 5410.5),
        ("500ms", 0.5),
        ("2us", 2e-6),
        ("2µs", 2e-6),
        ("100ns", 1e-7),
        ("90d", 7_776_000.0),
        ("1m0s", 60.0),
        ("0", 0.0),
    ],
)
def test_a_duration_is_read_in_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "1h 30m", "-1s", "+1s", "1.s", ".5s", "1e3", "nan", "inf", "1H", "\u0661s"])
def test_an_invalid_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("10MB", 10_000_000), ("10mb", 10_000_000), ("512KiB", 524_288), ("1.5 GB", 1_500_000_000), ("7B", 7)],
)
def test_a_size_is_read_in_bytes(text: str, size: int) -> None:
    assert Settings.load({"MAX_REQUEST_SIZE": text}).max_request_size == size


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (":8080", ListenAddress("", 8080)),
        ("localhost:0", ListenAddress("localhost", 0)),
        ("127.0.0.1:80", ListenAddress("127.0.0.1", 80)),
        ("[::1]:8080", ListenAddress("::1", 8080)),
        ("[0:0:0:0:0:0:0:1]:8080", ListenAddress("::1", 8080)),
    ],
)
def test_a_listen_address_is_read_and_written(text: str, address: ListenAddress) -> None:
    assert Settings.load({"LISTEN_ADDR": text}).listen_addr == address
    assert Settings.load({"LISTEN_ADDR": str(address)}).listen_addr == address


def test_a_list_is_split_at_commas() -> None:
    settings = Settings.load({"CORS_ALLOWED_ORIGINS": "https://A.example , *,", "TRUSTED_PROXIES": "10.0.0.0/8,::1"})

    assert settings.cors_allowed_origins == ("https://a.example", "*")
    assert [str(network) for network in settings.trusted_proxies] == ["10.0.0.0/8", "::1/128"]


@pytest.mark.parametrize(
    ("configured", "sent"),
    [
        ("https://a.example:443", "https://a.example"),
        ("http://[::80]:80", "http://[::80]"),
        ("http://a.example:443", "http://a.example:443"),
        ("https://a.example:8443", "https://a.example:8443"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
    ],
)
def test_an_origin_is_stored_as_browsers_send_it(configured: str, sent: str) -> None:
    assert Settings.load({"CORS_ALLOWED_ORIGINS": configured}).cors_allowed_origins == (sent,)


def test_the_last_slash_of_a_base_url_is_removed() -> None:
    assert Settings.load({"OPENAI_API_URL": "http://[::1]:9/x/"}).openai_api_url == "http://[::1]:9/x"
