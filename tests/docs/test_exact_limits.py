from __future__ import annotations

import re

from tests.docs.test_links import PAGES

_PROMISE = re.compile(r"\bexact\b[^.,:]{0,60}\blimits?\b|\blimits?\b[^.,:]{0,60}\bexact\b", re.IGNORECASE)


def test_pages_that_call_limits_exact_name_the_policy_with_which_they_are() -> None:
    promising = [page for page in PAGES if _PROMISE.search(page.read_text())]
    assert len(promising) > 5
    assert [page for page in promising if "DB_OUTAGE_POLICY" not in page.read_text()] == []
