from __future__ import annotations

import base64
from functools import partial
from pathlib import Path

import attrs
import pytest

from llm_proxy.config import ListenAddress, Settings, SettingsError, read_one
from llm_proxy.config.sources import declared
from tests.harness.files import write_secret

KEY = base64.b64encode(bytes(range(32))).decode()

TOKEN = "a-token-of-20-chars."
POSTGRES = {"DB_DRIVER": "postgres", "DATABASE_URL": "postgres://user:hunter2@db/llmproxy"}


def mistakes(environ: dict[str, str], *, serving: bool = False) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        Settings.load(environ, serving=serving)
    return list(caught.value.mistakes)


@pytest.mark.parametrize(
    ("environ", "mistake"),
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
                "DATABASE_URL (value hidden): it is set, but DB_DRIVER is not, so SQLite would be used; "
                "set DB_DRIVER=postgres too"
            ),
        ),
        (
            {"ENABLE_TLS": "true", "TLS_KEY_FILE": "key.pem"},
            "ENABLE_TLS=true: TLS_CERT_FILE is not set; set it to the PEM file, or set ENABLE_TLS=false",
        ),
        (
            {"DATABASE_TLS_KEY": "key.pem"},
            "DATABASE_TLS_KEY: it has no effect without DATABASE_TLS_CERT; set both or neither",
        ),
        (
            {"METRICS_PATH": "/manage/metrics"},
            "METRICS_PATH='/manage/metrics': the server itself uses /manage; choose another path",
        ),
        ({"METRICS_PATH": "/v1"}, "METRICS_PATH='/v1': the server itself uses /v1; choose another path"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    environ: dict[str, str], mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_secret(tmp_path / "key.pem", "")
    assert mistakes(environ) == [mistake]


@pytest.mark.parametrize(
    ("environ", "condition"),
    [
        (POSTGRES, "DB_DRIVER=postgres"),
        ({"DB_DRIVER": "mysql", "DATABASE_URL": "u@tcp(h)/d"}, "DB_DRIVER=mysql"),
        ({"DATABASE_PATH": ":memory:"}, "DATABASE_PATH=:memory:"),
    ],
)
def test_a_server_without_a_database_file_requires_its_secrets(environ: dict[str, str], condition: str) -> None:
    missing = f"it is not set, and is required with {condition}"

    assert Settings.load(environ).management_token is None
    assert mistakes(environ, serving=True) == [
        f"MANAGEMENT_TOKEN: {missing}; make one with: openssl rand -hex 32",
        (
            f"ENCRYPTION_KEY: {missing}; make one with: openssl rand -base64 32; "
            "or set ALLOW_PLAINTEXT_API_KEYS=true to store API keys unencrypted"
        ),
    ]
    Settings.load(environ | {"MANAGEMENT_TOKEN": TOKEN, "ALLOW_PLAINTEXT_API_KEYS": "true"}, serving=True)
    Settings.load(environ | {"MANAGEMENT_TOKEN": TOKEN, "ENCRYPTION_KEY": KEY}, serving=True)


@pytest.mark.parametrize("token", ["a", "hunter2", TOKEN[:19]])
def test_a_server_refuses_a_management_token_under_20_characters_unless_that_is_allowed(
    token: str, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    write_secret(file, f"{token}\n")
    for environ in ({"MANAGEMENT_TOKEN": token}, {"MANAGEMENT_TOKEN_FILE": str(file)}):
        (found,) = mistakes(environ, serving=True)
        assert found == (
            "MANAGEMENT_TOKEN (value hidden): it has fewer than 20 characters and can be guessed; make one with: "
            "openssl rand -hex 32; or set ALLOW_WEAK_MANAGEMENT_TOKEN=true, which works in this release only"
        )
        Settings.load(environ | {"ALLOW_WEAK_MANAGEMENT_TOKEN": "true"}, serving=True)
        Settings.load(environ)  # a command may still have to talk to such a server
    Settings.load({"MANAGEMENT_TOKEN": TOKEN}, serving=True)


def test_a_wrong_secret_is_not_also_reported_as_missing() -> None:
    found = mistakes(POSTGRES | {"MANAGEMENT_TOKEN": "a b", "ENCRYPTION_KEY": "x"}, serving=True)

    assert [mistake.split(":")[0] for mistake in found] == [
        "MANAGEMENT_TOKEN (value hidden)",
        "ENCRYPTION_KEY (value hidden)",
    ]


def test_a_server_on_sqlite_requires_no_settings() -> None:
    assert Settings.load({}, serving=True) == Settings()


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("nonsense\nWORKERS=none\n")

    with pytest.raises(SettingsError) as caught:
        Settings.load({"LOG_LEVEL": "loud", "ENABLE_TLS": "true"}, {"LISTEN_ADDR": "x"}, dotenv)

    assert str(caught.value).splitlines() == [
        "6 settings are wrong:",
        f"  {dotenv}, line 1: this is not NAME=value, and not a comment",
        "  --addr 'x': allowed: :port, host:port or [IPv6 address]:port, such as 127.0.0.1:8080",
        f"  WORKERS='none' in {dotenv}: allowed: a whole number from 1 to 256",
        "  LOG_LEVEL='loud': allowed: one of debug, info, warning, error",
        "  ENABLE_TLS=true: TLS_CERT_FILE is not set; set it to the PEM file, or set ENABLE_TLS=false",
        "  ENABLE_TLS=true: TLS_KEY_FILE is not set; set it to the PEM file, or set ENABLE_TLS=false",
    ]


def test_one_mistake_is_one_line() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.load({"WORKERS": "0"})

    assert str(caught.value) == "WORKERS='0': allowed: a whole number from 1 to 256"


def test_a_long_wrong_value_is_cut_and_control_characters_are_escaped() -> None:
    assert mistakes({"LOG_LEVEL": "\x1b[31m" + "x" * 500})[0].startswith(
        "LOG_LEVEL='\\x1b[31m" + "x" * 75 + "…': allowed"
    )


def test_flags_override_environment_overrides_dotenv_overrides_defaults(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("LISTEN_ADDR=:1\nLOG_LEVEL=error\nLOG_FORMAT=text\n")

    settings = Settings.load({"LISTEN_ADDR": ":2", "LOG_LEVEL": "debug"}, {"LISTEN_ADDR": ":3"}, dotenv)

    assert settings.listen_addr == ListenAddress("", 3)
    assert settings.log_level == "debug"
    assert settings.log_format == "text"
    assert settings.request_timeout == 600.0


def test_an_empty_variable_is_not_set(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    write_secret(dotenv, "WORKERS=\nDB_DRIVER=mysql\nDATABASE_URL=u@tcp(h)/d\n")

    settings = Settings.load({"WORKERS": "", "DB_DRIVER": "  "}, {}, dotenv)

    assert (settings.workers, settings.db_driver) == (1, "mysql")


def test_defaults_are_those_of_the_contract() -> None:
    settings = Settings()

    assert settings.database_path == Path("data/llm-proxy.db")
    assert settings.database_conn_max_lifetime == 3600.0
    assert settings.ledger_heartbeat == 5.0
    assert settings.max_request_size == 100_000_000
    assert settings.listen_addr == ListenAddress("", 8080)
    assert settings.enable_metrics
    assert not settings.enable_tls


def test_a_secret_is_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    write_secret(file, "from-a-file\n")

    assert Settings.load({"MANAGEMENT_TOKEN_FILE": str(file)}).management_token == "from-a-file"


def test_a_secret_overrides_a_secret_file_of_a_lower_source(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("MANAGEMENT_TOKEN_FILE=/no/such/file\n")

    assert Settings.load({"MANAGEMENT_TOKEN": "direct"}, {}, dotenv).management_token == "direct"


def test_mistakes_with_a_secret_file_are_reported(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty", tmp_path / "binary"
    write_secret(empty, "\n")
    binary.write_bytes(b"\xff\xfe")
    binary.chmod(0o600)

    def with_file(path: object) -> list[str]:
        return mistakes({"MANAGEMENT_TOKEN_FILE": str(path)})

    assert with_file("/no/t") == ["MANAGEMENT_TOKEN_FILE='/no/t': the file cannot be read: No such file or directory"]
    assert with_file(empty) == [f"MANAGEMENT_TOKEN_FILE='{empty}': the file is empty"]
    assert with_file(binary) == [f"MANAGEMENT_TOKEN_FILE='{binary}': the file is not UTF-8 text"]
    assert mistakes({"MANAGEMENT_TOKEN": "m", "MANAGEMENT_TOKEN_FILE": str(empty)}) == [
        "MANAGEMENT_TOKEN and MANAGEMENT_TOKEN_FILE: both are set; remove one"
    ]


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o444, 0o666])
@pytest.mark.parametrize(
    ("environ", "subject"),
    [
        ({"MANAGEMENT_TOKEN_FILE": "{0}"}, "MANAGEMENT_TOKEN_FILE='{0}': the file"),
        ({"TLS_KEY_FILE": "{0}"}, "TLS_KEY_FILE='{0}': the file"),
        ({"DATABASE_TLS_CERT": "{0}", "DATABASE_TLS_KEY": "{0}"}, "DATABASE_TLS_KEY='{0}': the file"),
        (
            {"DB_DRIVER": "postgres", "DATABASE_URL": "postgres://u@h/d?sslcert={0}&sslkey={0}"},
            "DATABASE_URL (value hidden): its key file",
        ),
        (
            {"DB_DRIVER": "mysql", "DATABASE_URL": "u@tcp(h)/d?ssl-key={0}"},
            "DATABASE_URL (value hidden): its key file",
        ),
    ],
)
def test_a_secret_file_that_other_users_can_access_is_refused(
    environ: dict[str, str], subject: str, mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path("secret")
    file.write_text("a-secret")
    environ = {name: value.format(file) for name, value in environ.items()}

    file.chmod(mode)
    assert mistakes(environ)[0] == (
        f"{subject.format(file)} is open to other users (mode {mode:04o}): run chmod o-rwx {file}"
    )

    for private in (0o640, 0o600, 0o400):
        file.chmod(private)
        Settings.load(environ)


def test_a_dotenv_file_with_a_secret_that_other_users_can_read_is_refused(tmp_path: Path) -> None:
    dotenv = tmp_path / "settings.env"
    dotenv.write_text("MANAGEMENT_TOKEN=canary\n")
    dotenv.chmod(0o644)

    for load in (Settings.load, partial(read_one, "LISTEN_ADDR")):
        with pytest.raises(SettingsError) as caught:
            load({}, {}, dotenv)
        assert str(caught.value) == (
            f"{dotenv}: the file contains a secret and is open to other users (mode 0644): run chmod o-rwx {dotenv}"
        )

    dotenv.write_text("LISTEN_ADDR=:1\nMANAGEMENT_TOKEN=\nMANAGEMENT_TOKEN_FILE=/run/secrets/x\n")
    assert read_one("LISTEN_ADDR", {}, {}, dotenv).port == 1, "there is no secret in it"


def test_no_secret_is_shown_anywhere() -> None:
    environ = POSTGRES | {"MANAGEMENT_TOKEN": "canary-1-of-20-chars", "ENCRYPTION_KEY": KEY}
    settings = Settings.load(environ, serving=True)

    for secret in ("hunter2", "canary-1", KEY):
        assert secret not in repr(settings)
        assert secret not in str(attrs.fields(Settings))
    assert "management_token='(hidden)'" in repr(settings)

    shown = "\n".join(
        mistakes(environ | {"MANAGEMENT_TOKEN": "canary 1", "ENCRYPTION_KEY": "canary=", "DB_DRIVER": ""})
    )
    assert "canary" not in shown
    assert "hunter2" not in shown


def test_misspelt_names_cause_a_warning(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("DATABASE_POOLSIZE=20\nPOSTGRES_PASSWORD=x\n")
    environ = {"LISTEN_ADRR": ":1", "LOG_LEVEL_FILE": "x", "MANAGEMENT_TOKEN_FILE": "x", "HOME": "/", "PATH": "/bin"}

    assert Settings.warnings(environ, {}, dotenv) == [
        "LISTEN_ADRR has no effect: there is no such setting; did you mean LISTEN_ADDR?",
        "LOG_LEVEL_FILE has no effect: only secrets are read from files",
        f"DATABASE_POOLSIZE in {dotenv} has no effect: there is no such setting; did you mean DATABASE_POOL_SIZE?",
    ]


def test_read_one_ignores_other_settings() -> None:
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
