from __future__ import annotations

import base64
from pathlib import Path

import attrs
import pytest

from llm_proxy.settings import ListenAddress, Settings, SettingsError, parse_duration, read_one
from llm_proxy.settings.fields import declared
from llm_proxy.settings.reference import markdown

KEY = base64.b64encode(bytes(range(32))).decode()
SHORT_KEY = base64.b64encode(bytes(16)).decode()

POSTGRES = {"DB_DRIVER": "postgres", "DATABASE_URL": "postgres://user:hunter2@db/llmproxy"}

DURATION = "allowed: a duration above zero such as 1h30m, 90s, 500ms, or a number of seconds"
BOOLEAN = "allowed: true or false (also yes, no, on, off, 1, 0)"
ADDRESS = "allowed: :port, host:port or [IPv6 address]:port, such as 127.0.0.1:8080"
ROUTE = "allowed: a path such as /metrics, beginning with / and not ending with it"
URL = "allowed: an http or https URL without user or query, such as https://api.openai.com"
KEYS = "allowed: base64 of 32 bytes (openssl rand -base64 32), or several, separated by commas"
HEADER = "allowed: visible ASCII characters without spaces, because it travels in a header"
SIZE = "allowed: a size above zero such as 10MB, 512KiB, or a number of bytes"
NO_FILE = "there is no such file"


def problems(environ: dict[str, str], *, serving: bool = False) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        Settings.load(environ, serving=serving)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("DB_DRIVER", "oracle", "allowed: one of sqlite, postgres, mysql"),
        ("DB_DRIVER", "postgresql", "allowed: one of sqlite, postgres, mysql"),
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
        ("LEDGER_RETENTION", "1w", "allowed: a duration such as 1h30m, 90s, 500ms, or a number of seconds"),
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
        ("ADMIN_UI_PATH", "/admin/", ROUTE),
        ("ENABLE_METRICS", "maybe", BOOLEAN),
        ("ADMIN_UI_ENABLED", "2", BOOLEAN),
        ("ENABLE_TLS", "y", BOOLEAN),
        ("ALLOW_PLAINTEXT_API_KEYS", "t", BOOLEAN),
        (
            "CORS_ALLOWED_ORIGINS",
            "https://a.example, example.com",
            "'example.com' is no origin; " + "allowed: * or a comma-separated list such as https://app.example.com",
        ),
        (
            "TRUSTED_PROXIES",
            "10.0.0.0/8,10.0.0.1/8",
            "'10.0.0.1/8' is no address or network; " + "allowed: a comma-separated list such as 10.0.0.0/8, 127.0.0.1",
        ),
        ("API_CONFIG_PATH", "/no/providers.yaml", NO_FILE),
        ("OPENAI_API_URL", "api.openai.com", URL),
        ("OPENAI_API_URL", "https://", URL),
        ("OPENAI_API_URL", "https://me@api.example", URL),
        ("OPENAI_API_URL", "https://api.example?x=1", URL),
        ("OPENAI_API_URL", "https://api.example:http", URL),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(name: str, value: str, reason: str) -> None:
    assert problems({name: value}) == [f"{name}={value!r}: {reason}"]


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("MANAGEMENT_TOKEN", "two words", HEADER),
        ("MANAGEMENT_TOKEN", "schlüssel", HEADER),
        ("ENCRYPTION_KEY", "swordfish!", f"key 1 is not base64 of 32 bytes; {KEYS}"),
        ("ENCRYPTION_KEY", f"{KEY},", f"key 2 is empty; {KEYS}"),
        ("ENCRYPTION_KEY", f"{KEY},{SHORT_KEY}", f"key 2 has 16 bytes; a key has 32; {KEYS}"),
    ],
)
def test_a_wrong_secret_is_not_shown(name: str, value: str, reason: str) -> None:
    assert problems({name: value}) == [f"{name} (value hidden): {reason}"]


