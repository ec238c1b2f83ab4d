"""Labels that the hourly sums distinguish are bounded."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

from llm_proxy.gateway.labels import MAX_VALUES, OTHER, Labels
from tests.db.queries.factories import NOON


def grant(project: str = "p", day: int = 0, **labels: str) -> Any:
    return SimpleNamespace(
        token=SimpleNamespace(labels=labels or None),
        account=SimpleNamespace(project=SimpleNamespace(allow_request_labels=True)),
        reservation=SimpleNamespace(project_id=project, admitted_at=NOON + timedelta(days=day)),
    )


def test_only_the_configured_keys_are_summed() -> None:
    known = Labels({}, ("user", "team"))
    assert known.of(grant(team="a", env="b"), {}) == ({"team": "a", "env": "b"}, {"team": "a"})
    assert known.of(grant(env="b"), {"user": "u"}) == ({"env": "b", "user": "u"}, {"user": "u"})
    assert known.of(grant(env="b"), {}) == ({"env": "b"}, None)
    assert known.of(grant(), {}) == (None, None)


def test_further_values_of_a_day_are_summed_as_other() -> None:
    known = Labels({}, ("user",))
    for number in range(MAX_VALUES):
        assert known.of(grant(user=f"u{number}"), {})[1] == {"user": f"u{number}"}
    assert known.of(grant(user="new"), {}) == ({"user": "new"}, {"user": OTHER})
    assert known.of(grant(user="u7"), {})[1] == {"user": "u7"}
    assert known.of(grant("q", user="new"), {})[1] == {"user": "new"}
    assert known.of(grant(day=1, user="new"), {})[1] == {"user": "new"}
