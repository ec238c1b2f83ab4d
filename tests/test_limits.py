"""Windows of limits, and what a refusal says of them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from llm_proxy.limits import Blocked, ends_at, started_at, verdict
from tests.db.queries.factories import a_limit

#: A Sunday, and a Tuesday of a leap year.
NEW_YEARS_EVE = datetime(2028, 12, 31, 23, 58, 30, 500_000, tzinfo=UTC)
LEAP_DAY = datetime(2028, 2, 29, tzinfo=UTC)
#: The end of the windows that all end with the year.
NEXT_YEAR = "2029-01-01T00:00"


@pytest.mark.parametrize(
    ("period", "now", "start", "end"),
    [
        ("minute", NEW_YEARS_EVE, "2028-12-31T23:58", "2028-12-31T23:59"),
        ("hour", NEW_YEARS_EVE, "2028-12-31T23:00", NEXT_YEAR),
        ("day", NEW_YEARS_EVE, "2028-12-31T00:00", NEXT_YEAR),
        ("week", NEW_YEARS_EVE, "2028-12-25T00:00", NEXT_YEAR),
        ("month", NEW_YEARS_EVE, "2028-12-01T00:00", NEXT_YEAR),
        ("minute", LEAP_DAY, "2028-02-29T00:00", "2028-02-29T00:01"),
        ("day", LEAP_DAY, "2028-02-29T00:00", "2028-03-01T00:00"),
        ("week", LEAP_DAY, "2028-02-28T00:00", "2028-03-06T00:00"),
        ("month", LEAP_DAY, "2028-02-01T00:00", "2028-03-01T00:00"),
        ("month", LEAP_DAY.replace(month=1, day=31), "2028-01-01T00:00", "2028-02-01T00:00"),
    ],
)
def test_a_window_is_a_calendar_period_in_utc(period: Any, now: datetime, start: str, end: str) -> None:
    started = started_at(period, now)
    assert started == datetime.fromisoformat(f"{start}+00:00")
    assert ends_at(period, started) == datetime.fromisoformat(f"{end}+00:00")
    assert started_at(period, started) == started


def test_a_limit_in_total_has_one_window() -> None:
    assert started_at("total", NEW_YEARS_EVE) is None
    assert ends_at("total", None) is None


@pytest.mark.parametrize(
    ("metric", "period", "code", "seconds"),
    [
        ("requests", "total", "request_limit_exceeded", None),
        ("requests", "minute", "rate_limit_exceeded", 30),
        ("requests", "month", "rate_limit_exceeded", 90),
        ("tokens", "minute", "rate_limit_exceeded", 30),
        ("input_tokens", "hour", "rate_limit_exceeded", 90),
        ("output_tokens", "day", "budget_exceeded", 90),
        ("tokens", "total", "budget_exceeded", None),
        ("cost", "minute", "budget_exceeded", 30),
        ("cost", "week", "budget_exceeded", 90),
        ("cost", "total", "budget_exceeded", None),
    ],
)
def test_a_refusal_says_what_is_used_and_when_it_resets(
    metric: str, period: str, code: str, seconds: int | None
) -> None:
    limit = a_limit(metric=metric, period=period, amount=5_000_000_000, scope="project")
    found = verdict(limit, 6_000_000_000, 0, 1, NEW_YEARS_EVE)
    assert found is not None
    assert not isinstance(found, Blocked)
    assert (found.code, found.retry_after) == (code, seconds)
    assert "of the project is used up" in found.message
    used = "$6.00 of $5.00" if metric == "cost" else f"6000000000 of 5000000000 {metric.replace('_', ' ')}"
    assert f"{used} are used." in found.message
    resets = "2028-12-31T23:59:00Z" if period == "minute" else f"{NEXT_YEAR}:00Z"
    assert (f"It resets at {resets}." in found.message) is (seconds is not None)


@pytest.mark.parametrize(
    ("fields", "counter", "code"),
    [
        ({"metric": "concurrency"}, (0, 2), "rate_limit_exceeded"),
        ({"metric": "cost", "policy": "reserved"}, (1, 1), "budget_reserved"),
    ],
)
def test_a_request_waits_if_only_running_ones_are_in_the_way(
    fields: dict[str, str], counter: tuple[int, int], code: str
) -> None:
    limit = a_limit(amount=2, wait_ms=1500, **fields)
    found = verdict(limit, *counter, 1, NEW_YEARS_EVE)
    assert isinstance(found, Blocked)
    assert (found.limit_id, found.seconds) == (limit.id, 1.5)
    assert (found.error.code, found.error.retry_after) == (code, 1)
