"""What a server is told before it starts."""

from __future__ import annotations

import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

import attrs

MAX_CONNECTIONS: Final = 10_000


@attrs.frozen(kw_only=True)
class ServeConfig:
    """Addresses, limits and deadlines of one server. Times are in seconds, sizes in bytes.

    Attributes:
        host, port: where to listen when `sockets` is empty; port 0 lets the system choose one. A name that resolves to
            several addresses (or an empty host: every address) makes one listener for each.
        sockets: sockets that are bound already, as a worker process inherits them; the server listens on them and
            closes its own handles of them at the end.
        shared: whether other processes accept from these sockets too.
        tls_cert, tls_key: PEM files; when both are given every socket speaks TLS, and HTTP/2 to who asks for it.
        shutdown_grace: how long running requests may go on after `stop`.
        lifespan_timeout: how long the application's own shutdown may take after that.
        header_timeout: from the first byte of a request to the end of its headers; also the TLS handshake.
        body_idle_timeout: the longest silence while the application waits for the body of a request.
        keep_alive_timeout: the longest silence between two requests, and before the first.
        write_timeout: the longest time in which a client takes nothing of what is sent to it.
        max_header_size: request line and headers together.
        max_connections: connections at once; beyond it those that have been idle longest are closed, and if none is
            idle, new ones wait in the listen queue. Keep it below the limit on open files.
        backlog: length of the listen queue.
        report: is told of every exception that an application or a connection lets escape.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    sockets: tuple[socket.socket, ...] = ()
    shared: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    shutdown_grace: float = 30.0
    lifespan_timeout: float = 60.0
    header_timeout: float = 10.0
    body_idle_timeout: float = 60.0
    keep_alive_timeout: float = 75.0
    write_timeout: float = 30.0
    max_header_size: int = 64 * 1024
    max_connections: int = MAX_CONNECTIONS
    backlog: int = 1024
    report: Callable[[BaseException], None] = traceback.print_exception

    def __attrs_post_init__(self) -> None:
        """Refuse to speak plain text where half of what TLS needs was given; raises ValueError."""
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("TLS needs both tls_cert and tls_key")
