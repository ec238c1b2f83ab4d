"""Files that keep a server from starting (providers, certificates, keys, logs), and what each of them is told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import get_args

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from llm_proxy.gateway.providers.provider import Auth
from tests.harness.server import running_server
from tests.scenarios.bad_input import CANARY, Command, assert_fit_for_users

SERVE = ("server",)
#: An address that cannot be had: a server that starts against all expectations ends at once.
NOWHERE = {"LISTEN_ADDR": "203.0.113.1:9"}

GLOBS = "allowed: a value such as gpt-4o, or a pattern such as gpt-4.1-*"
DURATION = "allowed: a duration above zero such as 1h30m, 90s, 500ms, or a number of seconds"
#: Lines of a provider file, and what is wrong with each of them. Braces are doubled: the expected lines are filled in.
MISTAKES = (
    (
        "default_api: opanai",
        (
            "default_api='opanai': there is no such provider; did you mean openai?; "
            "allowed: openai, Upper, manage, lonely, bare, list"
        ),
    ),
    ("apis:",),
    ("  openai:",),
    (
        f"    base_url: https://me:{CANARY}@api.openai.com",
        ("apis.openai.base_url (value hidden): a base URL has no user and no password"),
    ),
    ("    auth: basic", f"apis.openai.auth='basic': allowed: one of {', '.join(get_args(Auth))}"),
    (
        '    allowed_endpoints: [chat, /v1/a/../b, "/v1/{x", "/v1/**/x"]',
        "apis.openai.allowed_endpoints='chat': an endpoint begins with /, such as /v1/chat/completions",
        (
            "apis.openai.allowed_endpoints='/v1/a/../b': an endpoint is a plain path: "
            "no //, dot segments, query, ';', spaces or encoded separators"
        ),
        "apis.openai.allowed_endpoints='/v1/{{x': a placeholder is * or a name in braces, such as {{id}}",
        (
            "apis.openai.allowed_endpoints='/v1/**/x': ** matches all remaining segments and can only be the last"
            " segment"
        ),
    ),
    (
        "    allowed_methods: [FETCH]",
        (
            "apis.openai.allowed_methods='FETCH': allowed: one of GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS; "
            "did you mean PATCH?"
        ),
    ),
    (
        "    colour: red",
        (
            "apis.openai.colour is not known; allowed: base_url, auth, auth_parameter, headers, "
            "allowed_endpoints, extra_endpoints, allowed_methods, param_whitelist, stream_usage, "
            "allowed_origins, "
            "required_headers, rewrite_urls, timeouts, connection"
        ),
    ),
    (
        "    timeouts: {connect: soon, idle: 0, read: 1s}",
        f"apis.openai.timeouts.connect='soon': {DURATION}",
        f"apis.openai.timeouts.idle='0': {DURATION}",
        "apis.openai.timeouts.read is not known; allowed: connect, response_header, idle, request",
    ),
    (
        "    connection: {max_idle_conns_per_host: -1}",
        "apis.openai.connection.max_idle_conns_per_host='-1': allowed: a whole number from 0 to 10000",
    ),
    (
        "    allowed_origins: [example.com]",
        ("apis.openai.allowed_origins='example.com': allowed: * or an origin such as https://app.example.com"),
    ),
    (
        '    required_headers: ["x team"]',
        "apis.openai.required_headers='x team': allowed: the name of a header such as x-team",
    ),
    (
        "    param_whitelist: {model: [], Model: [a], n: {a: b}}",
        "apis.openai.param_whitelist.model is empty; list at least one value, or remove the key",
        f"apis.openai.param_whitelist.n is a mapping; {GLOBS}",
        "apis.openai.param_whitelist.Model and model differ only in case; remove one",
    ),
    (
        "  Upper: {base_url: ftp://x, allowed_endpoints: []}",
        "apis.Upper.base_url='ftp://x': a base URL begins with https:// or http://",
        "apis.Upper.allowed_endpoints is empty; list at least one value, or remove the key",
        (
            "apis.Upper: this is not a valid name; allowed: 1 to 32 lower-case letters, digits, - and _, "
            "with a letter first"
        ),
    ),
    (
        '  manage: {base_url: "https://x/v1", allowed_endpoints: [/v1/x]}',
        "apis.manage: the server itself uses /manage; choose another name",
        (
            "apis.manage.base_url: it ends in /v1, and the endpoints begin with /v1, so requests would go to "
            "/v1/v1/…; remove /v1 from it"
        ),
    ),
    ("  lonely:", "apis.lonely has no value; set one, or remove the key"),
    (
        "  bare: {auth: bearer}",
        "apis.bare.base_url is missing; set it, e.g. base_url: https://api.example.com",
        "apis.bare.allowed_endpoints is missing; set it, e.g. allowed_endpoints: [/v1/chat/completions]",
    ),
    ("  list: [1]", "apis.list is a list; it must be a mapping of names to values"),
    ("  openai: {base_url: https://x}", "apis.openai is set twice, on line 3 already; remove one"),
)

FILES = (
    ("it is empty", b"", 1, "the file is empty; it needs apis, with at least one provider"),
    ("it is no text", b"\xff", 1, "the file is not UTF-8 text"),
    ("it is no YAML", b"apis: {a: [}\n", 1, "this is not YAML: expected the node content, but found '}}'"),
    (
        "it is indented with tabs",
        b"apis:\n\topenai: {}\n",
        2,
        "this is not YAML: found character '\\t' that cannot start any token",
    ),
    ("it is a list", b"- apis\n", 1, "the file is a list; it must be a mapping of names to values"),
    ("it has no providers", b"default_api: a\n", 1, "apis is missing; it must contain at least one provider"),
    ("its list is empty", b"apis: {}\n", 1, "apis contains no provider; add at least one"),
    (
        "it does not choose",
        (
            b"apis:\n"
            b"  a: {base_url: https://a.example, allowed_endpoints: [/v1/a]}\n"
            b"  b: {base_url: https://b.example, allowed_endpoints: [/v1/b]}\n"
        ),
        1,
        "default_api is missing; set it to one of a, b",
    ),
)

PROVIDERS = (
    Command(
        "a default that there is not",
        SERVE,
        "DEFAULT_API_PROVIDER='opanai': there is no such provider; did you mean openai?; allowed: openai, anthropic, "
        "gemini, openrouter, groq, mistral, deepseek, xai, together, cohere",
        env={"DEFAULT_API_PROVIDER": "opanai", **NOWHERE},
    ),
    Command(
        "a version too many",
        SERVE,
        "OPENAI_API_URL='https://api.openai.com/v1': it ends in /v1, and the endpoints begin with /v1, so "
        "requests would go to /v1/v1/…; remove /v1 from it",
        env={"OPENAI_API_URL": "https://api.openai.com/v1", **NOWHERE},
    ),
)


@pytest.mark.parametrize("row", PROVIDERS, ids=str)
def test_a_wrong_default_provider_is_explained_at_the_start(row: Command, tmp_path: Path) -> None:
    assert row.check(tmp_path) == set()


def test_every_mistake_in_a_provider_file_is_reported_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "providers.yaml"
    file.write_text("".join(f"{row[0]}\n" for row in MISTAKES))
    told = [f"{{file}}, line {number}: {words}" for number, row in enumerate(MISTAKES, 1) for words in row[1:]]
    assert len(told) == 28
    line = "\n  ".join([f"{len(told)} settings are wrong:", *told])

    row = Command("mistakes", SERVE, line, env={"API_CONFIG_PATH": str(file), **NOWHERE})
    (tmp_path / "here").mkdir()
    assert row.check(tmp_path / "here", file=str(file)) == set()


@pytest.mark.parametrize(("content", "number", "words"), [row[1:] for row in FILES], ids=[row[0] for row in FILES])
def test_an_unreadable_provider_file_is_explained_at_the_start(
    content: bytes, number: int, words: str, tmp_path: Path
) -> None:
    file = tmp_path / "providers.yaml"
    file.write_bytes(content)

    row = Command("no file", SERVE, f"{{file}}, line {number}: {words}", env={"API_CONFIG_PATH": str(file), **NOWHERE})
    (tmp_path / "here").mkdir()
    assert row.check(tmp_path / "here", file=str(file)) == set()


def test_every_mistake_in_a_price_file_is_reported_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text("prices:\n  openai:\n    m: {input: much}\n    n: {from: 2026-01-01}\n")
    allowed = "a price in USD such as 2.50, from 0 to 999999, with at most 9 digits after the point"
    told = (
        f"2 settings are wrong:\n  {{file}}, line 3: prices.openai.m.input='much': allowed: {allowed}"
        "\n  {file}, line 4: prices.openai.n has no price; set input and output"
    )
    row = Command("mistakes", SERVE, told, env={"PRICES_PATH": str(file), **NOWHERE})
    (tmp_path / "here").mkdir()
    assert row.check(tmp_path / "here", file=str(file)) == set()


def make_certificates(folder: Path) -> None:
    """A certificate with its key, the key under a pass phrase, and another key."""
    key, other = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([]), datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    plain, phrase = serialization.NoEncryption(), serialization.BestAvailableEncryption(CANARY.encode())
    (folder / "cert.pem").write_bytes(certificate.public_bytes(pem))
    (folder / "key.pem").write_bytes(key.private_bytes(pem, form, plain))
    (folder / "locked.pem").write_bytes(key.private_bytes(pem, form, phrase))
    (folder / "other.pem").write_bytes(other.private_bytes(pem, form, plain))
    for file in folder.iterdir():
        file.chmod(0o600)


@pytest.mark.parametrize(
    ("certificate", "key", "words"),
    [
        ("cert.pem", "other.pem", "the key in {0}/other.pem does not belong to the certificate in {0}/cert.pem"),
        ("cert.pem", "locked.pem", "the key in {0}/locked.pem is encrypted; store it without a pass phrase"),
        ("cert.pem", "cert.pem", "{0}/cert.pem holds no private key in PEM form"),
        ("key.pem", "key.pem", "{0}/key.pem holds no certificate in PEM form"),
    ],
)
def test_a_wrong_certificate_is_explained_at_the_start(certificate: str, key: str, words: str, tmp_path: Path) -> None:
    make_certificates(tmp_path)
    files = {"TLS_CERT_FILE": str(tmp_path / certificate), "TLS_KEY_FILE": str(tmp_path / key)}

    line = f"TLS_CERT_FILE and TLS_KEY_FILE: {words.format(tmp_path)}"
    row = Command("wrong certificate", SERVE, line, env={"ENABLE_TLS": "true", **files, **NOWHERE})
    (tmp_path / "here").mkdir()
    assert row.check(tmp_path / "here") == set()


@pytest.mark.parametrize(
    ("file", "content", "mode", "settings", "line", "code"),
    [
        (
            "ledger.db.management-token",
            CANARY,
            0o644,
            {"MANAGEMENT_TOKEN": ""},
            "the management token's file {file} is open to other users (mode 0644): run chmod 600 {file}",
            1,
        ),
        (
            "ledger.db.management-token",
            "short\n",
            0o600,
            {"MANAGEMENT_TOKEN": ""},
            "the management token's file {file} is damaged; remove it, and the server makes a new one",
            1,
        ),
        (
            "ledger.db.key",
            CANARY,
            0o604,
            {"ENCRYPTION_KEY": ""},
            "the key file {file} is open to other users (mode 0604): run chmod 600 {file}",
            1,
        ),
        (
            "ledger.db.key",
            CANARY,
            0o600,
            {"ENCRYPTION_KEY": ""},
            (
                "the key file {file} is damaged: key 1 is not base64 of 32 bytes; the API keys in the database are "
                "encrypted with it, so restore it from a backup"
            ),
            1,
        ),
        ("ledger.db", "text" * 1000, 0o600, {}, "SQLite file {file}: the file is not a SQLite database", 2),
        (
            "log",
            "",
            0o600,
            {"LOG_FILE": "{file}/server.log"},
            (
                "the log file {file}/server.log cannot be opened: Not a directory; set LOG_FILE to a file, to "
                "/dev/stdout or /dev/stderr, or to a FIFO that a process reads"
            ),
            2,
        ),
    ],
)
def test_an_unusable_file_of_the_server_is_explained_at_the_start(
    *, file: str, content: str, mode: int, settings: dict[str, str], line: str, code: int, tmp_path: Path
) -> None:
    path = tmp_path / file
    path.write_text(content)
    path.chmod(mode)
    wanted = {name: value.format(file=path) for name, value in settings.items()}

    with running_server({"DATABASE_PATH": str(tmp_path / "ledger.db")}, wanted, ready=False) as server:
        assert server.wait() == code
        assert server.output == f"error: {line.format(file=path)}\n"
        assert_fit_for_users(server.output)
