"""compose.yaml: what the specification says of its form, and what we promise of its services."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_proxy.config import Settings
from llm_proxy.secrets import private_file
from tests.harness.server import ROOT

FOLDER = ROOT / "containers"
TEXT = (FOLDER / "compose.yaml").read_text()
PROXIES = ("proxy-sqlite", "proxy-postgres", "proxy-mysql")
_VARIABLE = re.compile(r"\$\{([A-Z_]+):-([^}]*)\}")


def with_defaults(text: str) -> str:
    """The text as `docker compose` reads it where no variable is set."""
    return _VARIABLE.sub(lambda match: match[2], text)


COMPOSE: dict[str, Any] = yaml.safe_load(with_defaults(TEXT))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def judged(compose: Mapping[str, Any], folder: Path) -> subprocess.CompletedProcess[str]:
    """What the schema of the Compose specification says of a file."""
    file = folder / "compose.json"
    file.write_text(json.dumps(compose))
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_compose_file_matches_the_specification(tmp_path: Path) -> None:
    done = judged(COMPOSE, tmp_path)
    assert done.returncode == 0, done.stdout


def test_an_invalid_compose_file_is_detected(tmp_path: Path) -> None:
    done = judged({"services": {"a": {"image": "x", "prots": []}}}, tmp_path)
    assert done.returncode == 1
    assert "prots" in done.stdout


def test_every_service_has_a_profile_a_health_check_and_its_secrets() -> None:
    assert {name: service["profiles"] for name, service in SERVICES.items()} == {
        "proxy-sqlite": ["sqlite"],
        "proxy-postgres": ["postgres"],
        "proxy-mysql": ["mysql"],
        "postgres": ["postgres"],
        "mysql": ["mysql"],
        "prometheus": ["monitoring"],
        "grafana": ["monitoring"],
    }
    for name, service in SERVICES.items():
        assert service["healthcheck"]["test"], name
        assert set(service.get("secrets", ())) <= set(COMPOSE["secrets"]), name
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert source in COMPOSE["volumes"] or (FOLDER / source).is_dir(), (name, volume)
        assert set(service.get("depends_on", ())) <= set(SERVICES), name


def test_all_ports_are_on_loopback() -> None:
    for name, service in SERVICES.items():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name


@pytest.mark.parametrize("name", PROXIES)
def test_proxies_have_no_capabilities_and_a_read_only_root(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["user"] == "10001:10001"
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", PROXIES)
def test_a_proxy_reads_its_secrets_from_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of each service is one that a server starts with, once the secrets are there."""
    folder = make_secrets(tmp_path)
    monkeypatch.setattr(private_file, "_MOUNTED_SECRETS", f"{folder}/")
    service = SERVICES[name]
    environment = dict(service["environment"])
    for variable, value in environment.items():
        secret = value.removeprefix("/run/secrets/")
        if variable.endswith("_FILE"):
            assert secret in service["secrets"]
            environment[variable] = str(folder / secret)
    settings = Settings.load(environment, {}, None, serving=True)
    assert settings.management_token
    assert settings.encryption_key
    grace = int(service["stop_grace_period"].removesuffix("s"))
    assert grace > settings.shutdown_grace + 10


def test_compose_file_contains_no_secret() -> None:
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|TOKEN|KEY|SECRET|(?<!PUBLIC_)URL", variable) and "RANDOM" not in variable:
                assert value.startswith("/run/secrets/"), (name, variable)


def run_secrets(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run secrets.sh in a folder."""
    script = folder / "secrets.sh"
    script.write_bytes((FOLDER / "secrets.sh").read_bytes())
    return subprocess.run(
        ["sh", str(script)], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


def make_secrets(folder: Path, **environment: str) -> Path:
    """The folder that secrets.sh makes."""
    done = run_secrets(folder, **environment)
    assert done.returncode == 0, done.stderr
    return folder / "secrets"


class TestSecrets:
    def test_all_that_are_named_are_made(self, tmp_path: Path) -> None:
        folder = make_secrets(tmp_path)
        assert {path.name for path in folder.iterdir()} == set(COMPOSE["secrets"])
        assert {entry["file"] for entry in COMPOSE["secrets"].values()} == {f"secrets/{n}" for n in COMPOSE["secrets"]}
        assert oct(folder.stat().st_mode)[-3:] == "700"

    def test_those_that_exist_stay(self, tmp_path: Path) -> None:
        before = {path.name: path.read_text() for path in make_secrets(tmp_path).iterdir()}
        after = {path.name: path.read_text() for path in make_secrets(tmp_path, POSTGRES_PASSWORD="x").iterdir()}
        assert before == after
        assert len(set(before.values())) == len(before)

    def test_passwords_of_ones_choice(self, tmp_path: Path) -> None:
        folder = make_secrets(tmp_path, POSTGRES_PASSWORD="secret", MYSQL_PASSWORD="s€cret:@/")
        assert (
            folder / "postgres-url"
        ).read_text() == "postgres://llmproxy:secret@postgres:5432/llmproxy?sslmode=disable"
        assert "llmproxy:s€cret:@/@tcp(mysql:3306)/llmproxy" in (folder / "mysql-url").read_text()

    def test_a_password_that_a_url_cannot_hold_is_refused(self, tmp_path: Path) -> None:
        done = run_secrets(tmp_path, POSTGRES_PASSWORD="a@b")
        assert done.returncode == 2
        assert "POSTGRES_PASSWORD" in done.stderr
        assert not (tmp_path / "secrets" / "postgres-url").exists()
        assert not (tmp_path / "secrets" / "postgres-password").exists()
