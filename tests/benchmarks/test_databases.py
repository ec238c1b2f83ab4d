"""Which databases there are to measure on, and what is said of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.databases import Databases, Kind, Missing, describe, find


def test_missing_databases_are_listed_and_broken_ones_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    def server(self: Databases, kind: Kind) -> Any:
        if kind is Kind.MYSQL:
            raise Missing("no mysql here")
        if kind is Kind.MARIADB:
            raise RuntimeError("it does not answer")

    monkeypatch.setattr(Databases, "server", server)
    found = find(Databases(), [Kind.SQLITE, Kind.POSTGRES, Kind.MYSQL])
    assert found == ([Kind.SQLITE, Kind.POSTGRES], {Kind.MYSQL: "no mysql here"})
    with pytest.raises(RuntimeError, match="does not answer"):
        find(Databases(), list(Kind))


@pytest.mark.parametrize(
    ("origin", "words"),
    [
        ("TEST_POSTGRES_URL", "set up by its owner"),
        ("docker", "a container"),
        ("/usr/lib/postgresql/15/bin/postgres", "its own defaults"),
    ],
)
def test_description_names_the_origin_of_a_server(monkeypatch: pytest.MonkeyPatch, origin: str, words: str) -> None:
    server = SimpleNamespace(version="PostgreSQL 15", origin=origin)
    monkeypatch.setattr(Databases, "server", lambda _self, _kind: server)
    about = describe(Databases(), [Kind.SQLITE, Kind.POSTGRES])
    assert about["PostgreSQL"].startswith("PostgreSQL 15, ")
    assert words in about["PostgreSQL"]
    assert "each commit flushed" in about["SQLite"]
