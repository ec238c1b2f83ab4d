"""How to connect: pool, deadlines, TLS files. The same for every database; where to connect is `dsn.Target`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from attrs import field, frozen, validators


@frozen
class Options:
    """Settings of the connection pool and of each connection in it. Durations are seconds.

    Attributes:
        pool_size: most connections open at once.
        max_idle: connections kept open while nobody uses them; more are closed when they come back.
        max_lifetime: age after which a connection is replaced.
        connect_timeout: for reaching the server and logging in.
        statement_timeout: for one statement, enforced by the server where it can; the socket's own deadline is a
            little later, so that the server has stopped working on the statement by then.
        migration_lock_timeout: how long to wait for another process that migrates.
        tls_ca: certificates to trust, PEM; the system's where it is None.
        tls_cert, tls_key: client certificate and key, PEM.
        sqlite_synchronous: FULL survives a power cut, NORMAL may lose the last commits in one.
    """

    pool_size: int = field(default=10, validator=validators.gt(0))
    max_idle: int = field(default=5, validator=validators.ge(0))
    max_lifetime: float = field(default=3600.0, validator=validators.gt(0.0))
    connect_timeout: float = field(default=5.0, validator=validators.gt(0.0))
    statement_timeout: float = field(default=10.0, validator=validators.gt(0.0))
    migration_lock_timeout: float = field(default=60.0, validator=validators.gt(0.0))
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    sqlite_synchronous: Literal["FULL", "NORMAL"] = "FULL"
