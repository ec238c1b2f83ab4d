from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from db.database import opened
from db.dsn import parse
from db.options import Options
from db.queries import ledger, projects, tokens
from db.records import Token
from tests.cli.conftest import Run
from tests.db.queries.factories import a_project, a_settled_request, a_token


@pytest.fixture
def token(run: Run, folder: Path) -> Token:
    """A token in the SQLite file `x.db`."""
    assert run("migrate", "up", "--db", "x.db").exit_code == 0
    project = a_project()
    token = a_token(project.id)
    with opened(parse("sqlite", None, "x.db"), Options()) as database:
        database.write_now(projects.create, project)
        database.write_now(tokens.create, token)
    return token


def write(token: Token, *rows: dict[str, Any]) -> None:
    now = datetime.now(UTC)
    settled = [
        a_settled_request(token, **{"admitted_at": now, "settled_at": now, "requested_model": "asked", **row})
        for row in rows
    ]
    with opened(parse("sqlite", None, "x.db"), Options()) as database:
        database.write_now(ledger.roll_up, settled)


def test_prices_of_a_model_are_shown_by_tier_and_length(run: Run) -> None:
    result = run("prices", "show", "gpt-5.4", "--provider", "openai")
    assert (result.exit_code, result.stderr) == (0, "")
    title, *lines = [line.split() for line in result.stdout.splitlines()]
    assert title[:4] == ["PROVIDER", "MODEL", "TIER", "ABOVE"]
    assert lines[0][:8] == ["openai", "gpt-5.4", "-", "-", "2.5", "0.25", "-", "-"]
    assert lines[1][3:5] == ["272000", "5"]
    assert {line[2] for line in lines} == {"-", "batch", "flex", "priority", "fast"}


def test_prices_of_the_file_come_first_and_name_their_pattern(run: Run, folder: Path) -> None:
    (folder / "prices.yaml").write_text("prices: {openai: {'gpt-5.4*': {input: 1.50, output: 3, web_search: 0.02}}}")
    result = run("prices", "show", "gpt-5.4-mini", "--provider", "openai", "--json", env={"PRICES_PATH": "prices.yaml"})
    first = json.loads(result.stdout)[0]
    assert first["version"].startswith("file ")
    assert first == {
        "provider": "openai",
        "model": "gpt-5.4-mini",
        "service_tier": None,
        "above": None,
        "prices": {"input": "1.5", "output": "3", "web_search": "0.02"},
        "version": first["version"],
        "pattern": "gpt-5.4*",
    }
    listed = run("prices", "show", "--provider", "openai", env={"PRICES_PATH": "prices.yaml"}).stdout.splitlines()
    assert listed[1].split()[:5] == ["openai", "gpt-5.4*", "-", "-", "1.5"]
    assert any(line.split()[1] == "gpt-4o" for line in listed)


def test_a_model_without_a_price_is_an_error(run: Run) -> None:
    result = run("prices", "show", "gpt-99")
    assert result.exit_code == 1
    assert result.stderr == "error: 'gpt-99' has no price at any configured provider; add one to the file PRICES_PATH\n"


def test_a_provider_that_is_not_configured_is_wrong_usage(run: Run) -> None:
    result = run("prices", "show", "gpt-4o", "--provider", "opnai")
    assert result.exit_code == 2
    assert result.stderr == "error: provider 'opnai' is not configured; did you mean openai?; see API_CONFIG_PATH\n"


def test_check_finds_models_without_a_price(run: Run, token: Token, folder: Path) -> None:
    old = datetime.now(UTC) - timedelta(days=31)
    write(
        token,
        {"model": "gpt-99", "input_tokens": 10, "output_tokens": 2},
        {"model": "gpt-99", "input_tokens": 20, "output_tokens": 3},
        {"model": "gpt-4o", "cache_write_tokens": 1},
        {"model": "gpt-4o-mini", "cost_nanousd": 5},
        {"model": "gpt-5", "input_tokens": None, "output_tokens": None},
        {"model": "gpt-4o-mini-tts", "input_tokens": None, "output_tokens": None, "usage_details": {}},
        {"model": "gpt-4o-audio-preview", "usage_details": {"input_audio_tokens": 5}},
        {"model": "gpt-98", "admitted_at": old, "settled_at": old},
    )
    result = run("prices", "check", "--db", "x.db")
    assert (result.exit_code, result.stderr) == (1, "")
    assert [line.split() for line in result.stdout.splitlines()][1:] == [
        ["openai", "gpt-4o", "asked", "1", "3", "4", "a", "class", "that", "was", "used"],
        ["openai", "gpt-4o-audio-preview", "asked", "1", "3", "4", "a", "class", "that", "was", "used"],
        ["openai", "gpt-4o-mini-tts", "asked", "1", "-", "-", "a", "fee", "for", "each", "request"],
        ["openai", "gpt-99", "asked", "2", "30", "5", "the", "model"],
    ]
    found = json.loads(run("prices", "check", "--db", "x.db", "--json").stdout)
    assert found[3] == {
        "provider": "openai",
        "model": "gpt-99",
        "requested_model": "asked",
        "requests": 2,
        "unpriced": 2,
        "input_tokens": 30,
        "output_tokens": 5,
        "missing": "the model",
    }

    asked = "{input: 1, input_audio: 2, cache_write: 1, output: 3}"
    (folder / "prices.yaml").write_text(f"prices: {{openai: {{gpt-4o-mini-tts: {{request: 1}}, asked: {asked}}}}}")
    result = run("prices", "check", "--db", "x.db", env={"PRICES_PATH": "prices.yaml"})
    assert (result.exit_code, result.stdout) == (0, "Every model that was used in the last 30 days has a price.\n")
