"""What every test may use: the databases, and the count of tests on each of them."""

from __future__ import annotations

from hypothesis import settings

pytest_plugins = ["tests.databases.fixtures", "tests.harness.fixtures", "tests.tally", "tests.tiers"]

# A busy machine is no failure: how long an example takes is judged by benchmarks, not by properties.
settings.register_profile("llm-proxy", deadline=None)
settings.load_profile("llm-proxy")
