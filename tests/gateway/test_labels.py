"""Which labels of a request the hourly sums distinguish."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from llm_proxy.gateway.labels import Labels


def grant(**labels: str) -> Any:
    return SimpleNamespace(
        token=SimpleNamespace(labels=labels or None),
        account=SimpleNamespace(project=SimpleNamespace(allow_request_labels=True)),
    )


def test_only_the_configured_keys_are_summed() -> None:
    known = Labels({}, ("user", "team"))
    assert known.of(grant(team="a", env="b"), {}) == ({"team": "a", "env": "b"}, {"team": "a"})
    assert known.of(grant(env="b"), {"user": "u"}) == ({"env": "b", "user": "u"}, {"user": "u"})
    assert known.of(grant(env="b"), {}) == ({"env": "b"}, None)
    assert known.of(grant(), {}) == (None, None)
