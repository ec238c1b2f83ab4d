"""What the tests of pages share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness.warm import Warm, warm_programs

#: SDKs and the command line bring their parts in only when these are used.
_LOADED = (
    "anthropic.resources.messages",
    "anthropic.resources.models",
    "llm_proxy.cli.commands.ledger",
    "llm_proxy.cli.commands.manage.project",
    "llm_proxy.cli.commands.manage.token",
    "llm_proxy.cli.commands.server",
    "openai.resources.chat.completions",
    "openai.resources.models",
    "openai.resources.responses",
)


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """The process that runs what pages have typed."""
    with warm_programs(*_LOADED) as warm:
        yield warm