@pytest.mark.parametrize(
    ("environ", "problem"),
    [
        (
            {"WORKERS": "2"},
            (
                "WORKERS=2: SQLite serves one process only, because its file has one writer; "
                "set WORKERS=1, or use DB_DRIVER=postgres or mysql"
            ),
        ),
        (
            {"DB_DRIVER": "mysql"},
            ("DB_DRIVER is mysql, so DATABASE_URL must be set: user:password@tcp(host:3306)/database?tls=true"),
        ),
        (
            POSTGRES | {"DB_DRIVER": "sqlite"},
            "DB_DRIVER is sqlite but DATABASE_URL is for PostgreSQL: set DB_DRIVER=postgres, or remove the URL",
        ),
        (
            {"DB_DRIVER": "oracle", "DATABASE_URL": "postgres://user:hunter2@db/x"},
            "DB_DRIVER='oracle': allowed: one of sqlite, postgres, mysql",
        ),
        (
            {"DB_DRIVER": "postgres", "DATABASE_URL": "postgres://user:hunter2@db:port/x"},
            "DATABASE_URL: the port must be a number from 1 to 65535",
        ),
        (
            {"DATABASE_URL": "postgres://user:hunter2@db/x"},
            (
                "DATABASE_URL (value hidden): it is set, but DB_DRIVER is not, so that SQLite would be used; "
                "set DB_DRIVER=postgres too"
            ),
        ),
        (
            {"ENABLE_TLS": "true", "TLS_KEY_FILE": __file__},
            "ENABLE_TLS=true: TLS_CERT_FILE is not set; name the PEM file, or set ENABLE_TLS=false",
        ),
        (
            {"DATABASE_TLS_KEY": __file__},
            "DATABASE_TLS_KEY: it is of no use without DATABASE_TLS_CERT; set both or neither",
        ),
        (
            {"METRICS_PATH": "/manage/metrics"},
            "METRICS_PATH='/manage/metrics': /manage is taken by the server itself; choose another path",
        ),
        ({"ADMIN_UI_PATH": "/v1"}, "ADMIN_UI_PATH='/v1': /v1 is taken by the server itself; choose another path"),
        ({"METRICS_PATH": "/admin"}, "METRICS_PATH='/admin': it is the same as ADMIN_UI_PATH; choose another path"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(environ: dict[str, str], problem: str) -> None:
    assert problems(environ) == [problem]


@pytest.mark.parametrize(
    ("environ", "condition"),
    [
        (POSTGRES, "DB_DRIVER=postgres"),
        ({"DB_DRIVER": "mysql", "DATABASE_URL": "u@tcp(h)/d"}, "DB_DRIVER=mysql"),
        ({"DATABASE_PATH": ":memory:"}, "DATABASE_PATH=:memory:"),
    ],
)
def test_a_server_with_no_folder_of_its_own_needs_its_secrets(environ: dict[str, str], condition: str) -> None:
    missing = f"it is not set, and is required with {condition}"

    assert Settings.load(environ).management_token is None
    assert problems(environ, serving=True) == [
        f"MANAGEMENT_TOKEN: {missing}; make one with: openssl rand -hex 32",
        (
            f"ENCRYPTION_KEY: {missing}; make one with: openssl rand -base64 32; "
            "or set ALLOW_PLAINTEXT_API_KEYS=true to store API keys unencrypted"
        ),
    ]
    Settings.load(environ | {"MANAGEMENT_TOKEN": "m", "ALLOW_PLAINTEXT_API_KEYS": "true"}, serving=True)
    Settings.load(environ | {"MANAGEMENT_TOKEN": "m", "ENCRYPTION_KEY": KEY}, serving=True)


def test_a_wrong_secret_is_not_reported_as_missing_too() -> None:
    found = problems(POSTGRES | {"MANAGEMENT_TOKEN": "a b", "ENCRYPTION_KEY": "x"}, serving=True)

    assert [problem.split(":")[0] for problem in found] == [
        "MANAGEMENT_TOKEN (value hidden)",
        "ENCRYPTION_KEY (value hidden)",
    ]


def test_a_server_on_sqlite_needs_nothing() -> None:
    assert Settings.load({}, serving=True) == Settings()


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("nonsense\nWORKERS=none\n")

    with pytest.raises(SettingsError) as caught:
        Settings.load({"LOG_LEVEL": "loud", "ENABLE_TLS": "true"}, {"LISTEN_ADDR": "x"}, dotenv)

    assert str(caught.value).splitlines() == [
        "6 settings are wrong:",
        f"  {dotenv}, line 1: this is not NAME=value, nor a comment",
        f"  --addr 'x': {ADDRESS}",
        f"  WORKERS='none' in {dotenv}: allowed: a whole number from 1 to 256",
        "  LOG_LEVEL='loud': allowed: one of debug, info, warning, error",
        "  ENABLE_TLS=true: TLS_CERT_FILE is not set; name the PEM file, or set ENABLE_TLS=false",
        "  ENABLE_TLS=true: TLS_KEY_FILE is not set; name the PEM file, or set ENABLE_TLS=false",
    ]


def test_one_problem_is_one_line() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.load({"WORKERS": "0"})

    assert str(caught.value) == "WORKERS='0': allowed: a whole number from 1 to 256"


def test_a_long_wrong_value_is_cut_and_control_characters_are_escaped() -> None:
    assert problems({"LOG_LEVEL": "\x1b[31m" + "x" * 500})[0].startswith(
        "LOG_LEVEL='\\x1b[31m" + "x" * 75 + "…': allowed"
    )


def test_flags_come_before_environment_before_dotenv_before_defaults(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("LISTEN_ADDR=:1\nLOG_LEVEL=error\nLOG_FORMAT=text\n")

    settings = Settings.load({"LISTEN_ADDR": ":2", "LOG_LEVEL": "debug"}, {"LISTEN_ADDR": ":3"}, dotenv)

    assert settings.listen_addr == ListenAddress("", 3)
    assert settings.log_level == "debug"
    assert settings.log_format == "text"
    assert settings.request_timeout == 300.0


def test_an_empty_variable_is_not_set(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("WORKERS=\nDB_DRIVER=mysql\nDATABASE_URL=u@tcp(h)/d\n")

    settings = Settings.load({"WORKERS": "", "DB_DRIVER": "  "}, {}, dotenv)

    assert (settings.workers, settings.db_driver) == (1, "mysql")


def test_defaults_are_those_of_the_contract() -> None:
    settings = Settings()

    assert settings.database_path == Path("data/llm-proxy.db")
    assert settings.database_conn_max_lifetime == 3600.0
    assert settings.ledger_retention == 90 * 86400.0
    assert settings.max_request_size == 100_000_000
    assert settings.listen_addr == ListenAddress("", 8080)
    assert settings.enable_metrics
    assert not settings.enable_tls


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
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "1h 30m", "-1s", "+1s", "1.s", ".5s", "1e3", "nan", "inf", "1H", "\u0661s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("10MB", 10_000_000), ("10mb", 10_000_000), ("512KiB", 524_288), ("1.5 GB", 1_500_000_000), ("7B", 7)],
)
def test_sizes(text: str, size: int) -> None:
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
def test_listen_addresses(text: str, address: ListenAddress) -> None:
    assert Settings.load({"LISTEN_ADDR": text}).listen_addr == address
    assert Settings.load({"LISTEN_ADDR": str(address)}).listen_addr == address


def test_lists_are_split_at_commas() -> None:
    settings = Settings.load({"CORS_ALLOWED_ORIGINS": "https://A.example , *,", "TRUSTED_PROXIES": "10.0.0.0/8,::1"})

    assert settings.cors_allowed_origins == ("https://a.example", "*")
    assert [str(network) for network in settings.trusted_proxies] == ["10.0.0.0/8", "::1/128"]


def test_a_base_url_loses_its_last_slash() -> None:
    assert Settings.load({"OPENAI_API_URL": "http://[::1]:9/x/"}).openai_api_url == "http://[::1]:9/x"


def test_secrets_come_from_files(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("from-a-file\n")

    assert Settings.load({"MANAGEMENT_TOKEN_FILE": str(file)}).management_token == "from-a-file"


def test_a_secret_of_a_higher_layer_beats_a_file_of_a_lower_one(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("MANAGEMENT_TOKEN_FILE=/no/such/file\n")

    assert Settings.load({"MANAGEMENT_TOKEN": "direct"}, {}, dotenv).management_token == "direct"


def test_what_can_be_wrong_with_a_secret_file(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty", tmp_path / "binary"
    empty.write_text("\n")
    binary.write_bytes(b"\xff\xfe")

    def with_file(path: object) -> list[str]:
        return problems({"MANAGEMENT_TOKEN_FILE": str(path)})

    assert with_file("/no/t") == ["MANAGEMENT_TOKEN_FILE='/no/t': the file cannot be read: No such file or directory"]
    assert with_file(empty) == [f"MANAGEMENT_TOKEN_FILE='{empty}': the file is empty"]
    assert with_file(binary) == [f"MANAGEMENT_TOKEN_FILE='{binary}': the file is not UTF-8 text"]
    assert problems({"MANAGEMENT_TOKEN": "m", "MANAGEMENT_TOKEN_FILE": str(empty)}) == [
        "MANAGEMENT_TOKEN and MANAGEMENT_TOKEN_FILE: both are set; keep one"
    ]


def test_no_secret_is_shown_anywhere() -> None:
    environ = POSTGRES | {"MANAGEMENT_TOKEN": "canary-1", "ENCRYPTION_KEY": KEY}
    settings = Settings.load(environ, serving=True)

    for secret in ("hunter2", "canary-1", KEY):
        assert secret not in repr(settings)
        assert secret not in str(attrs.fields(Settings))
    assert "management_token='(hidden)'" in repr(settings)

    shown = "\n".join(
        problems(environ | {"MANAGEMENT_TOKEN": "canary 1", "ENCRYPTION_KEY": "canary=", "DB_DRIVER": ""})
    )
    assert "canary" not in shown
    assert "hunter2" not in shown


def test_misspelt_names_are_pointed_out(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("DATABASE_POOLSIZE=20\nPOSTGRES_PASSWORD=x\n")
    environ = {"LISTEN_ADRR": ":1", "LOG_LEVEL_FILE": "x", "MANAGEMENT_TOKEN_FILE": "x", "HOME": "/", "PATH": "/bin"}

    assert Settings.warnings(environ, {}, dotenv) == [
        "LISTEN_ADRR has no effect: there is no such setting; did you mean LISTEN_ADDR?",
        "LOG_LEVEL_FILE has no effect: only secrets are read from files",
        f"DATABASE_POOLSIZE in {dotenv} has no effect: there is no such setting; did you mean DATABASE_POOL_SIZE?",
    ]


def test_one_setting_can_be_read_alone() -> None:
    broken = {"MANAGEMENT_TOKEN": "m", "WORKERS": "nonsense"}

    assert read_one("MANAGEMENT_TOKEN", broken, {}, None) == "m"
    assert read_one("MANAGEMENT_TOKEN", {}, {}, None) is None
    with pytest.raises(SettingsError, match="WORKERS='nonsense': allowed"):
        read_one("WORKERS", broken, {}, None)


def test_every_field_is_a_declared_setting_with_help() -> None:
    fields = declared(Settings)

    assert [name.lower() for name in fields] == [attribute.name for attribute in attrs.fields(Settings)]
    for name, field in fields.items():
        assert field.help.endswith("."), name
        assert field.kind.allowed, name


def test_the_reference_has_every_setting_and_no_broken_row() -> None:
    text = markdown()

    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(declared(Settings))
    assert {row.count("|") for row in rows} == {5}
    assert "| `DATABASE_CONN_MAX_LIFETIME` | duration | `1h` | Age at which" in text
