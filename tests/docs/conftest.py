"""What the tests of pages share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.docs.warm import Warm, warm_programs


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """The process that runs what pages have typed."""
    with warm_programs(tmp_path_factory.mktemp("warm")) as warm:
        yield warm
