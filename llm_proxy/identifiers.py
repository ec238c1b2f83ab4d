"""Ids: request ids that sort by time, and random ids for everything else."""

from __future__ import annotations

import uuid_utils


def request_id() -> str:
    """Make a request id: a UUID of version 7 (RFC 9562, section 5.7), greater than all before it in this process.

    The ledger lists and prunes by id, so it needs no index by time. If the clock is set back, the last millisecond
    stays. A forked process draws a new seed.
    """
    return str(uuid_utils.uuid7())


def request_id_beside(other: str) -> str:
    """Make a request id of the millisecond of another one, for a row that is found where that one is."""
    return other[:13] + request_id()[13:]


def new_id() -> str:
    """Make an id for a project, a token or a worker: a random UUID (version 4)."""
    return str(uuid_utils.uuid4())
