"""Checks of the ledger from outside: `ledger verify`, outcomes, and differences."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping

from sqlalchemy import select

from db import Connection
from db.database import opened
from db.dsn import Target
from db.options import Options
from db.queries import ledger
from db.schema import in_flight, requests
from tests.harness.server import ROOT


def verify(env: Mapping[str, str]) -> str:
    """Run `llm-proxy ledger verify`; fails unless it exits with 0."""
    environment = {"PATH": os.environ["PATH"], **env}
    done = subprocess.run(
        [sys.executable, "-m", "llm_proxy", "ledger", "verify"],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
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
