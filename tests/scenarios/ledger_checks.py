"""Checks of the ledger from outside: `ledger verify`, outcomes, and differences."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping

from click.testing import CliRunner
from sqlalchemy import select

from db import Connection
from db.database import opened
from db.dsn import Target
from db.options import Options
from db.queries import ledger
from db.schema import in_flight, requests
from llm_proxy.cli import program
from llm_proxy.config import Settings
from llm_proxy.config.sources import declared


def verify(env: Mapping[str, str]) -> str:
    """Run `llm-proxy ledger verify` in this process; fails unless it exits with 0."""
    unset = dict.fromkeys(name for name in os.environ if name.removesuffix("_FILE") in declared(Settings))
    done = CliRunner().invoke(program, ["ledger", "verify"], prog_name="llm-proxy", env={**unset, **env})
    assert done.exit_code == 0, done.output
    return done.stdout


def outcomes(target: Target) -> Counter[str]:
    """Settled requests by outcome; those in flight as `in_flight`."""

    def read(connection: Connection) -> Counter[str]:
        found = Counter(connection.scalars(select(requests.c.outcome)))
        found["in_flight"] = len(connection.execute(select(in_flight.c.id)).all())
        return found

    with opened(target, Options(), exclusive=False) as database:
        return +database.read_now(read)


def differences(target: Target) -> list[ledger.Imbalance]:
    """Return the differences between counters, rows and sums, read directly."""
    with opened(target, Options(), exclusive=False) as database:
        return database.read_now(ledger.verify)
