"""One upstream process for all tests that do not need their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.processes import Upstream


@pytest.fixture(scope="session")
def running_upstream() -> Iterator[Upstream]:
    with Upstream.start("--key", "sk-real") as upstream:
        yield upstream


@pytest.fixture
def upstream(running_upstream: Upstream) -> Upstream:
    running_upstream.release()
    running_upstream.wait(in_flight=0, connections_open=0)
    running_upstream.reset()
    return running_upstream
