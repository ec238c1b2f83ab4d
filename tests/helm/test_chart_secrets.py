"""Where secrets are, and what the notes say after an install."""

from __future__ import annotations

import base64
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from llm_proxy.cli import program
from tests.helm.chart import EXAMPLES, Values, merged, notes, render, rendered
from tests.helm.pod import KEY, PASSWORD, TOKEN, URL
from tests.helm.test_chart_values import DATABASES, FEATURES

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


@pytest.mark.parametrize("name", EXAMPLES, ids=lambda path: path.stem)
def test_examples_create_no_secret(name: Path) -> None:
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


def test_notes_show_address_and_next_steps(tmp_path: Path) -> None:
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
