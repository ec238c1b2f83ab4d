"""Ports for servers that do not choose one themselves."""

from __future__ import annotations

import itertools
import os
import socket

#: Below the ports that Linux and macOS give to outgoing connections, so that none of those takes one meanwhile.
_PORTS = range(20_000, 32_000)
_numbers = itertools.count(os.getpid() * 61)


def free_port() -> int:
    """A loopback TCP port that nothing listens on at this moment; another one at each call."""
    for number in itertools.islice(_numbers, len(_PORTS)):
        port = _PORTS[number % len(_PORTS)]
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port between 20000 and 32000")
