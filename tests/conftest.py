"""What every test may use: the databases, and the count of tests on each of them."""

from __future__ import annotations

import gc
from collections.abc import Generator

import pytest
from hypothesis import settings

pytest_plugins = ["tests.databases.fixtures", "tests.harness.fixtures", "tests.tally", "tests.tiers"]

# A busy machine is no failure: how long an example takes is judged by benchmarks, not by properties.
settings.register_profile("llm-proxy", deadline=None)
settings.load_profile("llm-proxy")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the garbage collector from scanning ten thousand tests and their imports again and again: 0.4 s each.

    What tests themselves leave behind is collected as always, so that a forgotten socket still is a warning.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()
