"""Which tests `make check` leaves to `make test`: those marked `slow`; and in which order files run.

`make test` runs every test. A test on a database server is slow, and so are the places below. `make check` takes less
than six minutes of CPU time, which is under three minutes on two cores.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby, zip_longest
from pathlib import Path

import pytest
from hypothesis import settings

from tests.databases.kinds import SERVERS
from tests.tally import kinds_of

#: Folders and files of tests that take long, need programs that few machines have, or are about the tests' own tools.
#: A file belongs here if it costs seconds and the rest of its folder covers the same code: `pytest --durations 50`.
SLOW_PLACES = (
    "tests/benchmarks/",
    "tests/containers/",
    "tests/helm/",
    "tests/scripted/",
    "tests/cli/test_benchmark_command.py",
    "tests/cli/test_demo_command.py",
    "tests/db/test_cut_off_migrations.py",
    "tests/db/test_migrating_at_once.py",
    "tests/docs/test_checkout.py",
    "tests/docs/test_guides.py",
    "tests/docs/test_site.py",
    "tests/harness/",
    "tests/scenarios/test_anthropic_sdk.py",
    "tests/scenarios/test_audit.py",
    "tests/scenarios/test_client_disconnects.py",
    "tests/scenarios/test_crash.py",
    "tests/scenarios/test_database_guide.py",
    "tests/scenarios/test_disconnect_storm.py",
    "tests/scenarios/test_hostile_bytes.py",
    "tests/scenarios/test_hypercorn.py",
    "tests/scenarios/test_key_rotation.py",
    "tests/scenarios/test_moving.py",
    "tests/scenarios/test_openai_sdk.py",
    "tests/scenarios/test_reverse_proxies.py",
    "tests/scenarios/test_rewrite_urls.py",
    "tests/scenarios/test_rolling_update.py",
    "tests/scenarios/test_sdk_errors.py",
    "tests/scenarios/test_stalled_reader.py",
    "tests/scenarios/test_start.py",
    "tests/scenarios/test_unauthenticated_clients.py",
    "tests/scenarios/test_vendor_sdks.py",
    "tests/scenarios/test_upstream_faults.py",
    "tests/server/test_supervisor.py",
)


#: Examples of each property that `make check` tries.
_EXAMPLES = 40


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import what `-m "not slow"` leaves out: the SDKs alone take three seconds in each process."""
    if config.getoption("markexpr") != "not slow":
        return None
    place = collection_path.relative_to(config.rootpath).as_posix()
    return f"{place}/".startswith(tuple(f"{slow.rstrip('/')}/" for slow in SLOW_PLACES)) or None


def pytest_configure(config: pytest.Config) -> None:
    """Try fewer examples of each property: `make test` tries as many as Hypothesis recommends."""
    if config.getoption("markexpr") == "not slow":
        settings.register_profile("check", settings.default, max_examples=_EXAMPLES)
        settings.load_profile("check")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow tests before `-m "not slow"` chooses, and bring the files into the order in which they run."""
    for item in items:
        if item.nodeid.startswith(SLOW_PLACES) or set(kinds_of(item)) & set(SERVERS):
            item.add_marker("slow")
    items[:] = [item for file in _mixed(items) for item in file]


def _mixed(items: list[pytest.Item]) -> Iterator[list[pytest.Item]]:
    """Files that wait for other processes in turn with files that compute, so that both cores have work all the time.

    Those that wait take longest and are fewer, so that the last files are short ones.
    """
    files = [list(group) for _, group in groupby(items, lambda item: item.path)]
    waiting: list[list[pytest.Item]] = []
    computing: list[list[pytest.Item]] = []
    for file in files:
        waits = file[0].nodeid.startswith(("tests/scenarios/", *SLOW_PLACES))
        (waiting if waits else computing).append(file)
    for first, second in zip_longest(waiting, computing):
        yield from filter(None, (first, second))
