"""Upstream: how the data plane talks to providers.

interface.py    the seam: Upstream, UpstreamResponse, RequestBody, Dispatch
origin.py       where an upstream is, and how long it may take
failures.py     everything that can go wrong
pool.py         the connections to one origin, a stack
connection.py   one connection and its exchanges
response.py     what the pool asks of a connection, and gives to its caller
parser.py       responses from bytes, without I/O
request.py      requests to bytes, without I/O
routes.py       which way leads to an origin: straight, or through an outbound proxy
outbound.py     the outbound proxy that the environment names
via_httpx.py    connections through an outbound proxy
network.py      the network as those see it
"""

from __future__ import annotations

from llm_proxy.gateway.upstream.failures import (
    ConnectFailed,
    ConnectTimeout,
    Disconnected,
    HeaderTimeout,
    IdleTimeout,
    MalformedResponse,
    UnexpectedUpgrade,
    UpstreamFailure,
)
from llm_proxy.gateway.upstream.interface import Dispatch
from llm_proxy.gateway.upstream.origin import Origin, Timeouts
from llm_proxy.gateway.upstream.pool import UpstreamPool
from llm_proxy.gateway.upstream.routes import open_pool

__all__ = [
    "ConnectFailed",
    "ConnectTimeout",
    "Disconnected",
    "Dispatch",
    "HeaderTimeout",
    "IdleTimeout",
    "MalformedResponse",
    "Origin",
    "Timeouts",
    "UnexpectedUpgrade",
    "UpstreamFailure",
    "UpstreamPool",
    "open_pool",
]
