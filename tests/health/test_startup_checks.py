from __future__ import annotations

from datetime import timedelta

import pytest

from db.database import ServerFacts
from llm_proxy.health.startup_checks import over_free, over_limit


def facts(allowed: int | None, others: int | None) -> ServerFacts:
    return ServerFacts(
        version="PostgreSQL 17",
        tls=None,
        max_connections=None if allowed is None else allowed + 3,
        allowed_connections=allowed,
        open_connections=others,
        clock_skew=timedelta(),
    )


@pytest.mark.parametrize(("allowed", "wanted", "fits"), [(97, 97, True), (97, 98, False), (None, 1000, True)])
def test_the_most_that_a_user_may_have(allowed: int | None, wanted: int, fits: bool) -> None:
    complaint = over_limit(facts(allowed, 0), wanted)
    assert (complaint is None) == fits
    if complaint is not None:
        assert "98 connections, more than the 97" in complaint


@pytest.mark.parametrize(
    ("others", "wanted", "words"),
    [(57, 40, None), (58, 40, "40 connections, but the database has only 39 free"), (120, 1, "only 0 free")],
)
def test_what_others_leave(others: int, wanted: int, words: str | None) -> None:
    complaint = over_free(facts(97, others), wanted)
    if words is None:
        assert complaint is None
    else:
        assert words in str(complaint)
        assert f"others use {others}" in str(complaint)


def test_a_file_has_no_crowd() -> None:
    assert over_free(facts(None, None), 1000) is None
