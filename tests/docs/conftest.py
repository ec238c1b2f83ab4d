"""What the tests of pages share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.docs.warm import Warm, warm_programs


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """The process that runs what pages have typed."""
    # A short path: the name of a socket has a hundred characters at most.
    with TemporaryDirectory(prefix="warm-") as folder, warm_programs(Path(folder)) as warm:
        yield warm
