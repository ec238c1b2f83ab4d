"""Where secrets are, and that the program understands what the chart tells it."""

from __future__ import annotations

import base64
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from llm_proxy.cli import program
from llm_proxy.settings import Settings
from tests.helm.chart import EXAMPLES, Manifest, Values, environment, merged, notes, render, rendered, server
from tests.helm.test_chart_values import DATABASES, FEATURES

#: Secrets of every kind, each to be told from the others and from all else.
TOKEN = "canary-management-token"
KEY = base64.b64encode(b"canary encryption key, 32 bytes.").decode()
PASSWORD = "canary-password"
URL = f"postgres://llmproxy:{PASSWORD}@db:5432/llmproxy"
CLEAR = {"create": True, "managementToken": TOKEN, "encryptionKey": KEY}

IN_CLEAR: dict[str, Values] = {
    "sqlite": {"secrets": CLEAR},
    "external": {"database": {"driver": "postgres"}, "secrets": {**CLEAR, "databaseUrl": URL}},
    "postgres": {
        "database": {"driver": "postgres"},
        "secrets": CLEAR,
        "postgresql": {"enabled": True, "password": PASSWORD},
    },
    "mysql": {
        "database": {"driver": "mysql"},
        "secrets": CLEAR,
        "mysql": {"enabled": True, "password": PASSWORD, "rootPassword": f"{PASSWORD}-of-root"},
    },
}


def encoded(secret: str) -> tuple[str, str]:
    """A secret as it is, and as Kubernetes shows it."""
    return secret, base64.b64encode(secret.encode()).decode().rstrip("=")


@pytest.mark.parametrize("name", IN_CLEAR)
def test_a_secret_from_values_is_in_secrets_and_nowhere_else(name: str, tmp_path: Path) -> None:
    values = merged(IN_CLEAR[name], FEATURES["https"])
    # As text, so that comments count too.
    documents = rendered(values).split("\n---\n")
    kept = "".join(each for each in documents if "\nkind: Secret\n" in each)
    shown = "".join(each for each in documents if each not in kept) + notes(values, tmp_path)
    assert TOKEN in kept
    assert KEY in kept
    assert (PASSWORD in kept) == (name != "sqlite")
    for secret in (TOKEN, KEY, PASSWORD):
        assert all(form not in shown for form in encoded(secret))


@pytest.mark.parametrize("name", [*DATABASES, *(path.stem for path in EXAMPLES)])
def test_the_program_understands_what_the_chart_tells_it(name: str, tmp_path: Path) -> None:
    values = DATABASES.get(name) or next(path for path in EXAMPLES if path.stem == name) if name != "sqlite" else {}
    if isinstance(values, dict):
        values = merged(values, FEATURES["settings"], FEATURES["https"])
    objects = render(values)
    environ = _in_a_folder(environment(server(objects)), objects, tmp_path)
    settings = Settings.load(environ, serving=True)
    assert Settings.warnings({**environ, "PROXY_TOKEN": "x"}) == []
    assert settings.listen_addr.port == 8080
    assert settings.db_driver == environ["DB_DRIVER"]
    if isinstance(values, dict):
        assert settings.max_request_size == 200_000_000
        assert settings.enable_tls


def _in_a_folder(environ: dict[str, str], objects: list[Manifest], root: Path) -> dict[str, str]:
    """Make the files that a pod would have, below `root`, and name them there."""
    driver = environ["DB_DRIVER"]
    secrets = {
        "management-token": TOKEN,
        "encryption-key": KEY,
        "database-url": _address(driver, objects),
    }
    found = {}
    for name, value in environ.items():
        found[name] = value
        if value.startswith(("/run/", "/etc/", "/data/")):
            file = root / value.removeprefix("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            found[name] = str(file)
            if not value.startswith("/data/"):
                file.write_text(secrets.get(file.name, "x"))
    return found


def _address(driver: str, objects: list[Manifest]) -> str:
    """The one that the chart makes, where it makes one, else one of the kind."""
    for each in objects:
        made: dict[str, Any] = each.get("stringData", {}) if each["kind"] == "Secret" else {}
        for name in ("database-url", "databaseUrl"):
            if name in made:
                return str(made[name])
    return URL if driver == "postgres" else f"llmproxy:{PASSWORD}@tcp(db:3306)/llmproxy?parseTime=true&tls=true"


@pytest.mark.parametrize("name", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_makes_no_secret_of_its_own(name: Path) -> None:
    """People copy examples, so they show secrets by reference only."""
    assert [each for each in render(name) if each["kind"] == "Secret"] == []


@pytest.mark.parametrize("name", IN_CLEAR)
def test_the_commands_in_the_notes_are_commands_of_the_program(name: str, tmp_path: Path) -> None:
    said = notes(IN_CLEAR[name], tmp_path)
    commands = re.findall(r"-- llm-proxy (.*)", said)
    assert len(commands) == 2
    for command in commands:
        # Options are looked at before the help is shown.
        done = CliRunner().invoke(program, [*shlex.split(command), "--help"])
        assert done.exit_code == 0, done.output
    assert len(re.findall(r"helm|kubectl", said)) >= 5


def test_notes_say_what_matters(tmp_path: Path) -> None:
    said = notes(merged(IN_CLEAR["mysql"], {"dashboard": {"enabled": True}}), tmp_path / "mysql")
    assert "the in-cluster mysql is for DEVELOPMENT AND TESTING ONLY" in said
    assert "the secrets of this release are in its values" in said
    assert "http://llm-proxy.gateway:80" in said
    assert "get secret llm-proxy-secrets -o jsonpath='{.data.managementToken}'" in said
    grace = merged(DATABASES["postgres"], {"config": {"DB_OUTAGE_POLICY": "grace"}})
    assert "is kept in the pod until it is back" in notes(grace, tmp_path / "grace")
    said = notes({"sqlite": {"persistence": {"enabled": False}}}, tmp_path / "sqlite")
    assert "the database is gone when its pod is" in said
    assert "cat /data/llm-proxy.db.management-token" in said
    assert "DEVELOPMENT" not in said
