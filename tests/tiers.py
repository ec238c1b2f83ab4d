"""Which tests `make check` leaves to `make test`: those marked `slow`. `make test` runs every test.

A test on a database server is slow, and so are the places below. `make check` takes about four minutes of CPU time.
"""

from __future__ import annotations

import pytest

from tests.databases.kinds import SERVERS
from tests.tally import kinds_of

#: Folders and files of tests that take long, or need programs that few machines have.
SLOW_PLACES = (
    "tests/benchmarks/",
    "tests/containers/",
    "tests/helm/",
    "tests/db/test_migrating_at_once.py",
    "tests/docs/test_checkout.py",
    "tests/docs/test_site.py",
    "tests/harness/",
    "tests/scenarios/test_crash.py",
    "tests/scenarios/test_disconnect_storm.py",
    "tests/scenarios/test_hostile_bytes.py",
    "tests/scenarios/test_hypercorn.py",
    "tests/scenarios/test_key_rotation.py",
    "tests/scenarios/test_moving.py",
    "tests/scenarios/test_reverse_proxies.py",
    "tests/scenarios/test_rolling_update.py",
    "tests/scenarios/test_stalled_reader.py",
    "tests/scenarios/test_start.py",
    "tests/scenarios/test_unauthenticated_clients.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow tests before `-m "not slow"` chooses."""
    for item in items:
        if item.nodeid.startswith(SLOW_PLACES) or set(kinds_of(item)) & set(SERVERS):
            item.add_marker("slow")
