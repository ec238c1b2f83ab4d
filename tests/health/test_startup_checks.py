from __future__ import annotations

from datetime import timedelta

import pytest

from db.dialects import ServerFacts
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
def test_more_connections_than_the_user_is_allowed_are_reported(allowed: int | None, wanted: int, fits: bool) -> None:
    warning = over_limit(facts(allowed, 0), wanted)
    assert (warning is None) == fits
    if warning is not None:
        assert "98 connections, more than the 97" in warning


@pytest.mark.parametrize(
    ("others", "wanted", "message"),
    [(57, 40, None), (58, 40, "40 connections, but the database has only 39 free"), (120, 1, "only 0 free")],
)
def test_more_connections_than_are_free_are_reported(others: int, wanted: int, message: str | None) -> None:
    warning = over_free(facts(97, others), wanted)
    if message is None:
        assert warning is None
    else:
        assert message in str(warning)
        assert f"others use {others}" in str(warning)


def test_a_database_without_a_limit_has_no_warning() -> None:
    assert over_free(facts(None, None), 1000) is None
