"""The pool of a server's connections, and the deadlines that do not come from settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy.pool import QueuePool

from db.options import Options

#: How much longer than the server the socket waits, in seconds: the server's own error is the better one.
SOCKET_GRACE = 2.0
#: What a connection that migrates waits for one answer, in seconds: a large table may take its time.
MIGRATION_TIMEOUT = 6 * 3600.0
#: What it waits for statements of others that use the table, in seconds; while it waits, new ones wait behind it.
LOCK_TIMEOUT = 60.0
#: After so many seconds without a word from it, the server ends its session: its process is frozen, or cut off, and
#: must not keep others from migrating for ever.
SILENCE = 60.0


def pool(connect: Callable[[], Any], options: Options) -> QueuePool:
    """At most `pool_size` connections, of which `max_idle` stay open when they come back.

    Nothing is reset when a connection comes back, because every transaction has been ended by then; and none is probed
    when it is taken: a function whose connection turns out to have gone is run again on a fresh one.
    """
    kept = max(1, min(options.max_idle, options.pool_size))
    return QueuePool(
        connect,
        pool_size=kept,
        max_overflow=options.pool_size - kept,
        timeout=options.connect_timeout,
        recycle=int(options.max_lifetime),
        use_lifo=True,
        reset_on_return=None,
    )
