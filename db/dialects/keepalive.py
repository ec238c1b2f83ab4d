"""Keeping idle connections alive on their way, and noticing when they are not."""

from __future__ import annotations

import socket

#: Seconds of silence before the first probe, and between probes. Less than firewalls and NAT remember a connection:
#: four minutes on Azure, 350 seconds on AWS.
_IDLE = 30
_INTERVAL = 10
#: Probes without an answer after which the kernel gives a connection up.
_COUNT = 3
#: macOS has another name for the first.
_OPTIONS = (("TCP_KEEPIDLE", _IDLE), ("TCP_KEEPALIVE", _IDLE), ("TCP_KEEPINTVL", _INTERVAL), ("TCP_KEEPCNT", _COUNT))


def keep_alive(connection: socket.socket) -> None:
    """Have the kernel probe a TCP connection while nothing is said on it; other sockets are left alone."""
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _OPTIONS:
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
